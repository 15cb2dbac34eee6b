"""From what happened to one item to its ledger row. Pure functions; engine and planner write the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors import hashing
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.npy import vector_sha256

if TYPE_CHECKING:
    import numpy as np

MAX_RETRY_WAIT = timedelta(days=1)


@dataclass(frozen=True)
class WorkItem:
    """One video that a stage shall look at."""

    video_id: str
    metadata: Mapping[str, str]
    """The latest row of the metadata CSV."""
    metadata_hash: str
    captured_at: str
    previous: LedgerRow | None = None


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed item is tried again, and when it is left alone."""

    max_attempts: int
    wait_seconds: float

    def wait(self, failures: int) -> timedelta:
        """Time to wait after the `failures`-th failure in a row: doubles with each, at most a day."""
        seconds = self.wait_seconds * 2.0 ** min(failures - 1, 60)
        return min(timedelta(seconds=min(seconds, MAX_RETRY_WAIT.total_seconds())), MAX_RETRY_WAIT)


def vector_stands(
    row: LedgerRow | None, contract_id: str | None, metadata_hash: str | None, raw_etag: str | None
) -> bool:
    """Whether the stored vector of a row is the one that input and contract ask for: what planning, which has
    the rule in SQL, calls done or restored (see `planning.delta`).

    Args:
        row: what the ledger holds; None if it has no row.
        raw_etag: of the raw object; None if there is none, in which case the vector of a success stays right.
    """
    if row is None or row.vector_source_hash is None or contract_id is None or metadata_hash is None:
        return False
    if row.vector_contract_id != contract_id:
        return False
    if raw_etag is None:
        return row.status == Status.SUCCESS and row.metadata_hash == metadata_hash
    return row.vector_source_hash == hashing.source_hash(metadata_hash, raw_etag)


def same_bytes_stand(row: LedgerRow | None, contract_id: str, metadata_hash: str, raw_sha256: str) -> bool:
    """Whether the stored vector was made from these very bytes, whatever the ETag of their object is now."""
    return (
        row is not None
        and row.vector_source_hash is not None
        and row.vector_contract_id == contract_id
        and row.vector_metadata_hash == metadata_hash
        and row.vector_raw_sha256 == raw_sha256
    )


def _attempt(item: WorkItem, contract: Contract, now: datetime) -> LedgerRow:
    """The previous row with the columns of this attempt; what tells of the stored vector stays."""
    return replace(
        item.previous or LedgerRow(video_id=item.video_id, row_version=0),
        processed_at=timestamp(now),
        captured_at=item.captured_at,
        metadata_hash=item.metadata_hash,
        contract_id=contract.id,
        model_name=contract.model_name,
        model_revision=contract.model_revision,
        preprocess_version=contract.preprocess_version,
        error=None,
        next_attempt_at=None,
    )


def standing_row(
    item: WorkItem, contract: Contract, now: datetime, *, source_hash: str, raw_etag: str
) -> LedgerRow:
    """The row of an item whose stored vector is already the right one."""
    return replace(
        _attempt(item, contract, now),
        status=Status.SUCCESS,
        source_hash=source_hash,
        raw_etag=raw_etag,
        retry_count=0,
        vector_source_hash=source_hash,
        vector_contract_id=contract.id,
    )


def success_row(
    item: WorkItem,
    contract: Contract,
    now: datetime,
    *,
    source_hash: str,
    raw_etag: str,
    raw_sha256: str | None,
    artifact_key: str,
    vector: np.ndarray[Any, Any],
    seconds: float | None,
    note: str | None,
) -> LedgerRow:
    """The row of an item whose new vector is in the store; `raw_sha256` and `seconds` are null of one that
    was made elsewhere."""
    import numpy as np

    return replace(
        standing_row(item, contract, now, source_hash=source_hash, raw_etag=raw_etag),
        artifact_key=artifact_key,
        artifact_sha256=vector_sha256(vector),
        embedding_dim=vector.size,
        vector_norm=float(np.linalg.norm(vector.astype(np.float64))),
        vector_metadata_hash=item.metadata_hash,
        vector_raw_sha256=raw_sha256,
        seconds=seconds,
        note=note,
    )


def missing_row(item: WorkItem, contract: Contract, now: datetime, *, raw_key: str) -> LedgerRow:
    """The row of an item that has work to do but no raw object."""
    return replace(
        _attempt(item, contract, now),
        status=Status.MISSING_RAW_OBJECT,
        source_hash=None,
        raw_etag=None,
        retry_count=0,
        error=f"there is no object {raw_key!r}; it is embedded when it appears",
    )


def unknown_success(row: LedgerRow) -> bool:
    """Whether a video is called done while it is not known what lies at its key."""
    return row.status == Status.SUCCESS and row.vector_source_hash is None


def gone_row(row: LedgerRow, now: datetime) -> LedgerRow:
    """The row of a success whose vector is not known any more, while the metadata no longer has its video."""
    return replace(
        row,
        status=Status.MISSING_RAW_OBJECT,
        processed_at=timestamp(now),
        source_hash=None,
        raw_etag=None,
        retry_count=0,
        error="its vector was lost, and the metadata no longer has it; it is embedded if it comes back",
        next_attempt_at=None,
    )


def failure_row(
    item: WorkItem,
    contract: Contract,
    now: datetime,
    *,
    source_hash: str,
    raw_etag: str,
    error: str,
    invalid: bool,
    policy: RetryPolicy,
) -> LedgerRow:
    """The row of an item that failed: `invalid` where its raw object is at fault and trying again is idle."""
    attempt = replace(_attempt(item, contract, now), source_hash=source_hash, raw_etag=raw_etag, error=error)
    if invalid:
        return replace(attempt, status=Status.INVALID_RAW_OBJECT, retry_count=0)
    previous = item.previous
    same_attempt = previous is not None and (previous.source_hash, previous.contract_id) == (
        source_hash,
        contract.id,
    )
    failures = (previous.retry_count if previous is not None and same_attempt else 0) + 1
    if failures >= policy.max_attempts:
        return replace(attempt, status=Status.QUARANTINED, retry_count=failures)
    return replace(
        attempt,
        status=Status.FAIL,
        retry_count=failures,
        next_attempt_at=timestamp(now + policy.wait(failures)),
    )
