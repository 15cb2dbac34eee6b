"""How much of what a generation serves another generation has: what would be lost if that one served now."""

# ruff: noqa: S608 (the SQL is put together from constants of this package; values come as variables)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from clipfarm_dagster.catalog.duckdb_connection import duckdb_connection
from clipfarm_dagster.catalog.metadata import LatestRows
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.planning.delta import DELTA_COLUMNS
from clipfarm_dagster.timestamps import timestamp

if TYPE_CHECKING:
    import pyarrow as pa

COVERAGE_COLUMNS = (*DELTA_COLUMNS, "processed_at")
"""Columns of both ledgers that are compared."""

_EXAMPLES = 5


class Cover(StrEnum):
    """What another generation has of a video that the serving one has as a success."""

    DONE = "done"
    """A vector of the same input, or of one that the serving one has yet to take up; or any vector, if the
    metadata no longer has the video, so that no other will be made."""
    OUTDATED = "outdated"
    """A vector of another input than the serving one, which has been made since."""
    TO_DO = "to_do"
    """Nothing yet, or something that is tried again at once."""
    WAITING = "waiting"
    """It failed, and its next attempt is not due yet."""
    FAILED = "failed"
    """It failed for good with the same input: invalid or quarantined."""
    MISSING_RAW_OBJECT = "missing_raw_object"
    """There is no raw object any more to make a vector of."""
    ORPHANED = "orphaned"
    """Nothing, and the metadata no longer has the video, so that nothing will be made."""


@dataclass(frozen=True)
class Coverage:
    """How many of the videos that are served another generation has."""

    counts: Mapping[Cover, int] = field(default_factory=dict)
    """All videos that are served; absent means 0."""
    examples: Mapping[Cover, tuple[str, ...]] = field(default_factory=dict)
    """Some ids of each but `DONE`."""

    def count(self, *covers: Cover) -> int:
        """How many videos are one of these."""
        return sum(self.counts.get(cover, 0) for cover in covers)

    @property
    def served(self) -> int:
        """Successes of the generation that serves."""
        return sum(self.counts.values())

    @property
    def covered(self) -> int:
        """Those that the other generation has a vector of."""
        return self.count(Cover.DONE, Cover.OUTDATED)

    @property
    def share(self) -> float:
        """`covered` of `served`, from 0 to 1."""
        return self.covered / self.served if self.served else 1.0


def coverage(
    latest: LatestRows,
    serving: pa.Table | pa.RecordBatchReader,
    other: pa.Table | pa.RecordBatchReader,
    *,
    contract_id: str,
    now: datetime,
) -> Coverage:
    """Compare the ledger of a generation with that of the one that serves.

    Args:
        serving: rows of the generation that serves, `COVERAGE_COLUMNS`; a reader is used up.
        other: rows of the other one, as `serving`.
        contract_id: of the other one.
        now: aware time, against which retries are due.
    """
    columns = ", ".join(f"nullif({name}::VARCHAR, '') AS {name}" for name in COVERAGE_COLUMNS)
    with duckdb_connection() as connection:
        connection.read_parquet(str(latest.path)).create_view("latest")
        connection.register("serving", serving)
        connection.register("other", other)
        connection.execute("SET VARIABLE contract_id = ?", [contract_id])
        connection.execute("SET VARIABLE now = ?", [timestamp(now)])
        found = connection.execute(
            f"""WITH covers AS (
                SELECT s.video_id, {_COVER} AS cover
                FROM (SELECT {columns} FROM serving) s
                LEFT JOIN (SELECT {columns} FROM other) o ON o.video_id = s.video_id
                LEFT JOIN (SELECT video_id FROM latest) l ON l.video_id = s.video_id
                WHERE s.status = '{Status.SUCCESS}'
            )
            SELECT cover, count(*), min(video_id, {_EXAMPLES}) FROM covers GROUP BY cover"""
        ).fetchall()
    counts = {Cover(cover): count for cover, count, _ in found}
    examples = {Cover(cover): tuple(ids) for cover, _, ids in found if cover != Cover.DONE}
    return Coverage(counts, examples)


_COVER = f"""CASE
    WHEN o.status = '{Status.SUCCESS}' AND o.vector_source_hash IS NOT NULL
        AND o.vector_contract_id = getvariable('contract_id')
        THEN if(o.vector_source_hash = s.source_hash OR o.processed_at >= s.processed_at
            OR l.video_id IS NULL, '{Cover.DONE}', '{Cover.OUTDATED}')
    WHEN l.video_id IS NULL THEN '{Cover.ORPHANED}'
    WHEN o.contract_id IS DISTINCT FROM getvariable('contract_id') THEN '{Cover.TO_DO}'
    WHEN o.status IN ('{Status.INVALID_RAW_OBJECT}', '{Status.QUARANTINED}') AND o.source_hash = s.source_hash
        THEN '{Cover.FAILED}'
    WHEN o.status = '{Status.MISSING_RAW_OBJECT}' AND o.metadata_hash = s.metadata_hash
        THEN '{Cover.MISSING_RAW_OBJECT}'
    WHEN o.status = '{Status.FAIL}' AND o.next_attempt_at > getvariable('now') THEN '{Cover.WAITING}'
    ELSE '{Cover.TO_DO}' END"""
