"""How long planning takes, and how much memory: `make bench-delta`.

Makes a corpus of 1,000,000 videos (a CSV of 1.1 times as many rows, a SQLite ledger for each of three
stages, the three raw listings), in which 1% changed, 1% is new and 0.5% failed, and plans all three stages.
Every figure is of a process of its own, from reading the CSV and the ledgers to the finished plans, imports
included in the memory, not in the time. "Row by row" answers the same question the plain way: pandas,
sqlite3 and a loop over the rows.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipfarm_dagster.catalog.delta import DELTA_COLUMNS, plan_stage
from clipfarm_dagster.catalog.hashing import metadata_hash, metadata_hash_sql, source_hash, source_hash_sql
from clipfarm_dagster.catalog.metadata import read_latest_rows
from clipfarm_dagster.ledger.schema import processed_items_table
from clipfarm_dagster.stages import Stage

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CONTRACT = "0123456789abcdef"
SOURCE_COLUMNS = {Stage.TEXT: ("title", "description", "query")}


def make(folder: Path, videos: int) -> None:
    """The corpus. Video `i` of 0 … videos-1: each tenth has an older row too; of each 1,000, ten changed
    since they were embedded, ten are new and five failed."""
    import adbc_driver_sqlite.dbapi
    import duckdb
    from sqlalchemy import create_engine

    with duckdb.connect() as db:
        db.execute(
            """CREATE TABLE video AS SELECT i, format('{:011x}', (i * 7919) % $n) AS video_id,
            i % 1000 AS kind, printf('Clip %d: what %s did next', i, md5(i::VARCHAR)) AS title,
            repeat(sha256(i::VARCHAR) || ' é ', (hash(i) % 6 + 1)::INT)
                || if(i % 20 = 0, chr(10) || 'a "quoted", second line', '') AS description,
            'funny, search ' || i % 500 AS query, md5('raw' || i) AS etag
            FROM range($n) t(i)""",
            {"n": videos},
        )
        db.execute(
            f"""COPY (
                SELECT video_id, captured_at, title, description, query, views,
                    'https://example.org/' || i AS url
                FROM (SELECT *, '2026-01-01T00:00:00Z' AS captured_at, 0 AS views FROM video WHERE i % 10 = 0
                    UNION ALL SELECT *, '2026-02-0' || (i % 9 + 1) || 'T08:00:00Z', i FROM video)
            ) TO '{folder}/metadata.csv' (HEADER)"""
        )
        for stage in Stage:
            db.execute(
                f"""COPY (SELECT 'clipfarm/raw/{stage}/' || video_id || '{stage.raw_suffix}' AS key, etag,
                1000 + i AS size FROM video ORDER BY key) TO '{folder}/{stage}.parquet'"""
            )
            hashed = metadata_hash_sql(["old_title", "description", "query"][: 3 * (stage == Stage.TEXT)])
            old_etag = "etag" if stage == Stage.TEXT else "if(kind < 10, md5(etag), etag)"
            rows = db.sql(
                f"""SELECT video_id, {source_hash_sql("metadata_hash", "raw_etag")} AS source_hash,
                    '2026-02-20T08:00:00.000000Z' AS processed_at, if(failed, 'fail', 'success') AS status,
                    if(failed, 'ConnectionError: the store did not answer', NULL) AS error,
                    'clipfarm/embeddings/{stage}/' || video_id || '.npy' AS artifact_key,
                    failed::INT AS retry_count, '{CONTRACT}' AS contract_id, 'org/model' AS model_name,
                    sha1('revision') AS model_revision, '1' AS preprocess_version, 768 AS embedding_dim,
                    '2026-02-01T08:00:00.000000Z' AS captured_at, raw_etag,
                    if(failed, '2026-02-20T09:00:00.000000Z', NULL) AS next_attempt_at, metadata_hash,
                    if(failed, NULL, source_hash) AS vector_source_hash,
                    if(failed, NULL, contract_id) AS vector_contract_id,
                    if(failed, NULL, metadata_hash) AS vector_metadata_hash,
                    if(failed, NULL, sha256(etag)) AS vector_raw_sha256, sha256(video_id) AS artifact_sha256,
                    1.0::DOUBLE AS vector_norm, 0.5::DOUBLE AS seconds
                FROM (SELECT *, {hashed} AS metadata_hash, {old_etag} AS raw_etag,
                        kind BETWEEN 20 AND 24 AS failed
                    FROM (SELECT *, if(kind < 10, 'Old ', '') || title AS old_title FROM video)
                    WHERE kind NOT BETWEEN 10 AND 19 ORDER BY hash(i))"""
            ).to_arrow_reader(50_000)
            path = folder / f"{stage}.sqlite"
            engine = create_engine(f"sqlite:///{path}")
            processed_items_table().create(engine)
            engine.dispose()
            with closing(adbc_driver_sqlite.dbapi.connect(str(path))) as ledger:
                with closing(ledger.cursor()) as cursor:
                    cursor.adbc_ingest("processed_items", rows, mode="append")
                ledger.commit()


@contextmanager
def ledger_columns(path: Path) -> Iterator[pa.RecordBatchReader]:
    """The columns that planning needs, through ADBC, as they are read."""
    import adbc_driver_sqlite.dbapi

    # The driver takes a column's type from the first rows, which may all be null.
    columns = ", ".join(f"coalesce({name}, '') AS {name}" for name in DELTA_COLUMNS)
    with closing(adbc_driver_sqlite.dbapi.connect(str(path))) as db, closing(db.cursor()) as cursor:
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": 8192})
        cursor.execute(f"SELECT {columns} FROM processed_items")
        yield cursor.fetch_record_batch()


def by_columns(folder: Path, with_listings: bool) -> dict[str, dict[str, int]]:
    """Reasons by stage, with ClipFarm's planning, two stages at a time."""

    def plan(stage: Stage) -> dict[str, int]:
        listing = pq.read_table(folder / f"{stage}.parquet") if with_listings else None
        with ledger_columns(folder / f"{stage}.sqlite") as ledger:
            return plan_stage(stage, latest, listing, ledger, contract_id=CONTRACT, now=NOW).reasons

    with tempfile.TemporaryDirectory(dir=folder) as cache, ThreadPoolExecutor(2) as pool:
        latest = read_latest_rows(
            folder / "metadata.csv",
            url="metadata.csv",
            source_columns=SOURCE_COLUMNS,
            cache_dir=Path(cache),
            etag="1",
        )
        return dict(zip(map(str, Stage), pool.map(plan, Stage), strict=True))


