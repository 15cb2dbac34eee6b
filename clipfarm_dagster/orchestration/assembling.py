"""Assembles the definitions of one corpus, and does nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.orchestration.assets.comparisons import comparison_assets
from clipfarm_dagster.orchestration.assets.deployment import deployment_asset
from clipfarm_dagster.orchestration.assets.embeddings import embedding_assets
from clipfarm_dagster.orchestration.assets.fusion import fused_asset
from clipfarm_dagster.orchestration.assets.manifests import manifest_assets
from clipfarm_dagster.orchestration.assets.raw import raw_assets
from clipfarm_dagster.orchestration.checks import asset_checks
from clipfarm_dagster.orchestration.jobs import (
    checks_job,
    checks_schedule,
    cut_over_job,
    embedding_jobs,
    erasure_job,
    manifests_job,
)
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.progress import silent
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.orchestration.sensors.embedding import embedding_sensor
from clipfarm_dagster.orchestration.sensors.manifests import manifest_sensor
from clipfarm_dagster.orchestration.vectors import vectors_io_manager
from clipfarm_dagster.settings import check_names


def build_definitions(
    *,
    key_prefix: str | Sequence[str] = (),
    group_prefix: str | None = None,
    partitions_name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    resource_overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """All definitions of one corpus. Nothing is read, connected to or loaded.

    They merge with others by `dagster.Definitions.merge`: with a project's own, and with those of another
    corpus, if one of the two has a `key_prefix`.

    No executor is set but on ClipFarm's own jobs, so that a project may have its own. Runs of Dagster's
    implicit asset job (Materialize and backfills in the UI) use the executor of the code location, whichever
    it is; a single process, as `clipfarm_dagster.definitions.defs` sets it, starts quickest.

    Args:
        key_prefix: first part or parts of every asset key, and of the names of jobs, sensors, ops and
            resources, where two underscores join it to the name.
        group_prefix: first part of the asset groups' names, joined by an underscore; by default the key
            prefix.
        partitions_name: name of the dynamic partitions; by default `video_id` after the key prefix.
        settings: settings of this corpus, which win over the environment, as in `{"home": "/data/cooking",
            "store_url": "s3://cooking", "text": {"model": "/models/minilm"}}`; a value may be a
            `dagster.EnvVar`. Two corpora need two homes, and two stores or two prefixes in one store.
        resource_overrides: resources that replace `object_store`, `stage_state`, `encoders`, `progress` or
            `vectors`, by these names.

    Raises:
        SettingsError: a prefix cannot be part of a name, or a setting or resource has an unknown name.
    """
    check_names(settings or {})
    names = CorpusNames.of(key_prefix, group_prefix, partitions_name)
    checks, manifests = asset_checks(names), manifests_job(names)
    check_all = checks_job(names, checks)
    jobs = [*embedding_jobs(names), cut_over_job(names)]
    return dg.Definitions(
        assets=[
            *raw_assets(names),
            *embedding_assets(names),
            *manifest_assets(names),
            fused_asset(names),
            *comparison_assets(names),
            deployment_asset(names),
        ],
        jobs=[*jobs, manifests, check_all, erasure_job(names)],
        asset_checks=checks,
        sensors=[embedding_sensor(names, jobs), manifest_sensor(names, manifests)],
        schedules=[checks_schedule(names, check_all)],
        resources=_resources(names, settings, resource_overrides or {}),
    )


def _resources(
    names: CorpusNames, settings: Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    resources: dict[str, Any] = {
        Resource.OBJECT_STORE: ObjectStoreResource(settings=settings),
        Resource.STAGE_STATE: StageStateResource(settings=settings),
        Resource.ENCODERS: EncodersResource(),
        Resource.PROGRESS: silent,
        Resource.VECTORS: vectors_io_manager(names),
    }
    if unknown := ", ".join(sorted(set(overrides) - set(resources))):
        raise SettingsError(f"unknown resources: {unknown}; ClipFarm has {', '.join(resources)}")
    return {names.resource(Resource(name)): value for name, value in {**resources, **overrides}.items()}
