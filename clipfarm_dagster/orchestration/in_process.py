"""Runs of Dagster jobs in the process of a command."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import dagster as dg
import typer

from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.orchestration.dagster_internals import execute_here
from clipfarm_dagster.orchestration.full_disk import QuietOnFullDisk
from clipfarm_dagster.orchestration.interrupts import interrupts_blocked
from clipfarm_dagster.orchestration.runs.locks import lock_run, unlock_run


def run_in_process(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    run_config: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
) -> dg.JobExecutionResult:
    """Run a job in this process, its log kept off the terminal unless that is asked for (`clipfarm -v`);
    Dagster's UI shows it.

    Failed items of a run are in the ledger, and are no concern here.

    Raises:
        ClipFarmError: the run failed as a whole.
        typer.Abort: somebody interrupted it.
    """
    run_id = str(uuid.uuid4())
    lock_run(instance, run_id)
    quiet: Any = QuietOnFullDisk(sys.stderr)
    with _log_watchers_not_interrupted(instance), redirect_stderr(quiet):
        result = execute_here(
            job, instance, run_id=run_id, run_config=quiet_run_config(run_config), tags=tags or {}
        )
    unlock_run(instance, run_id)  # not where something was raised: the run may not have ended
    check_result(result)
    return result


@contextmanager
def _log_watchers_not_interrupted(instance: dg.DagsterInstance) -> Iterator[None]:
    """Keep Ctrl-C from the programs that Dagster starts to show what a run prints. They would each answer it
    with a traceback; Dagster ends them itself, with the run."""
    manager = instance.compute_log_manager
    capture_logs = manager.capture_logs

    @contextmanager
    def capture(log_key: Sequence[str]) -> Iterator[Any]:
        captured = capture_logs(log_key)
        with interrupts_blocked():
            context = captured.__enter__()
        try:
            yield context
        finally:
            captured.__exit__(None, None, None)

    manager.capture_logs = capture  # type: ignore[method-assign]
    try:
        yield
    finally:
        del manager.capture_logs


def quiet_run_config(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """A run config whose run keeps its log off the terminal, unless ClipFarm's log is shown there."""
    level = "INFO" if logging.getLogger("clipfarm_dagster").isEnabledFor(logging.INFO) else "CRITICAL"
    return {**run_config, "loggers": {"console": {"config": {"log_level": level}}}}


def failed_items(result: dg.JobExecutionResult) -> list[dict[str, str]]:
    """The first of the items that failed in a run: `video_id`, `status` and `error` of each."""
    from clipfarm_dagster.orchestration.names import FAILURES_KEY

    found: list[dict[str, str]] = []
    for event in result.all_node_events:
        if event.is_step_failure and (data := event.step_failure_data.user_failure_data) is not None:
            table = data.metadata.get(FAILURES_KEY)
            if isinstance(table, dg.TableMetadataValue):
                found += [{name: str(value) for name, value in row.data.items()} for row in table.records]
    return found


def check_result(result: dg.JobExecutionResult) -> None:
    """Raise unless the run did its work; failed items are in the ledger and are no concern here.

    Raises:
        ClipFarmError: the run failed as a whole.
        typer.Abort: somebody interrupted it.
    """
    from clipfarm_dagster.orchestration.names import FAILED_ITEMS_KEY

    if result.success:
        return
    for event in result.all_node_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and FAILED_ITEMS_KEY in data.user_failure_data.metadata:
                return
            cause = data.error
            while cause is not None and cause.cause is not None:
                cause = cause.cause
            if cause is not None and cause.cls_name == dg.DagsterExecutionInterruptedError.__name__:
                raise typer.Abort
            message = cause.message.strip() if cause is not None else "the step failed without an error"
            raise ClipFarmError(f"run {result.run_id} failed: {message}")
    raise ClipFarmError(f"run {result.run_id} failed; `clipfarm dev` shows its log")
