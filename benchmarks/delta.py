"""How long planning takes, and how much memory: `make bench-delta`.

Makes a corpus of 1,000,000 videos (a CSV of 1.1 times as many rows, a SQLite ledger for each of three
stages, the three raw listings as tables), in which 1% changed, 1% is new and 0.5% failed, and plans all three
stages as `clipfarm plan` does. Every figure is of a process of its own, from fetching the CSV from the store
to the finished plans; imports count for the memory, not for the time. Memory is that of all processes
together, those that read the ledgers included, and is looked at in a further run. "Row by row" answers the
same question the plain way: pandas, sqlite3 and a loop over the rows.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.hashing import metadata_hash, metadata_hash_sql, source_hash, source_hash_sql

SAMPLE_SECONDS = 0.02
SOURCE_COLUMNS = {Stage.TEXT: ("title", "description", "query")}


def open_corpus(folder: Path) -> Corpus:
    """The corpus in `folder`, with the default models."""
    return Corpus.open(load_settings(home=folder, store_url=str(folder / "store")))


def ledger_path(folder: Path, stage: Stage) -> Path:
    """Where the corpus in `folder` has a stage's ledger."""
    return folder / "state" / f"{stage}_embedding.sqlite"


def make(folder: Path, videos: int) -> None:
    """The corpus. Video `i` of 0 … videos-1: each tenth has an older row too; of each 1,000, ten changed
    since they were embedded, ten are new and five failed."""
    import adbc_driver_sqlite.dbapi
    import duckdb

    corpus = open_corpus(folder)
    table = folder / "store" / corpus.keys.metadata()
    table.parent.mkdir(parents=True)
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
            ) TO '{table}' (HEADER)"""
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
                    failed::INT AS retry_count, '{corpus.contract(stage).id}' AS contract_id,
                    'org/model' AS model_name,
                    sha1('revision') AS model_revision, '1' AS preprocess_version, 768 AS embedding_dim,
                    '2026-02-01T08:00:00.000000Z' AS captured_at, raw_etag,
                    if(failed, '2001-02-20T09:00:00.000000Z', NULL) AS next_attempt_at, metadata_hash,
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
            path = ledger_path(folder, stage)
            Ledger.open(stage, state_url="", sqlite_path=path).close()
            with closing(adbc_driver_sqlite.dbapi.connect(str(path))) as ledger:
                with closing(ledger.cursor()) as cursor:
                    cursor.adbc_ingest("processed_items", rows, mode="append")
                ledger.commit()


def by_columns(folder: Path, with_listings: bool) -> dict[str, dict[str, int]]:
    """Reasons by stage, as the product plans them; nothing of the CSV was read before."""
    corpus = open_corpus(folder)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    latest = corpus.latest_rows()

    def listing(stage: Stage) -> pa.Table | None:
        return pq.read_table(folder / f"{stage}.parquet") if with_listings else None

    plans = corpus.plans(list(Stage), latest, limit=0, listing=listing)
    return {str(stage): plan.reasons for stage, plan in plans.items()}


def row_by_row(folder: Path, with_listings: bool) -> dict[str, dict[str, int]]:
    """Reasons by stage, the plain way."""
    import sqlite3

    import pandas as pd

    corpus = open_corpus(folder)
    frame = pd.read_csv(folder / "store" / corpus.keys.metadata(), dtype=str, keep_default_na=False)
    frame["captured_at"] = pd.to_datetime(frame["captured_at"], utc=True, format="ISO8601")
    frame = frame.sort_values("captured_at", kind="stable").drop_duplicates("video_id", keep="last")
    made = {}
    for stage in Stage:
        reasons: Counter[str] = Counter()
        contract_id = corpus.contract(stage).id
        etags = None
        if with_listings:
            listing = pd.read_parquet(folder / f"{stage}.parquet")
            etags = dict(zip(listing["key"], listing["etag"], strict=True))
        with closing(sqlite3.connect(ledger_path(folder, stage))) as ledger:
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
                if vector_contract == contract_id and vector_source == source_hash(metadata, etag):
                    continue
                if metadata != old_metadata:
                    reasons["source_changed"] += 1
                elif etag != old_etag:
                    reasons["raw_changed"] += 1
                elif contract != contract_id:
                    reasons["contract_changed"] += 1
                elif status == "fail":
                    reasons["retry_due"] += 1
        made[str(stage)] = dict(reasons)
    return made


WAYS = {"columns": by_columns, "row by row": row_by_row}
LIBRARIES = {
    "columns": ("duckdb", "obstore.store", "pyarrow.csv"),
    "row by row": ("pandas", "sqlite3"),
}


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def memory_kib(pid: int, parent_command: bytes = b"") -> int:
    """Memory of a process and its children now; what they share counts once (proportional set size)."""
    folder = Path(f"/proc/{pid}")
    try:
        command = (folder / "cmdline").read_bytes()
        if command == parent_command:
            return 0  # being started: for this instant it still runs in its parent's memory
        rollup = (folder / "smaps_rollup").read_text()
        threads = [path / "children" for path in (folder / "task").iterdir()]
        children = {int(child) for path in threads for child in path.read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
    return int(own[1] if own else 0) + sum(memory_kib(child, command) for child in children)


def measure(way: str, folder: Path, with_listings: bool) -> None:
    """Print, as JSON, the time of one way in this process, and what it found."""
    for library in LIBRARIES[way]:
        importlib.import_module(library)
    started, used = time.perf_counter(), cpu_seconds()
    reasons = WAYS[way](folder, with_listings)
    figures = {
        "seconds": time.perf_counter() - started,
        "cpu": cpu_seconds() - used,
        "reasons": reasons,
    }
    print(json.dumps(figures))


def child(*arguments: str) -> str:
    """What this program prints when it runs with `arguments` in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def peak_mib(*arguments: str) -> float:
    """Peak memory, in MiB, of a child and its children together. Looking at it slows the child down."""
    command, peak = [sys.executable, __file__, *arguments], 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, memory_kib(process.pid))
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak / 1024


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
                memory = f"  {peak_mib(*flags):6,.0f} MiB" if way == "columns" else ""
                print(
                    f"{videos:>9,} videos  {told:<24}  {way:<10}  {best['seconds']:7.2f} s"
                    f"  {best['cpu']:7.2f} s CPU{memory}",
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
