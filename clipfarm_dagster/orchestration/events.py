"""What Dagster is told of one ledger row."""

from typing import Any

import dagster as dg

from clipfarm_dagster.engine.outcomes import Outcome, OutcomeKind
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.recording import (
    DATA_VERSION_TAG,
    data_version_tags,
)
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.hashing import data_version


def raw_observation(names: CorpusNames, stage: Stage, video_id: str, etag: str) -> dg.AssetObservation:
    """The observation of one raw object's version."""
    return dg.AssetObservation(
        asset_key=names.raw(stage),
        partition=video_id,
        metadata={"etag": etag},
        tags={DATA_VERSION_TAG: etag},
    )


def failure_observation(asset: dg.AssetKey, row: LedgerRow) -> dg.AssetObservation:
    """What a failed partition's page says of it: why, how often it was tried, and what comes next."""
    if row.status == Status.FAIL:
        follows = f"tried again after {row.next_attempt_at}" if row.next_attempt_at else "tried again at once"
    else:
        follows = (
            "not tried again until its raw object, its metadata or the model changes, or"
            f" `clipfarm retry {row.video_id}`"
        )
    return dg.AssetObservation(
        asset_key=asset,
        partition=row.video_id,
        description=row.error,
        metadata={
            "status": str(row.status),
            "cause": row.error or "",
            "attempts": max(1, row.retry_count),
            "next": dg.MetadataValue.md(follows),
        },
    )


def outcome_events(
    names: CorpusNames,
    stage: Stage,
    outcome: Outcome,
    contract: Contract,
    store_url: str,
    asset: dg.AssetKey | None = None,
) -> list[dg.AssetMaterialization | dg.AssetObservation]:
    """What Dagster is told of an outcome: successes are materialized, what they were made of is observed, and
    so are failures, with their cause.

    `asset` is that of the stage's embeddings by default.
    """
    row = outcome.row
    if outcome.kind == OutcomeKind.FAILED:
        return [failure_observation(asset or names.embedding(stage), row)]
    if not outcome.succeeded:
        return []
    observation = raw_observation(names, stage, row.video_id, row.raw_etag or "")
    return [observation, embedding_materialization(names, stage, row, contract, store_url, outcome, asset)]


def embedding_materialization(
    names: CorpusNames,
    stage: Stage,
    row: LedgerRow,
    contract: Contract,
    store_url: str,
    outcome: Outcome | None = None,
    asset: dg.AssetKey | None = None,
) -> dg.AssetMaterialization:
    """The materialization that stands for one ledger row of success; `asset` as for `outcome_events`."""
    # a person's eyes first: Dagster shows the entries in this order
    metadata: dict[str, Any] = {}
    if outcome is not None and outcome.preview:
        metadata["preview"] = dg.MetadataValue.md(outcome.preview)
    if outcome is not None:
        metadata["outcome"] = str(outcome.kind)
    if row.note:
        metadata["note"] = row.note
    metadata |= {
        "key": dg.MetadataValue.path(f"{store_url}/{row.artifact_key}"),
        "dimension": row.embedding_dim or 0,
        "seconds": round(row.seconds or 0.0, 3),
        "model": f"{contract.model_name}@{contract.model_revision}",
        "contract": contract.id,
        "source_hash": row.source_hash or "",
    }
    return dg.AssetMaterialization(
        asset_key=asset or names.embedding(stage),
        partition=row.video_id,
        metadata=metadata,
        tags=data_version_tags(
            data_version(row.source_hash or "", contract.id),
            contract.preprocess_version,
            {names.raw(stage): row.raw_etag or ""},
        ),
    )


def materialized_versions(instance: dg.DagsterInstance, asset_key: dg.AssetKey) -> dict[str, str]:
    """Data version of each partition's latest materialization, read in one query."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        asset_key, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    return {partition: found[DATA_VERSION_TAG] for partition, found in tags.items()}
