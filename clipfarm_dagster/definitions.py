"""Assembles the definitions, and does nothing else."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from clipfarm_dagster.orchestration.assets.embeddings import EMBEDDING_ASSETS
from clipfarm_dagster.orchestration.assets.fusion import FUSED_ASSET
from clipfarm_dagster.orchestration.assets.manifests import MANIFEST_ASSETS
from clipfarm_dagster.orchestration.assets.raw import RAW_ASSETS
from clipfarm_dagster.orchestration.checks import ASSET_CHECKS
from clipfarm_dagster.orchestration.executor import locking_in_process_executor
from clipfarm_dagster.orchestration.jobs import CHECKS_JOB, EMBEDDING_JOBS, MANIFESTS_JOB
from clipfarm_dagster.orchestration.progress import silent
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.orchestration.sensors.embedding import embedding_sensor
from clipfarm_dagster.orchestration.sensors.manifests import manifest_sensor


def build_definitions(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions; `resource_overrides` replace resources by name (`object_store`, `stage_state`,
    `encoders`, `progress`, `io_manager`). Nothing is read, connected to or loaded."""
    return dg.Definitions(
        assets=[*RAW_ASSETS, *EMBEDDING_ASSETS, *MANIFEST_ASSETS, FUSED_ASSET],
        jobs=[*EMBEDDING_JOBS, MANIFESTS_JOB, CHECKS_JOB],
        asset_checks=ASSET_CHECKS,
        sensors=[embedding_sensor, manifest_sensor],
        resources={
            "object_store": ObjectStoreResource(),
            "stage_state": StageStateResource(),
            "encoders": EncodersResource(),
            "progress": silent,
            # nothing is handed on by it; Dagster's own default writes to a folder that a run may name
            "io_manager": dg.mem_io_manager,
            **(resource_overrides or {}),
        },
        # a run is one step with worker processes of its own; a second process for the step only costs time
        executor=locking_in_process_executor,
    )


defs = build_definitions()
