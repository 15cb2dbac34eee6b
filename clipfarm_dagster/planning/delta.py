"""What needs work in a stage, and why: latest rows, raw listing and ledger, compared by columns.

The rules are one SQL `CASE`, `_VERDICT`; planning runs it over all videos, explaining over one.
"""

# ruff: noqa: S608 (the SQL is put together from constants of this package; values come as variables)

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.catalog.duckdb_connection import duckdb_connection
from clipfarm_dagster.catalog.metadata import LatestRows
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.store.listing import Skipped, skipped_keys
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.hashing import source_hash_sql

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

DELTA_COLUMNS = (
    "video_id",
    "source_hash",
    "status",
    "contract_id",
    "raw_etag",
    "next_attempt_at",
    "metadata_hash",
    "vector_source_hash",
    "vector_contract_id",
)
"""Columns of the ledger that planning reads. An empty text counts as null."""

LISTING_COLUMNS = ("key", "etag")
"""Columns of a raw listing that planning reads."""

DEFAULT_KEYS = Keys()


class Reason(StrEnum):
    """Why a video is in a stage's delta."""

    NEW = "new"
    SOURCE_CHANGED = "source_changed"
    RAW_CHANGED = "raw_changed"
    CONTRACT_CHANGED = "contract_changed"
    RETRY_DUE = "retry_due"
    ARTIFACT_LOST = "artifact_lost"


class NoWorkReason(StrEnum):
    """Why a video is not in a stage's delta."""

    DONE = "done"
    """The vector is the one that input and contract ask for."""
    WAITING = "waiting"
    """It failed, and its next attempt is not due yet."""
    GIVEN_UP = "given_up"
    """Invalid or quarantined; left alone until its input or the contract changes."""
    RESTORED = "restored"
    """The vector in the store is the right one again; the ledger row goes back to success."""
    MISSING = "missing"
    """There is work but no raw object, which the ledger does not say yet."""
    STILL_MISSING = "still_missing"
    """There is work but no raw object, as the ledger says."""
    ORPHANED = "orphaned"
    """The metadata no longer has the video; its vector is kept."""
    ERASED = "erased"
    """It was erased, and stays away, whatever the metadata says."""


@dataclass(frozen=True)
class StagePlan:
    """What to do in one stage. Tables have the newest `captured_at` first, then order by `video_id`."""

    work: pa.Table
    """The delta, or its first `limit` rows: `video_id`, `reason`, `source_hash`, `metadata_hash`, `raw_etag`,
    `captured_at`. `source_hash` and `raw_etag` are null where no listing told the ETag."""
    missing: pa.Table
    """To be recorded as missing without a run, as they are not yet: `video_id`, `metadata_hash`,
    `captured_at`."""
    restored: pa.Table
    """To be recorded as success without a run, since their vector is in the store: `video_id`, `source_hash`,
    `metadata_hash`, `raw_etag`, `captured_at`."""
    gone: pa.Table
    """To be recorded as missing: the metadata no longer has them, and their vector is not known any more:
    `video_id`."""
    reasons: dict[str, int]
    """Size of the whole delta by reason; absent means 0."""
    missing_raw_object: int
    """All videos that have work but no raw object, recorded or not."""
    next_attempt_at: str | None
    """The earliest retry that is not due yet."""
    orphaned: int
    """Ledger rows of videos that the metadata no longer has."""
    skipped: Skipped
    """Keys of the raw folder that are no objects ClipFarm can read."""

    def only(self, video_ids: Collection[str]) -> StagePlan:
        """The part of the plan that is of some videos; the counts tell of it alone, but for the orphaned."""
        import pyarrow as pa
        import pyarrow.compute as pc

        chosen = pa.array(sorted(video_ids), pa.string())

        def part(rows: pa.Table) -> pa.Table:
            return rows.filter(pc.is_in(rows["video_id"], value_set=chosen))

        work, missing = part(self.work), part(self.missing)
        reasons = Counter(work["reason"].to_pylist())
        return replace(
            self,
            work=work,
            missing=missing,
            restored=part(self.restored),
            gone=part(self.gone),
            reasons=dict(reasons),
            missing_raw_object=missing.num_rows,
        )

    @property
    def delta(self) -> int:
        """Size of the whole delta."""
        return sum(self.reasons.values())


