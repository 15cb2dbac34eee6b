"""Which videos runs have in hand now, as Dagster's run storage tells it: one query, whatever their number."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from clipfarm_dagster.assets.embeddings import embedding_asset_key
from clipfarm_dagster.jobs import id_list
from clipfarm_dagster.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.stages import Stage


def videos_in_flight(instance: dg.DagsterInstance) -> dict[Stage, set[str]]:
    """Ids by stage that queued, starting or running runs have: by id list, partition or partition range."""
    runs = instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES))
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
    """Mark as failed the started runs whose process was killed, so that their videos are not in flight for
    ever; returns their ids.

    Dagster does so itself only for processes whose parent lives on: not after a restart of the machine or of
    `clipfarm dev`, nor for `clipfarm sync`. Only an instance in SQLite files is looked at, since its runs are
    all of this machine.
    """
    if not isinstance(instance.run_storage, SqliteRunStorage):
        return []
    dead = []
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    for run in instance.get_runs(started):
        process = _process(instance, run.run_id)
        if process is not None and not _is_running(*process):
            instance.report_run_failed(run, f"The run's process {process[0]} is gone: it was killed.")
            dead.append(run.run_id)
    return dead


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
