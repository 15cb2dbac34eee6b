"""The names under which Dagster knows things: asset keys, run tags and metadata keys."""

import dagster as dg

from clipfarm_dagster.stages import Stage

BROKEN_TAG = "clipfarm/broken"
"""Run tag of a run that could not do its work as a whole, whatever its items: the error's name."""

FAILED_ITEMS_KEY = "failed"
"""Metadata key of the failure that ends a run with failed items; their number."""

CONTRACT_TAG = "clipfarm/contract"

ENVIRONMENT_TAG = "clipfarm/environment"
"""Run tags with the ids of what the run's vectors depend on, and of what they should not depend on."""


def embedding_asset_key(stage: Stage) -> dg.AssetKey:
    """Key of a stage's embedding asset."""
    return dg.AssetKey(f"{stage}_embedding")


def raw_asset_key(stage: Stage) -> dg.AssetKey:
    """Key of the raw asset that a stage reads."""
    return dg.AssetKey(f"raw_{stage}")


def manifest_asset_key(stage: Stage) -> dg.AssetKey:
    """Key of a modality's manifest asset."""
    return dg.AssetKey(f"{stage}_manifest")


FUSED_ASSET_KEY = dg.AssetKey("fused_manifest")

STAGE_TAG = "clipfarm/stage"
"""Run tag that names the stage of an id-list run."""

ITEMS_TAG = "clipfarm/items"
"""Run tag with the number of ids of an id-list run."""


def embedding_job_name(stage: Stage) -> str:
    """Name of a stage's job."""
    return f"{stage}_embedding_job"
