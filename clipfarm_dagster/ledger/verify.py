"""Compares what a ledger claims with what the store holds, and makes work of what is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from clipfarm_dagster.errors import ObjectMissingError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import FAILED_STATUSES, LedgerRow, Status
from clipfarm_dagster.ledger.versions import forgotten
from clipfarm_dagster.store import ObjectStore, StoredObject
from clipfarm_dagster.store.keys import Keys, is_valid_video_id
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.npy import VectorProblem
from clipfarm_dagster.vectors.stored import checked_vector

_COLUMNS = (
    "video_id",
    "status",
    "processed_at",
    "artifact_key",
    "embedding_dim",
    "artifact_sha256",
    "vector_source_hash",
)


@dataclass(frozen=True)
class VectorFinding:
    """What `verify_vectors` found of one vector; `problem` is `None` where all is well."""

    video_id: str
    key: str
    """Empty for a `video_id` that is refused, which has no key."""
    processed_at: str | None
    """Of the row that the vector was compared with."""
    problem: str | None


def verify_vectors(ledger: Ledger, store: ObjectStore, keys: Keys) -> Iterator[VectorFinding]:
    """Read every vector that a row claims, and compare it with what the row says of it: of successes, and of
    later failures, whose vector may become the right one again. A refused `video_id` is a finding.

    Raises:
        StoreError: the store cannot be read.
        LedgerError: the ledger cannot be read.
    """
    by_key = {}
    for row in ledger.columns(_COLUMNS).to_pylist():
        if row["status"] != Status.SUCCESS and not row["vector_source_hash"]:
            continue
        if is_valid_video_id(row["video_id"]):
            by_key[keys.vector(ledger.stage, row["video_id"], row["artifact_key"])] = row
        else:
            yield VectorFinding(row["video_id"], "", row["processed_at"], "its video_id is refused")
    for key, answer in store.get_many(sorted(by_key)):
        row = by_key[key]
        yield VectorFinding(row["video_id"], key, row["processed_at"], _problem(row, answer))


def repair_vectors(ledger: Ledger, findings: Iterable[VectorFinding]) -> list[str]:
    """Make work of vectors that `verify_vectors` found lost or damaged; returns their ids.

    Left alone are videos that a run has embedded meanwhile, and those whose `video_id` is refused.

    Raises:
        LedgerError: the ledger cannot be written.
    """
    now = datetime.now(UTC)
    bad = {
        finding.video_id: finding.processed_at
        for finding in findings
        if finding.problem is not None and finding.key
    }
    rows = [row for row in ledger.rows(bad).values() if row.processed_at == bad[row.video_id]]
    return ledger.replace([(row, lost_row(row, now)) for row in rows])


def retry_failures(ledger: Ledger, video_ids: Collection[str] | None = None) -> list[str]:
    """Make failed, invalid and quarantined videos due now, their failures forgotten; returns their ids.

    Args:
        video_ids: only these; None for all.

    Raises:
        LedgerError: the ledger cannot be written.
    """
    now = datetime.now(UTC)
    failed = [
        row for row in ledger.with_status(FAILED_STATUSES) if video_ids is None or row.video_id in video_ids
    ]
    return ledger.replace([(row, _due_row(row, now)) for row in failed])


def lost_row(row: LedgerRow, now: datetime) -> LedgerRow:
    """The row of a success whose vector is not in the store any more."""
    return replace(forgotten(row), processed_at=timestamp(now))


def _due_row(row: LedgerRow, now: datetime) -> LedgerRow:
    """The row of a failure that is tried again now, as if it were the first time."""
    moment = timestamp(now)
    return replace(row, status=Status.FAIL, retry_count=0, next_attempt_at=moment, processed_at=moment)


def _problem(row: Mapping[str, Any], answer: StoredObject | ObjectMissingError) -> str | None:
    try:
        checked_vector(answer, row["embedding_dim"], row["artifact_sha256"])
    except VectorProblem as problem:
        return str(problem)
    return None
