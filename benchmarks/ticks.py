"""How long a tick of the sensor takes: `make bench-ticks`.

Makes 100,000 videos in a folder store, all three raw objects of each, finished ledgers, and as many
partitions in a Dagster instance on SQLite with the shipped settings; then evaluates the real sensor as
Dagster's daemon does: with nothing to do, with that and a full listing, and after 10,000 ids were added, tick
by tick until all of their runs are launched. Launching them is the daemon's part and is not counted; they
stay in flight.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES, ITEMS_TAG
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.hashing import source_hash

COLUMNS = ("video_id", "captured_at", "title", "description", "query")


def put_metadata(corpus: Corpus, video_ids: Sequence[str]) -> None:
    """Write the CSV, the later ids newer."""
    path = Path(corpus.store.url) / corpus.keys.metadata()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for n, video_id in enumerate(video_ids):
            day, second = 1 + n // 86_400, n % 86_400
            clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
            writer.writerow([video_id, f"2026-01-{day:02}T{clock}Z", f"title {n}", "description", "query"])


def put_raw(corpus: Corpus, video_ids: Sequence[str]) -> None:
    """Write the raw objects, of some bytes each."""
    for stage in Stage:
        (Path(corpus.store.url) / corpus.keys.raw_folder(stage)).mkdir(parents=True, exist_ok=True)
        for video_id in video_ids:
            (Path(corpus.store.url) / corpus.keys.raw(stage, video_id)).write_bytes(b"raw")


def finish(corpus: Corpus) -> None:
    """Record all that there is to do as done."""
    latest = corpus.latest_rows()
    for stage in Stage:
        now = timestamp(datetime.now(UTC))
        with corpus.stage(stage) as opened:
            contract_id = opened.contract.id
            work = opened.plan(latest).work.to_pylist()
            opened.ledger.record(
                [
                    LedgerRow(
                        video_id=row["video_id"],
                        source_hash=row["source_hash"],
                        processed_at=now,
                        status=Status.SUCCESS,
                        contract_id=contract_id,
                        captured_at=timestamp(row["captured_at"]),
                        raw_etag=row["raw_etag"],
                        metadata_hash=row["metadata_hash"],
                        vector_source_hash=source_hash(row["metadata_hash"], row["raw_etag"]),
                        vector_contract_id=contract_id,
                        vector_metadata_hash=row["metadata_hash"],
                    )
                    for row in work
                ]
            )


class Daemon:
    """Evaluates the sensor, keeps its cursor, and queues the runs that it requests."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None
        self.definitions = build_definitions()
        self.sensor = self.definitions.resolve_sensor_def(DEFAULT_NAMES.embedding_sensor)

    def tick(self, label: str) -> int:
        """One tick; prints its time and returns the number of items it requested."""
        started = time.perf_counter()
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources=self.definitions.resources
        ) as context:
            result = self.sensor(context)
        seconds = time.perf_counter() - started
        requests = list(result.run_requests or []) if isinstance(result, dg.SensorResult) else []
        self.cursor = result.cursor if isinstance(result, dg.SensorResult) else context.cursor
        items = sum(int(request.tags[ITEMS_TAG]) for request in requests)
        print(f"{seconds:7.2f} s  {label}: {len(requests)} runs of {items:,} items", flush=True)
        for request in requests:
            self.instance.create_run_for_job(
                self.definitions.resolve_job_def(request.job_name or ""),
                run_config=request.run_config,
                tags=request.tags,
                status=dg.DagsterRunStatus.STARTING,
            )
        return items


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=10_000)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clipfarm-ticks-")))
        os.environ["CLIPFARM_HOME"] = str(folder / "home")
        os.environ["DAGSTER_HOME"] = str(ensure_instance(folder / "dagster"))
        instance = stack.enter_context(dg.DagsterInstance.get())
        corpus = Corpus.open(load_settings())
        video_ids = [f"video-{n:07}" for n in range(options.videos)]
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(put_raw, corpus, video_ids)
            instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, video_ids)
            writing.result()
        put_metadata(corpus, video_ids)
        finish(corpus)

        daemon = Daemon(instance)
        daemon.tick(f"first of {options.videos:,} videos, all done already")
        for _ in range(5):
            daemon.tick("nothing to do")
        assert daemon.cursor is not None
        daemon.cursor = daemon.cursor.replace('"listed_at": ', '"listed_at": -')
        daemon.tick("nothing to do, all listed")
        new = [f"new-{n:07}" for n in range(options.new)]
        put_raw(corpus, new)
        put_metadata(corpus, [*video_ids, *new])
        left, number = options.new * len(Stage), 0
        while left:
            number += 1
            launched = daemon.tick(f"{options.new:,} new ids, tick {number}")
            if not launched:
                raise SystemExit(f"{left} items were never launched")
            left -= launched
        daemon.tick("all in flight")


if __name__ == "__main__":
    main()
