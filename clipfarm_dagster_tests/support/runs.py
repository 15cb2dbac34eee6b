"""Runs in any state, as Dagster's daemon leaves them in the run storage."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from clipfarm_dagster.definitions import defs


def create_run(
    instance: dg.DagsterInstance, job_name: str, status: dg.DagsterRunStatus, **options: Any
) -> dg.DagsterRun:
    """A run of a job of ClipFarm; `options` are those of `DagsterInstance.create_run_for_job`."""
    location = RegisteredCodeLocationOrigin("clipfarm_dagster.definitions")
    repository = RemoteRepositoryOrigin(location, "__repository__")
    return instance.create_run_for_job(
        defs.resolve_job_def(job_name),
        status=status,
        remote_job_origin=RemoteJobOrigin(repository, job_name),
        **options,
    )


def run_status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    """The status of a run by now."""
    now = instance.get_run_by_id(run.run_id)
    assert now is not None
    return now.status
