"""Runs by a list of ids: their config, and the ids that a config names."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from clipfarm_dagster.orchestration.dagster_internals import PRIORITY_TAG
from clipfarm_dagster.orchestration.names import GENERATION_TAG, ITEMS_TAG, STAGE_TAG, CorpusNames
from clipfarm_dagster.stages import Stage

_CANDIDATE_PRIORITY = "-1"
"""Of runs that fill a candidate: whatever else is queued goes first."""


class IdList(dg.Config):
    """Which videos a run embeds."""

    video_ids: list[str] = Field(description="The `video_id`s to embed, in any order.")
    force: bool = Field(default=False, description="Embed them again also where their vector is up to date.")


class CandidateIdList(IdList):
    """Which videos a run embeds, and for which generation."""

    generation: str = Field(
        description="Id of the contract that the settings ask for; the run does nothing for any other."
    )


def id_list_run_config(
    names: CorpusNames,
    stage: Stage,
    video_ids: Sequence[str],
    generation: str | None = None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Run config of an id-list run, of the generation that serves or of a candidate."""
    config: dict[str, Any] = {"video_ids": list(video_ids)} | ({"force": True} if force else {})
    if generation is None:
        return {"ops": {names.embedding_op(stage): {"config": config}}}
    return {"ops": {names.candidate_op(stage): {"config": {**config, "generation": generation}}}}


def id_list_run_tags(
    names: CorpusNames, stage: Stage, video_ids: Sequence[str], generation: str | None = None
) -> dict[str, str]:
    """Run tags of an id-list run."""
    tags = {**names.run_tags(), STAGE_TAG: str(stage), ITEMS_TAG: str(len(video_ids))}
    if generation is not None:
        tags |= {GENERATION_TAG: generation, PRIORITY_TAG: _CANDIDATE_PRIORITY}
    return tags


def id_list(names: CorpusNames, stage: Stage, run_config: Mapping[str, Any]) -> list[str]:
    """The ids that a run config names for a stage's embeddings; the inverse of `id_list_run_config`."""
    return list(_config(names.embedding_op(stage), run_config).get("video_ids") or [])


def candidate_id_list(
    names: CorpusNames, stage: Stage, run_config: Mapping[str, Any]
) -> tuple[str, list[str]] | None:
    """The generation and the ids that a run config names for a stage's candidate, if it does."""
    config = _config(names.candidate_op(stage), run_config)
    ids = config.get("video_ids")
    return (str(config.get("generation")), list(ids)) if ids else None


class ErasureList(dg.Config):
    """Which videos a run erases."""

    video_ids: list[str] = Field(description="The `video_id`s to erase, in any order.")
    raw: bool = Field(default=False, description="Whether their raw objects go too.")


def erasure_list(names: CorpusNames, run_config: Mapping[str, Any]) -> list[str]:
    """The ids that a run config names to be erased."""
    return list(_config(names.erasure_op, run_config).get("video_ids") or [])


def _config(op: str, run_config: Mapping[str, Any]) -> Mapping[str, Any]:
    return (run_config.get("ops", {}).get(op) or {}).get("config") or {}
