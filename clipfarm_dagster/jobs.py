"""One job a stage, for runs by id list: what the sensor and `clipfarm sync` launch."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from clipfarm_dagster.assets.embeddings import embedding_asset_key
from clipfarm_dagster.stages import Stage

STAGE_TAG = "clipfarm/stage"
"""Run tag that names the stage of an id-list run."""


def embedding_job_name(stage: Stage) -> str:
    """Name of a stage's job."""
    return f"{stage}_embedding_job"


EMBEDDING_JOBS = [
    dg.define_asset_job(
        embedding_job_name(stage),
        selection=dg.AssetSelection.assets(embedding_asset_key(stage)),
        description=f"Embeds the {stage} of the video_ids in the run's config.",
        tags={STAGE_TAG: str(stage)},
    )
    for stage in Stage
]


def id_list_run_config(stage: Stage, video_ids: Sequence[str]) -> dict[str, Any]:
    """Run config of an id-list run."""
    return {"ops": {f"{stage}_embedding": {"config": {"video_ids": list(video_ids)}}}}


def id_list(stage: Stage, run_config: Mapping[str, Any]) -> list[str]:
    """The ids that a run config names for a stage; the inverse of `id_list_run_config`."""
    op = run_config.get("ops", {}).get(f"{stage}_embedding") or {}
    return list((op.get("config") or {}).get("video_ids") or [])