def plan_stage(
    stage: Stage,
    latest: LatestRows,
    listing: pa.Table | None,
    ledger: pa.Table | pa.RecordBatchReader,
    *,
    contract_id: str,
    now: datetime,
    in_flight: Collection[str] = (),
    limit: int | None = None,
    keys: Keys = DEFAULT_KEYS,
) -> StagePlan:
    """The delta of one stage.

    Args:
        listing: the objects under the stage's raw folder, `LISTING_COLUMNS`; others than raw artifacts are
            ignored. None takes the raw objects as the ledger last saw them, and those that it never saw as
            present.
        ledger: the stage's `processed_items`, `DELTA_COLUMNS`; a reader spares the memory of a table, and is
            used up.
        now: aware time, against which retries are due.
        in_flight: ids that a run has; they are left out of all tables and counts but `orphaned`.
        limit: most rows of `work`; the counts tell of the whole delta.
    """
    import pyarrow as pa

    with duckdb_connection() as connection:
        define_verdicts(connection, stage, latest.path, listing, ledger, contract_id, now, keys)
        connection.register("in_flight", pa.table({"video_id": pa.array(list(in_flight), pa.string())}))
        connection.execute("CREATE TEMP TABLE undone AS FROM verdicts WHERE verdict <> 'done'")
        connection.execute("DELETE FROM undone WHERE verdict <> 'orphaned' AND video_id IN (FROM in_flight)")
        counts = dict(connection.execute("SELECT verdict, count(*) FROM undone GROUP BY ALL").fetchall())
        [(next_attempt_at,)] = connection.execute(
            "SELECT min(next_attempt_at) FROM undone WHERE verdict = 'waiting'"
        ).fetchall()
        newest = "ORDER BY captured_at DESC, video_id"
        return StagePlan(
            work=connection.sql(
                f"""SELECT video_id, verdict AS reason, source_hash, metadata_hash, raw_etag, captured_at
                FROM undone WHERE verdict IN {tuple(map(str, Reason))} {newest}
                {"" if limit is None else f"LIMIT {limit:d}"}"""
            ).to_arrow_table(),
            missing=connection.sql(
                f"SELECT video_id, metadata_hash, captured_at FROM undone WHERE verdict = 'missing' {newest}"
            ).to_arrow_table(),
            restored=connection.sql(
                f"""SELECT video_id, source_hash, metadata_hash, raw_etag, captured_at
                FROM undone WHERE verdict = 'restored' {newest}"""
            ).to_arrow_table(),
            gone=connection.sql(
                f"""SELECT video_id FROM undone
                WHERE verdict = 'orphaned' AND status = '{Status.SUCCESS}' AND vector_source_hash IS NULL
                    AND video_id NOT IN (FROM in_flight) ORDER BY video_id"""
            ).to_arrow_table(),
            reasons={str(reason): counts[reason] for reason in Reason if reason in counts},
            missing_raw_object=counts.get(NoWorkReason.MISSING, 0)
            + counts.get(NoWorkReason.STILL_MISSING, 0),
            next_attempt_at=next_attempt_at,
            orphaned=counts.get(NoWorkReason.ORPHANED, 0),
            skipped=Skipped() if listing is None else skipped_keys(listing),
        )


def listing_hash(listing: pa.Table) -> str:
    """A short text that tells a raw listing from others, whatever the order of its rows."""
    with duckdb_connection() as connection:
        connection.register("listing", listing.select(LISTING_COLUMNS))
        row = connection.execute("SELECT count(*), sum(hash(key, etag)) FROM listing").fetchall()[0]
        return ":".join(map(str, row))


