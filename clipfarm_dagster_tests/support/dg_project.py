"""Projects of Dagster's `dg` command, checked as their authors check them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipfarm_dagster_tests.support.media import REPOSITORY


def project_environment(folder: Path) -> dict[str, str]:
    """Environment of commands in a project that is not installed."""
    path = os.pathsep.join([str(folder), str(REPOSITORY)])
    return {**os.environ, "PYTHONPATH": path, "DAGSTER_DISABLE_TELEMETRY": "yes"}


def run_dg(folder: Path, *arguments: str) -> str:
    """Run `dg` in a project's folder; returns its standard output."""
    program = Path(sys.executable).with_name("dg")
    if not program.exists():
        pytest.skip("`dg` is not installed (pip install dagster-dg-cli)")
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=project_environment(folder),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def check_defs(folder: Path) -> None:
    """`dg check defs` has nothing to object to."""
    assert "All definitions loaded successfully" in run_dg(folder, "check", "defs")
