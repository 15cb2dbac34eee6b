"""Runs by a list of ids: their config, and the ids that a config names."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from clipfarm_dagster.orchestration.names import ITEMS_TAG, STAGE_TAG, CorpusNames
from clipfarm_dagster.stages import Stage


class IdList(dg.Config):
    """Which videos a run embeds."""

    video_ids: list[str] = Field(description="The `video_id`s to embed, in any order.")


def id_list_run_config(names: CorpusNames, stage: Stage, video_ids: Sequence[str]) -> dict[str, Any]:
    """Run config of an id-list run."""
    return {"ops": {names.embedding_op(stage): {"config": {"video_ids": list(video_ids)}}}}


def id_list_run_tags(names: CorpusNames, stage: Stage, video_ids: Sequence[str]) -> dict[str, str]:
    """Run tags of an id-list run."""
    return {**names.run_tags(), STAGE_TAG: str(stage), ITEMS_TAG: str(len(video_ids))}


def id_list(names: CorpusNames, stage: Stage, run_config: Mapping[str, Any]) -> list[str]:
    """The ids that a run config names for a stage; the inverse of `id_list_run_config`."""
    op = run_config.get("ops", {}).get(names.embedding_op(stage)) or {}
    return list((op.get("config") or {}).get("video_ids") or [])
