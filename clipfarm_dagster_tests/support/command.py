"""Runs the command in this process, as its entry point does."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from clipfarm_dagster.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output, where nothing else may be."""
        return json.loads(self.output)


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> Ended:
    """`clipfarm` with some arguments."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["clipfarm", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return Ended(int(ended.value.code or 0), captured.out, captured.err)