def define_verdicts(
    connection: duckdb.DuckDBPyConnection,
    stage: Stage,
    latest: Path,
    listing: pa.Table | None,
    ledger: pa.Table | pa.RecordBatchReader,
    contract_id: str,
    now: datetime,
    keys: Keys,
    video_id: str | None = None,
) -> None:
    """Define the view `verdicts`, a row for each video of the metadata or the ledger: what it is now, what
    the ledger holds (`old_…`, `vector_…`), whether its raw object is `present`, and the `verdict`, a
    `Reason` or a `NoWorkReason`. With `video_id`, of this video alone."""
    # Hash the smaller side, the one written on the right: of a reader's rows DuckDB cannot know the number.
    connection.execute("SET disabled_optimizers = 'build_side_probe_side'")
    connection.read_parquet(str(latest)).create_view("latest")
    connection.register("ledger", ledger)
    if listing is None:
        raw_join, present, raw_etag = (
            "",
            f"r.status IS DISTINCT FROM '{Status.MISSING_RAW_OBJECT}'",
            "r.raw_etag",
        )
    else:
        connection.register("listing", listing.select(LISTING_COLUMNS))
        connection.execute("SET VARIABLE raw_folder = ?", [keys.raw_folder(stage)])
        # by the id in the key: most ids fit into the 12 bytes that DuckDB keeps in place of a pointer
        raw_join = f"""LEFT JOIN (
            SELECT substr(key, len(getvariable('raw_folder')) + 1,
                len(key) - len(getvariable('raw_folder')) - {len(stage.raw_suffix)}) AS video_id,
                coalesce(etag, '') AS etag
            FROM listing
            WHERE starts_with(key, getvariable('raw_folder')) AND ends_with(key, '{stage.raw_suffix}')
        ) o ON o.video_id = l.video_id"""
        present, raw_etag = "o.video_id IS NOT NULL", "o.etag"
    connection.execute("SET VARIABLE contract_id = ?", [contract_id])
    connection.execute("SET VARIABLE now = ?", [timestamp(now)])
    connection.execute("SET VARIABLE video_id = ?", [video_id])
    only = "" if video_id is None else "WHERE video_id = getvariable('video_id')"
    ledger_columns = ", ".join(f"nullif({name}::VARCHAR, '') AS {name}" for name in DELTA_COLUMNS)
    connection.execute(
        f"""CREATE TEMP VIEW verdicts AS
        WITH joined AS (
            SELECT coalesce(l.video_id, r.video_id) AS video_id, l.captured_at,
                l.video_id IS NULL AS orphaned, r.video_id IS NOT NULL AS known,
                l.{stage}_metadata_hash AS metadata_hash, {present} AS present, {raw_etag} AS raw_etag,
                {source_hash_sql(f"l.{stage}_metadata_hash", raw_etag)} AS source_hash,
                r.status, r.next_attempt_at,
                r.source_hash AS old_source_hash, r.metadata_hash AS old_metadata_hash,
                r.raw_etag AS old_raw_etag, r.contract_id AS old_contract_id,
                r.vector_source_hash, r.vector_contract_id
            FROM (SELECT {ledger_columns} FROM ledger {only}) r
            FULL JOIN (FROM latest {only}) l ON l.video_id = r.video_id {raw_join}
        )
        SELECT *, {_VERDICT} AS verdict FROM joined"""
    )


_VERDICT = """CASE
    WHEN orphaned THEN 'orphaned'
    WHEN NOT present THEN CASE
        WHEN status = 'success' AND vector_source_hash IS NOT NULL
            AND vector_contract_id = getvariable('contract_id') AND old_metadata_hash = metadata_hash
            THEN 'done'
        WHEN status = 'missing_raw_object'
            AND old_contract_id = getvariable('contract_id') AND old_metadata_hash = metadata_hash
            THEN 'still_missing'
        ELSE 'missing' END
    WHEN vector_source_hash = source_hash AND vector_contract_id = getvariable('contract_id')
        THEN if(status = 'success', 'done', 'restored')
    WHEN NOT known THEN 'new'
    WHEN old_contract_id = getvariable('contract_id') AND (old_source_hash = source_hash
        OR source_hash IS NULL AND old_source_hash IS NULL AND old_metadata_hash = metadata_hash)
        THEN CASE status
            WHEN 'success' THEN 'artifact_lost'
            WHEN 'invalid_raw_object' THEN 'given_up'
            WHEN 'quarantined' THEN 'given_up'
            WHEN 'missing_raw_object' THEN 'raw_changed'
            ELSE if(next_attempt_at > getvariable('now'), 'waiting', 'retry_due') END
    WHEN old_source_hash IS NULL AND vector_source_hash IS NULL THEN 'new'
    WHEN old_metadata_hash <> metadata_hash THEN 'source_changed'
    WHEN old_raw_etag <> raw_etag OR status = 'missing_raw_object' THEN 'raw_changed'
    WHEN old_contract_id = getvariable('contract_id') THEN 'source_changed'
    ELSE 'contract_changed' END"""
"""The delta rule. A null, that is something unknown, never makes two things equal. A row of an older
schema does not know its contract, so that it is work."""
