"""How writers of one row find out about each other, without a clock.

Every write raises a row's version, and a row that is written back says which version it was derived from. If
the row has another version by then, somebody else wrote it meanwhile: `merged` makes one row of the two.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from clipfarm_dagster.ledger.schema import LedgerRow, Status


def next_version(*known: int | None) -> int:
    """A version above all those `known`.

    The upper 32 bits count the writes. The lower 32 are random, so that two writers that start from the same
    version come to different ones.
    """
    newest = max((version or 0 for version in known), default=0)
    return ((newest >> 32) + 1) << 32 | secrets.randbits(32)


def forgotten(row: LedgerRow) -> LedgerRow:
    """The row with no claim about the vector in the store, so that its video is work again."""
    return replace(row, vector_source_hash=None, vector_contract_id=None)


def merged(ours: LedgerRow, theirs: LedgerRow) -> LedgerRow:
    """One row of two that were written without knowing of each other.

    A success is kept rather than a failure. Which of the two writers reached the store last cannot be known,
    so the vector's claim is kept only if both make the same one.
    """
    kept = theirs if theirs.status == Status.SUCCESS and ours.status != Status.SUCCESS else ours
    return kept if _claim(ours) == _claim(theirs) else forgotten(kept)


def to_write(row: LedgerRow, current: LedgerRow | None) -> LedgerRow:
    """What to write for `row` over the row that is there now, with its new version."""
    there = 0 if current is None else current.row_version or 0
    if row.row_version is not None and row.row_version != there:
        row = forgotten(row) if current is None else merged(row, current)
    return replace(row, row_version=next_version(row.row_version, there))


def _claim(row: LedgerRow) -> tuple[str | None, ...]:
    """What a row says of the vector in the store; SHA-256 and key alone claim nothing."""
    if row.vector_source_hash is None or row.vector_contract_id is None:
        return None, None, None, None
    return row.vector_source_hash, row.vector_contract_id, row.artifact_sha256, row.artifact_key
