"""One job a stage for runs by id list: what the sensor and `clipfarm sync` launch.

A delta is scattered, and Dagster's partition ranges are contiguous, so these runs have no partitions but a
list of ids in their config. They are jobs of one op, not asset jobs: Dagster refuses an asset step without a
partition once a partitioned parent was observed. What they record for the embedding assets is the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from clipfarm_dagster.orchestration.assets.embeddings import embed_videos
from clipfarm_dagster.orchestration.executor import locking_in_process_executor
from clipfarm_dagster.orchestration.progress import ProgressListener
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import check_video_id

STAGE_TAG = "clipfarm/stage"
"""Run tag that names the stage of an id-list run."""

ITEMS_TAG = "clipfarm/items"
"""Run tag with the number of ids of an id-list run."""


class IdList(dg.Config):
    """Which videos a run embeds."""

    video_ids: list[str] = Field(description="The `video_id`s to embed, in any order.")


def embedding_job_name(stage: Stage) -> str:
    """Name of a stage's job."""
    return f"{stage}_embedding_job"


def _embedding_op_name(stage: Stage) -> str:
    return f"embed_{stage}"


def _embedding_job(stage: Stage) -> dg.JobDefinition:
    @dg.op(name=_embedding_op_name(stage), tags={STAGE_TAG: str(stage)})
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


def id_list_run_config(stage: Stage, video_ids: Sequence[str]) -> dict[str, Any]:
    """Run config of an id-list run."""
    return {"ops": {_embedding_op_name(stage): {"config": {"video_ids": list(video_ids)}}}}


def id_list_run_tags(stage: Stage, video_ids: Sequence[str]) -> dict[str, str]:
    """Run tags of an id-list run."""
    return {STAGE_TAG: str(stage), ITEMS_TAG: str(len(video_ids))}


def id_list(stage: Stage, run_config: Mapping[str, Any]) -> list[str]:
    """The ids that a run config names for a stage; the inverse of `id_list_run_config`."""
    op = run_config.get("ops", {}).get(_embedding_op_name(stage)) or {}
    return list((op.get("config") or {}).get("video_ids") or [])
