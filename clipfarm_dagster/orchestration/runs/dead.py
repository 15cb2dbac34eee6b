"""Ends runs whose process is gone."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.in_flight import UNFINISHED_RUN_STATUSES
from clipfarm_dagster.orchestration.runs.locks import freed_runs, has_lock, lock_folder


def fail_dead_runs(instance: dg.DagsterInstance, names: CorpusNames) -> list[str]:
    """Mark as failed the runs that nobody will end, so that their videos are not in flight for ever; returns
    their ids.

    These are runs whose process has freed their lock without ending them; and, of this corpus alone, runs
    that were created or launched and have not started for longer than the instance's
    `run_monitoring.start_timeout_seconds`. A queued run waits for the daemon, however long. A started run
    without a lock, of another executor or an earlier version, is judged by its process id.

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
        if not names.is_run(record.dagster_run):
            continue
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
