"""Runs the command in this process, as its entry point does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster_tests.support.command import Ended, run_command

__all__ = ["Ended"]


@pytest.fixture
def clipfarm(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ended]:
    """The command, over `corpus`, with a Dagster instance of its own."""
    monkeypatch.setenv("DAGSTER_HOME", str(ensure_instance(tmp_path / "dagster")))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run_command(monkeypatch, capsys, *arguments)
