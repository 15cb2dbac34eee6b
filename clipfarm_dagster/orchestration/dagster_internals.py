"""What orchestration takes from Dagster that is not public, to look at when Dagster is upgraded.

Recording events, erasing, the executor, the event log and the web server reach in at more places, each in its
module.
"""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
)

__all__ = [
    "ASSET_PARTITION_RANGE_END_TAG",
    "ASSET_PARTITION_RANGE_START_TAG",
    "PARTITION_NAME_TAG",
    "PRIORITY_TAG",
    "UnresolvedAssetJobDefinition",
    "keeps_runs_in_sqlite",
    "max_concurrent_runs",
]


def keeps_runs_in_sqlite(instance: dg.DagsterInstance) -> bool:
    """Whether an instance keeps its runs in SQLite files, so that all of them are of this machine."""
    from dagster._core.storage.runs import SqliteRunStorage  # takes as long to import as most of Dagster

    return isinstance(instance.run_storage, SqliteRunStorage)


def max_concurrent_runs(instance: dg.DagsterInstance) -> int | None:
    """How many runs of an instance are at work at the same time; None where there is no limit."""
    queue = instance.get_concurrency_config().run_queue_config
    return None if queue is None or queue.max_concurrent_runs < 0 else queue.max_concurrent_runs
