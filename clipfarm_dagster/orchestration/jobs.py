"""One job a stage for runs by id list: what the sensor and `clipfarm sync` launch.

A delta is scattered, and Dagster's partition ranges are contiguous, so these runs have no partitions but a
list of ids in their config. They are jobs of one op, not asset jobs: Dagster refuses an asset step without a
partition once a partitioned parent was observed. What they record for the embedding assets is the same.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from clipfarm_dagster.orchestration.checks import ASSET_CHECKS
from clipfarm_dagster.orchestration.executor import locking_in_process_executor
from clipfarm_dagster.orchestration.names import (
    FUSED_ASSET_KEY,
    STAGE_TAG,
    embedding_job_name,
    manifest_asset_key,
)
from clipfarm_dagster.orchestration.progress import ProgressListener
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.orchestration.runs.embed import embed_videos
from clipfarm_dagster.orchestration.runs.id_list import IdList, embedding_op_name
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import check_video_id


def _embedding_job(stage: Stage) -> dg.JobDefinition:
    @dg.op(name=embedding_op_name(stage), tags={STAGE_TAG: str(stage)})
    def embed(
        context: dg.OpExecutionContext,
        config: IdList,
        object_store: ObjectStoreResource,
        stage_state: StageStateResource,
        encoders: EncodersResource,
        progress: dg.ResourceParam[ProgressListener],
    ) -> None:
        video_ids = [check_video_id(video_id) for video_id in config.video_ids]
        embed_videos(context, stage, video_ids, stage_state.corpus(object_store), encoders, progress)

    @dg.job(
        name=embedding_job_name(stage),
        description=f"Embeds the {stage} of the video_ids in the run's config.",
        tags={STAGE_TAG: str(stage)},
        executor_def=locking_in_process_executor,
    )
    def job() -> None:
        embed()

    return job


EMBEDDING_JOBS = [_embedding_job(stage) for stage in Stage]

CHECKS_JOB = dg.define_asset_job(
    "checks_job",
    selection=dg.AssetSelection.checks(*(key for checks in ASSET_CHECKS for key in checks.check_keys)),
    description="Checks all embeddings by what the ledgers tell of them, and each model by its canary.",
)


MANIFESTS_JOB = dg.define_asset_job(
    "manifests_job",
    selection=dg.AssetSelection.assets(FUSED_ASSET_KEY, *map(manifest_asset_key, Stage)),
    description="Brings the manifests up to date with the ledgers, and then the fused vectors.",
)


def manifests_run_config(strategies: Sequence[str]) -> dict[str, Any]:
    """Run config of a run of `MANIFESTS_JOB`."""
    return {"ops": {FUSED_ASSET_KEY.to_python_identifier(): {"config": {"strategies": list(strategies)}}}}
