"""What orchestration takes from Dagster that is not public, to look at when Dagster is upgraded.

Recording events, erasing, the executor, the event log and the web server reach in at more places, each in its
module.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
)

from clipfarm_dagster.instance import LOCATION_NAME

__all__ = [
    "ASSET_PARTITION_RANGE_END_TAG",
    "ASSET_PARTITION_RANGE_START_TAG",
    "PARTITION_NAME_TAG",
    "PRIORITY_TAG",
    "UnresolvedAssetJobDefinition",
    "execute_here",
    "keeps_runs_in_sqlite",
    "max_concurrent_runs",
]


def execute_here(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    *,
    run_id: str,
    run_config: Mapping[str, Any],
    tags: Mapping[str, str],
) -> dg.JobExecutionResult:
    """Run a job in this process, as `JobDefinition.execute_in_process` does, but as a run of ClipFarm's code
    location: the UI shows it on its timeline and its job's page, and can execute it again."""
    from dagster._core.definitions.job_base import InMemoryJob
    from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
    from dagster._core.execution.api import execute_run
    from dagster._core.remote_origin import (
        RegisteredCodeLocationOrigin,
        RemoteJobOrigin,
        RemoteRepositoryOrigin,
    )

    repository = RemoteRepositoryOrigin(
        RegisteredCodeLocationOrigin(LOCATION_NAME), SINGLETON_REPOSITORY_NAME
    )
    run = instance.create_run_for_job(
        job,
        run_id=run_id,
        run_config=run_config,
        tags={**job.run_tags, **tags},
        remote_job_origin=RemoteJobOrigin(repository, job.name),
    )
    return execute_run(InMemoryJob(job), run, instance, raise_on_error=False)


def keeps_runs_in_sqlite(instance: dg.DagsterInstance) -> bool:
    """Whether an instance keeps its runs in SQLite files, so that all of them are of this machine."""
    from dagster._core.storage.runs import SqliteRunStorage  # takes as long to import as most of Dagster

    return isinstance(instance.run_storage, SqliteRunStorage)


def max_concurrent_runs(instance: dg.DagsterInstance) -> int | None:
    """How many runs of an instance are at work at the same time; None where there is no limit."""
    queue = instance.get_concurrency_config().run_queue_config
    return None if queue is None or queue.max_concurrent_runs < 0 else queue.max_concurrent_runs
