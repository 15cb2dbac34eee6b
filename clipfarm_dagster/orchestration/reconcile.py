"""Brings Dagster's view of the embeddings in line with the ledgers, which are the truth.

A run records an item in the ledger, and then tells Dagster. A crash between the two leaves a success that
Dagster does not show, or shows in an older version. Nothing is embedded here, and no ledger is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.orchestration.events import (
    embedding_materialization,
    materialized_versions,
    raw_observation,
)
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.recording import report_events
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.hashing import data_version

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("video_id", "status", "source_hash", "contract_id")
_AT_A_TIME = 5_000


@dataclass(frozen=True)
class Reconciled:
    """What `reconcile` found of one stage, and mended."""

    successes: int
    """Successes of the ledger."""
    mended: int
    """Those that Dagster did not show as materialized, or in another version, and now does."""
    unlabelled: int
    """Those of a contract that the ledger does not know, such as the original pipeline's; they are left
    alone, for they are work in any case."""
    unknown: int
    """Partitions that Dagster shows as materialized and the ledger has no row of; they are left alone."""


def unreported_successes(rows: pa.Table, versions: Mapping[str, str]) -> list[str]:
    """Successes whose version is not the one that Dagster knows, in order.

    `rows` has the columns `video_id`, `status`, `source_hash` and `contract_id`; `versions` are Dagster's
    data versions by partition.
    """
    columns = [rows[name].to_pylist() for name in _COLUMNS]
    return sorted(
        video_id
        for video_id, status, source_hash, contract_id in zip(*columns, strict=True)
        if status == Status.SUCCESS
        and versions.get(video_id) != data_version(source_hash or "", contract_id or "")
    )


def reconcile(
    corpus: Corpus,
    instance: dg.DagsterInstance,
    names: CorpusNames,
    stage: Stage,
    *,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> Reconciled:
    """Tell Dagster of the successes of a stage that it does not know, in the generation that serves.

    Args:
        video_ids: these alone; by default all.
        limit: at most so many.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    import pyarrow.compute as pc

    versions = materialized_versions(instance, names.embedding(stage))
    mended = unlabelled = 0
    with corpus.stage(stage) as opened:
        ledger, current = opened.ledger, opened.contract
        contracts: dict[str | None, Contract | None] = {current.id: current}
        rows = ledger.columns(_COLUMNS)
        ids = unreported_successes(rows, versions)
        if video_ids is not None:
            ids = sorted(set(ids).intersection(video_ids))
        ids = ids[:limit]
        for start in range(0, len(ids), _AT_A_TIME):
            # a run may have recorded a failure since
            found = ledger.rows(ids[start : start + _AT_A_TIME]).values()
            rows_now = [row for row in found if row.status == Status.SUCCESS]
            for contract_id in {row.contract_id for row in rows_now} - contracts.keys():
                contracts[contract_id] = ledger.contract(contract_id or "")
            known = [(row, contract) for row in rows_now if (contract := contracts[row.contract_id])]
            _tell(corpus, instance, names, stage, known)
            mended += len(known)
            unlabelled += len(rows_now) - len(known)
    successes = pc.sum(pc.equal(rows["status"], str(Status.SUCCESS))).as_py() or 0
    unknown = len(versions.keys() - set(rows["video_id"].to_pylist()))
    return Reconciled(successes, mended, unlabelled, unknown)


def _tell(
    corpus: Corpus,
    instance: dg.DagsterInstance,
    names: CorpusNames,
    stage: Stage,
    rows: Sequence[tuple[LedgerRow, Contract]],
) -> None:
    instance.add_dynamic_partitions(names.partitions_name, [row.video_id for row, _ in rows])
    events: list[dg.AssetMaterialization | dg.AssetObservation] = []
    for row, contract in rows:
        events.append(raw_observation(names, stage, row.video_id, row.raw_etag or ""))
        events.append(embedding_materialization(names, stage, row, contract, corpus.store.url))
    report_events(instance, events)
