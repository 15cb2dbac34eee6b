"""`clipfarm demo`, as a stranger runs it: once, again, and after a title has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_demo(home: Path) -> dict[str, Any]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLIPFARM_", "DAGSTER_"))
    }
    command = [sys.executable, "-c", "from clipfarm_dagster.cli import main; main()"]
    done = subprocess.run(
        [*command, "demo", "--json", "--home", str(home)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def embedded(answer: dict[str, Any]) -> dict[str, int]:
    return {stage: entry["embedded"] for stage, entry in answer["stages"].items()}


def test_the_demo_embeds_everything_then_nothing_then_one_changed_title(tmp_path: Path):
    first = run_demo(tmp_path / "demo")

    assert first["stages"] == {s: {"vectors": 12, "embedded": 12} for s in ("video", "audio", "text")}
    theme = first["like"].split("-")[0]
    assert first["neighbours"][0][0].startswith(theme)
    assert embedded(run_demo(tmp_path / "demo")) == {"video": 0, "audio": 0, "text": 0}

    metadata = tmp_path / "demo/store/clipfarm/metadata/shorts_metadata_horizon.csv"
    text = metadata.read_text()
    assert text.count("Fireworks finale over the old town") >= 1
    metadata.write_text(text.replace("Fireworks finale over the old town", "Fireworks over the harbour"))

    assert embedded(run_demo(tmp_path / "demo")) == {"video": 0, "audio": 0, "text": 1}