def row_by_row(folder: Path, with_listings: bool) -> dict[str, dict[str, int]]:
    """Reasons by stage, the plain way."""
    import sqlite3

    import pandas as pd

    frame = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    frame["captured_at"] = pd.to_datetime(frame["captured_at"], utc=True, format="ISO8601")
    frame = frame.sort_values("captured_at", kind="stable").drop_duplicates("video_id", keep="last")
    made = {}
    for stage in Stage:
        reasons: Counter[str] = Counter()
        etags = None
        if with_listings:
            listing = pd.read_parquet(folder / f"{stage}.parquet")
            etags = dict(zip(listing["key"], listing["etag"], strict=True))
        with closing(sqlite3.connect(folder / f"{stage}.sqlite")) as ledger:
            for _, video in frame.iterrows():
                row = ledger.execute(
                    """SELECT status, contract_id, raw_etag, metadata_hash, vector_source_hash,
                    vector_contract_id FROM processed_items WHERE video_id = ?""",
                    (video["video_id"],),
                ).fetchone()
                if row is None:
                    reasons["new"] += 1
                    continue
                status, contract, old_etag, old_metadata, vector_source, vector_contract = row
                key = f"clipfarm/raw/{stage}/{video['video_id']}{stage.raw_suffix}"
                etag = old_etag if etags is None else etags[key]
                metadata = metadata_hash([video[name] for name in SOURCE_COLUMNS.get(stage, ())])
                if vector_contract == CONTRACT and vector_source == source_hash(metadata, etag):
                    continue
                if metadata != old_metadata:
                    reasons["source_changed"] += 1
                elif etag != old_etag:
                    reasons["raw_changed"] += 1
                elif contract != CONTRACT:
                    reasons["contract_changed"] += 1
                elif status == "fail":
                    reasons["retry_due"] += 1
        made[str(stage)] = dict(reasons)
    return made


WAYS = {"columns": by_columns, "row by row": row_by_row}
LIBRARIES = {
    "columns": ("adbc_driver_sqlite.dbapi", "duckdb", "pyarrow.csv"),
    "row by row": ("pandas", "sqlite3"),
}


def measure(way: str, folder: Path, with_listings: bool) -> None:
    """Print, as JSON, the time and the peak memory of one way in this process, and what it found."""
    for library in LIBRARIES[way]:
        importlib.import_module(library)
    started, used = time.perf_counter(), time.process_time()
    reasons = WAYS[way](folder, with_listings)
    figures = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - used,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "reasons": reasons,
    }
    print(json.dumps(figures))


def child(*arguments: str) -> str:
    """What this program prints when it runs with `arguments` in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(videos: int, repeats: int, naive: bool) -> None:
    """Make a corpus, measure both ways on it, and print a line for each."""
    with tempfile.TemporaryDirectory(prefix="clipfarm-bench-") as folder:
        child("--make", str(videos), "--folder", folder)
        for listings in (False, True):
            told = "with three raw listings" if listings else "raw objects as last seen"
            found = {}
            for way in WAYS if naive else ["columns"]:
                flags = ["--measure", way, "--folder", folder, *(["--listings"] if listings else [])]
                runs = [json.loads(child(*flags)) for _ in range(repeats if way == "columns" else 1)]
                best = min(runs, key=lambda run: run["seconds"])
                found[way] = best
                peak = max(run["mib"] for run in runs)
                print(
                    f"{videos:>9,} videos  {told:<24}  {way:<10}  {best['seconds']:7.2f} s"
                    f"  {best['cpu']:7.2f} s CPU  {peak:6,.0f} MiB",
                    flush=True,
                )
            if naive:
                columns, plain = found["columns"], found["row by row"]
                if columns["reasons"] != plain["reasons"]:
                    raise SystemExit(f"they disagree: {columns['reasons']} {plain['reasons']}")
                print(
                    f"{'':>17}  {'':<24}  {plain['seconds'] / columns['seconds']:.0f} times as fast"
                    f" ({plain['cpu'] / columns['cpu']:.0f} in CPU time);"
                    f" the same answer: {columns['reasons']}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, nargs="+", default=[1_000_000, 100_000], help="sizes of corpus")
    parser.add_argument("--repeats", type=int, default=2, help="runs by columns, of which the best counts")
    parser.add_argument("--no-naive", action="store_true", help="leave the plain way out: it takes minutes")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--listings", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.folder, options.make)
    elif options.measure:
        measure(options.measure, options.folder, options.listings)
    else:
        for videos in options.videos:
            compare(videos, options.repeats, not options.no_naive)


if __name__ == "__main__":
    main()
