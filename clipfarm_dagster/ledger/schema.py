"""What a ledger holds: the columns of `processed_items`, the statuses, and one row as a value.

Timestamps are text, ISO 8601 in UTC with microseconds and `Z` (`2026-01-31T08:00:00.000000Z`), so that
text order is time order in SQLite, PostgreSQL and Arrow alike.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

SERVING_ITEMS = "processed_items"
"""The table of the generation that serves."""

UNNAMED = ""
"""Stands for the contract of the first generation until that is known (see `Ledger.name_serving`)."""


class Status(StrEnum):
    """Outcome of the latest attempt at one video in one stage."""

    SUCCESS = "success"
    FAIL = "fail"
    MISSING_RAW_OBJECT = "missing_raw_object"
    INVALID_RAW_OBJECT = "invalid_raw_object"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One row of `processed_items`.

    `source_hash`, `contract_id`, `metadata_hash`, `raw_etag` and `status` tell of the latest attempt. The
    columns that begin with `vector_` or `artifact_` tell of the vector now in the store and what it was made
    from. `vector_source_hash` and `vector_contract_id` are null where there is no vector, or where a crash
    may have left it unknown. They survive later failures, so an input that changes back finds its vector.
    """

    video_id: str
    source_hash: str | None = None
    processed_at: str | None = None
    status: str | None = None
    error: str | None = None
    artifact_key: str | None = None
    vector_id: str | None = None
    """Reserved by the original schema; always null."""
    retry_count: int = 0
    contract_id: str | None = None
    model_name: str | None = None
    model_revision: str | None = None
    preprocess_version: str | None = None
    embedding_dim: int | None = None
    captured_at: str | None = None
    raw_etag: str | None = None
    next_attempt_at: str | None = None
    metadata_hash: str | None = None
    """SHA-256 of the stage's source columns; with `raw_etag` it makes `source_hash`."""
    vector_source_hash: str | None = None
    vector_contract_id: str | None = None
    vector_metadata_hash: str | None = None
    vector_raw_sha256: str | None = None
    """SHA-256 of the raw bytes that the vector was made from: tells the same bytes uploaded again, with
    another ETag, from new content."""
    artifact_sha256: str | None = None
    """SHA-256 of the vector's float32 bytes: finds identical vectors, and damage, without a download."""
    vector_norm: float | None = None
    """L2 norm of the vector as stored; 1 within float32."""
    seconds: float | None = None
    """Seconds of preparation and inference that the item took."""
    note: str | None = None
    """What a person should know of a success, such as that a video ended early."""
    row_version: int | None = field(default=None, compare=False)
    """Raised by every write (see `versions`). In a row that is to be written: the version that it was derived
    from; 0 where there was no row, null to write over whatever is there."""


LEDGER_COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(LedgerRow))
"""Names of all columns of `processed_items`, in order."""

_TYPES: dict[str, TypeEngine[Any]] = {
    "retry_count": Integer(),
    "embedding_dim": Integer(),
    "row_version": BigInteger(),
    "vector_norm": Float(),
    "seconds": Float(),
}
"""The columns that are not text."""


def items_table(schema: str | None = None, name: str = SERVING_ITEMS) -> Table:
    """A table of ledger rows: `processed_items`, or that of a generation which does not serve (see
    `generations`). PostgreSQL keeps those of a stage in a schema of their own."""
    columns: list[Column[Any]] = [
        Column(name, _TYPES.get(name, Text()), primary_key=name == "video_id", nullable=name != "video_id")
        for name in LEDGER_COLUMNS
    ]
    table = Table(name, MetaData(schema=schema), *columns)
    Index(f"{name}_status", table.c.status)
    Index(f"{name}_processed_at", table.c.processed_at)
    return table


def unsent_table() -> Table:
    """The SQLite table of the rows that were written here and are not in the store yet, each with the version
    that the store has of it (see `journal`)."""
    return Table(
        "unsent",
        MetaData(),
        Column("generation", Text, primary_key=True, nullable=False),
        Column("video_id", Text, primary_key=True, nullable=False),
        Column("base_version", BigInteger()),
    )


@dataclass(frozen=True)
class Tables:
    """The tables of a ledger's database, besides those of generations that do not serve."""

    items: Table
    """Of the generation that serves."""
    generations: Table
    """`table_name` of each generation's rows; null of one that was dropped, until other machines know. Every
    change of the rows replaces `version`."""
    contracts: Table
    versions: Table
    corpus: Table
    erased: Table
    """The tombstones of erased videos that the ledger follows, and what of each `remains` here (see
    `erasing`)."""
    unsent: Table | None
    """None on PostgreSQL, where machines share the database."""
    changes: Table | None
    """On PostgreSQL, many random texts for each generation, of which each change of its rows replaces one
    (see `writers`); None on SQLite, where one process writes at a time."""

    @classmethod
    def of(cls, schema: str | None) -> Tables:
        """The tables in a schema of PostgreSQL's, or in an SQLite file."""
        metadata = MetaData(schema=schema)
        return cls(
            items=items_table(schema),
            generations=Table(
                "generations",
                metadata,
                Column("contract_id", Text, primary_key=True, nullable=False),
                Column("table_name", Text),
                Column("version", Text),
            ),
            contracts=Table(
                "contracts",
                metadata,
                Column("contract_id", Text, primary_key=True),
                Column("contract", Text, nullable=False),
            ),
            versions=Table("ledger_version", metadata, Column("token", Text, nullable=False)),
            corpus=Table("ledger_corpus", metadata, Column("corpus_id", Text, nullable=False)),
            erased=Table(
                "erased",
                metadata,
                Column("tombstone", Text, primary_key=True, nullable=False),
                Column("remains", Text),
            ),
            unsent=None if schema else unsent_table(),
            changes=Table(
                "ledger_changes",
                metadata,
                Column("contract_id", Text, primary_key=True, nullable=False),
                Column("slot", Integer, primary_key=True, autoincrement=False),
                Column("token", Text, nullable=False),
            )
            if schema
            else None,
        )

    def all(self) -> list[Table]:
        """All of them."""
        tables = (self.items, self.generations, self.contracts, self.versions, self.corpus, self.erased)
        return [*tables, *(table for table in (self.unsent, self.changes) if table is not None)]


def new_version() -> str:
    """A text that no ledger has had as its version."""
    return uuid.uuid4().hex


FAILED_STATUSES = (Status.FAIL, Status.INVALID_RAW_OBJECT, Status.QUARANTINED)
"""What `clipfarm status` shows as failures and `clipfarm retry` tries again."""
