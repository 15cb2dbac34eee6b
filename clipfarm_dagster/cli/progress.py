"""Progress bars of a run in this process."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from clipfarm_dagster.engine.progress import Progress, rate_told
from clipfarm_dagster.ledger.schema import FAILED_STATUSES
from clipfarm_dagster.stages import Stage


class Listener:
    """Adds up what the runs of a stage report, and moves the stage's bar."""

    def __init__(self, bars: Bars, suffix: str = "") -> None:
        """`suffix` follows a stage's name before its bar."""
        self.finished: dict[Stage, Counter[str]] = {stage: Counter() for stage in Stage}
        """Items by ledger status, and `model_calls`."""
        self._bars, self._suffix = bars, suffix
        self._tasks: dict[Stage, Any] = {}
        self._totals: Counter[Stage] = Counter()
        self._runs: dict[Progress, Counter[str]] = {}

    def start(self, stage: Stage, items: int) -> None:
        """Show a bar for `items` more of a stage, or fewer."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(f"{stage}{self._suffix}", total=0, failed=0, rate="")
        self._totals[stage] += items
        self._bars.update(self._tasks[stage], total=self._totals[stage])

    def __call__(self, stage: Stage, progress: Progress) -> None:
        """Take up what a run of a stage has done so far."""
        before = self._runs.get(progress, Counter())
        now = Counter({**progress.outcomes, "model_calls": progress.model_calls})
        self._runs[progress] = now
        counts = self.finished[stage]
        counts.update(now - before)
        done = sum(counts.values()) - counts["model_calls"]
        failed = sum(counts[str(status)] for status in FAILED_STATUSES)
        rate = rate_told(progress.done / progress.elapsed) if progress.done else ""
        if progress.loading:
            rate = "loading the model"
        self._bars.update(self._tasks[stage], completed=done, failed=failed, rate=rate)


def progress_bars(quiet: bool) -> Bars:
    return Bars(
        TextColumn("{task.description:5}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
