"""Ledger rows that claim a vector, and what the rows of a ledger claim."""

from __future__ import annotations

from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status


def claim(video_id: str, vector: str, day: int = 1) -> LedgerRow:
    """A success whose vector is in the store."""
    return LedgerRow(
        video_id=video_id,
        processed_at=f"2026-01-{day:02d}T00:00:00.000000Z",
        note="",
        status=Status.SUCCESS,
        source_hash=vector,
        vector_source_hash=vector,
        vector_contract_id="contract",
        artifact_sha256=vector,
    )


def claims(ledger: Ledger) -> dict[str, str | None]:
    """What each row claims of its vector."""
    columns = ledger.columns(["video_id", "vector_source_hash"]).to_pylist()
    return {found["video_id"]: found["vector_source_hash"] for found in columns}
