"""Runs that could not do their work at all, such as for a missing model: when to launch the next one.

Failed items have their own waits in the ledger. A run that fails as a whole records nothing there, so without
this the sensor would launch it again at every tick.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import dagster as dg

from clipfarm_dagster.orchestration.names import BROKEN_TAG
from clipfarm_dagster.stages import Stage

FIRST_WAIT = timedelta(minutes=1)
MAX_WAIT = timedelta(hours=1)
_LOOKED_AT = 50


def launch_again_at(
    instance: dg.DagsterInstance, job_name: str, tags: Mapping[str, str] | None = None
) -> datetime | None:
    """When a job may be launched again; `None` where its latest run did its work, or was killed at it.

    Args:
        tags: these runs of it alone.
    """
    records = instance.get_run_records(dg.RunsFilter(job_name=job_name, tags=tags), limit=_LOOKED_AT)
    ended = [record for record in records if record.end_time is not None]
    broken = list(takewhile(lambda record: BROKEN_TAG in record.dagster_run.tags, ended))
    if not broken:
        return None
    # the runs of one tick break together, and count as one
    launches = {record.dagster_run.tags.get("dagster/tick", record.dagster_run.run_id) for record in broken}
    last = max(record.end_time or 0.0 for record in broken)
    return datetime.fromtimestamp(last, UTC) + wait_after(len(launches))


def wait_after(launches: int) -> timedelta:
    """How long to wait after so many broken launches in a row: doubles with each, at most an hour."""
    doubled: timedelta = FIRST_WAIT * 2 ** min(launches - 1, 20)
    return min(doubled, MAX_WAIT)


def waiting_stages(
    instance: dg.DagsterInstance, jobs: Mapping[Stage, str], now: datetime
) -> dict[Stage, datetime]:
    """The stages whose latest runs, of the given jobs, were broken, with the time at which they may be
    launched again."""
    times = {stage: launch_again_at(instance, job_name) for stage, job_name in jobs.items()}
    return {stage: again for stage, again in times.items() if again is not None and again > now}
