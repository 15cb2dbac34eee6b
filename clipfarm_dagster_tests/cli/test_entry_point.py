"""What the command's entry point costs the worker processes, which import the script that started them."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_entry_point_imports_nothing_heavy():
    program = "import sys, clipfarm_dagster.cli; print(*sys.modules, sep='\\n')"

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout

    assert "clipfarm_dagster.cli" in loaded.split()
    assert not {"dagster", "typer", "rich", "numpy", "pydantic"} & set(loaded.split())
