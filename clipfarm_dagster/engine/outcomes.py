"""What became of one item: the result of computing it, and the outcome once that is settled."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.engine.storing import Stored, contested_row
from clipfarm_dagster.ledger.rows import (
    RetryPolicy,
    WorkItem,
    failure_row,
    missing_row,
    standing_row,
    success_row,
)
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.hashing import source_hash

if TYPE_CHECKING:
    import numpy as np


class OutcomeKind(StrEnum):
    """How an item came to its outcome."""

    EMBEDDED = "embedded"
    SAME_BYTES = "same_bytes"
    """The raw object was uploaded again with the same bytes: its vector stands."""
    UP_TO_DATE = "up_to_date"
    """Nothing that the vector depends on has changed: nothing was done."""
    FAILED = "failed"
    MISSING = "missing"


@dataclass(frozen=True, eq=False, kw_only=True)
class ItemResult:
    """What computing one item gave. Can be pickled; nothing of it is stored or recorded yet."""

    video_id: str
    kind: OutcomeKind
    raw_etag: str = ""
    """Version of the raw object that was read; empty where none was."""
    raw_sha256: str = ""
    """SHA-256 of the bytes that were read."""
    vector: np.ndarray[Any, Any] | None = None
    """float32 (dimension,), of unit L2 norm; of `EMBEDDED` alone."""
    error: str | None = None
    """Why it failed."""
    invalid: bool = False
    """Whether the raw object is at fault, so that trying it again is idle."""
    used_model: bool = False
    """Whether it went through the model, even if that failed."""
    seconds: float = 0.0
    """Seconds of preparation and inference."""
    note: str | None = None
    preview: str | None = None

    def __post_init__(self) -> None:
        # without its vector it would be settled as if the store held the right one already
        if (self.vector is not None) != (self.kind == OutcomeKind.EMBEDDED):
            raise ValueError(f"{self.video_id}: a result has a vector if it is embedded, and only then")


@dataclass(frozen=True)
class Outcome:
    """What became of one item, with the row that says so."""

    kind: OutcomeKind
    row: LedgerRow
    preview: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the store holds the right vector."""
        return self.row.status == Status.SUCCESS


@dataclass(frozen=True)
class Settlement:
    """What results are settled by: whose rows they become, under which keys, and when failures are due."""

    contract: Contract
    keys: Keys
    retry: RetryPolicy

    def outcome(
        self, item: WorkItem, result: ItemResult, now: datetime, stored: Stored | None = None
    ) -> Outcome:
        """The outcome of an item; with a new vector, `stored` is what became of that."""
        if result.kind == OutcomeKind.MISSING:
            raw_key = self.keys.raw(self.contract.stage, item.video_id)
            return Outcome(result.kind, missing_row(item, self.contract, now, raw_key=raw_key))
        if result.kind == OutcomeKind.FAILED:
            return Outcome(result.kind, self._failure(item, result, now, result.error or ""))
        if result.vector is None:
            return Outcome(result.kind, self._standing(item, result, now))
        assert stored is not None, f"{item.video_id}: settled before its vector was stored"
        if stored.refused is not None:
            error = f"the vector cannot be stored, while others can: {stored.refused.problem}"
            return Outcome(OutcomeKind.FAILED, self._failure(stored.item, result, now, error))
        row = self._success(stored, result, result.vector, now)
        if stored.contested:
            return Outcome(OutcomeKind.FAILED, contested_row(row), result.preview)
        return Outcome(result.kind, row, result.preview)

    def _standing(self, item: WorkItem, result: ItemResult, now: datetime) -> LedgerRow:
        return standing_row(
            item,
            self.contract,
            now,
            source_hash=source_hash(item.metadata_hash, result.raw_etag),
            raw_etag=result.raw_etag,
        )

    def _success(
        self, stored: Stored, result: ItemResult, vector: np.ndarray[Any, Any], now: datetime
    ) -> LedgerRow:
        item = stored.item
        return success_row(
            item,
            self.contract,
            now,
            source_hash=source_hash(item.metadata_hash, result.raw_etag),
            raw_etag=result.raw_etag,
            raw_sha256=result.raw_sha256,
            artifact_key=stored.key,
            vector=vector,
            seconds=result.seconds,
            note=result.note,
        )

    def _failure(self, item: WorkItem, result: ItemResult, now: datetime, error: str) -> LedgerRow:
        return failure_row(
            item,
            self.contract,
            now,
            source_hash=source_hash(item.metadata_hash, result.raw_etag),
            raw_etag=result.raw_etag,
            error=error,
            invalid=result.invalid,
            policy=self.retry,
        )
