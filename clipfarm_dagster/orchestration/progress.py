"""How a run tells whoever listens in its process how far it is."""

from __future__ import annotations

from typing import Protocol

from clipfarm_dagster.engine.engine import Progress
from clipfarm_dagster.stages import Stage


class ProgressListener(Protocol):
    """Is told of a stage's progress after each recorded batch, from the recording thread, and at the end."""

    def __call__(self, stage: Stage, progress: Progress) -> None: ...


def silent(stage: Stage, progress: Progress) -> None:
    """The listener of runs that nobody watches but in their log."""
