"""Which videos runs have in hand now, as Dagster's run storage tells it: one query, whatever their number."""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from clipfarm_dagster.orchestration.assets.embeddings import embedding_asset_key
from clipfarm_dagster.orchestration.jobs import id_list
from clipfarm_dagster.orchestration.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.orchestration.runs.locks import freed_runs, has_lock, lock_folder
from clipfarm_dagster.stages import Stage

UNFINISHED_RUN_STATUSES = tuple(
    status
    for status in dg.DagsterRunStatus
    if status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
)
"""Statuses of the runs that have yet to end: created, queued, starting, at work, or being cancelled."""


def videos_in_flight(instance: dg.DagsterInstance) -> dict[Stage, set[str]]:
    """Ids by stage that unfinished runs have: by id list, partition or partition range."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED_RUN_STATUSES))
    found: dict[Stage, set[str]] = {stage: set() for stage in Stage}
    partitions: Sequence[str] | None = None
    for run in runs:
        for stage in Stage:
            found[stage].update(id_list(stage, run.run_config))
            if run.asset_selection is None or embedding_asset_key(stage) not in run.asset_selection:
                continue
            if partition := run.tags.get(PARTITION_NAME_TAG):
                found[stage].add(partition)
            start, end = (
                run.tags.get(ASSET_PARTITION_RANGE_START_TAG),
                run.tags.get(ASSET_PARTITION_RANGE_END_TAG),
            )
            if start and end:
                if partitions is None:
                    partitions = instance.get_dynamic_partitions(VIDEO_PARTITIONS.name or "")
                found[stage].update(_range(partitions, start, end))
    return found


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark as failed the runs that nobody will end, so that their videos are not in flight for ever; returns
    their ids.

    These are runs whose process has freed their lock without ending them, and runs that were created or
    launched and have not started for longer than the instance's `run_monitoring.start_timeout_seconds`. A
    queued run waits for the daemon, however long. A started run without a lock, of another executor or an
    earlier version, is judged by its process id.

    Dagster does so itself only where its daemon runs, and only for processes whose parent lives on: not after
    a restart of the machine or of `clipfarm dev`, nor for `clipfarm sync`. Only an instance in SQLite files
    is looked at, since its runs are all of this machine.
    """
    if lock_folder(instance) is None:
        return []
    dead = []
    for run_id in freed_runs(instance):
        run = instance.get_run_by_id(run_id)  # asked for now: it may have ended before its lock was freed
        if run is not None and run.status in UNFINISHED_RUN_STATUSES:
            instance.report_run_failed(run, "The run's process is gone: it was killed.")
            dead.append(run_id)
    for record in instance.get_run_records(dg.RunsFilter(statuses=_JUDGED)):
        if cause := _cause_of_death(instance, record):
            instance.report_run_failed(record.dagster_run, cause)
            dead.append(record.dagster_run.run_id)
    return dead


_NOT_YET_STARTED = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)
_JUDGED = (*_NOT_YET_STARTED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


def _cause_of_death(instance: dg.DagsterInstance, record: dg.RunRecord) -> str | None:
    """Why nobody will end a run; None where somebody may."""
    run = record.dagster_run
    if has_lock(instance, run.run_id):
        return None
    if run.status in _NOT_YET_STARTED:
        seconds = instance.run_monitoring_start_timeout_seconds
        if datetime.now(UTC) - record.update_timestamp <= timedelta(seconds=seconds):
            return None
        return f"The run has not started within {seconds} seconds: whoever launched it is gone."
    process = _process(instance, run.run_id)
    if process is None or _is_running(*process):
        return None
    return f"The run's process {process[0]} is gone: it was killed."


def _process(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """The process that a run last told to be in, and when it told so; None where it has not."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    for event in reversed(events):
        metadata = event.get_dagster_event().engine_event_data.metadata
        if "pid" in metadata:
            return int(str(metadata["pid"].value)), event.timestamp
    return None


def _is_running(pid: int, seen: float) -> bool:
    """Whether the process `pid` is the one that there was at the time `seen`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    statistics = Path(f"/proc/{pid}/stat")
    if not statistics.exists():  # no Linux: a number used again may keep a dead run alive
        return True
    state, *rest = statistics.read_text().rpartition(")")[2].split()
    began = float(rest[18]) / os.sysconf("SC_CLK_TCK")  # seconds after the machine's start; see proc(5)
    return state != "Z" and began <= seen - (time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)) + 1


def _range(partitions: Sequence[str], start: str, end: str) -> Sequence[str]:
    """The partitions from `start` to `end`; the whole, to be safe, where one of them has been deleted."""
    try:
        return partitions[partitions.index(start) : partitions.index(end) + 1]
    except ValueError:
        return partitions
