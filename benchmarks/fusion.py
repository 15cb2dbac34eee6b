"""How long fusing takes, and how much memory: `make bench-fusion`.

Starts SeaweedFS on free ports of 127.0.0.1, stores 100,000 videos' vectors of 768 numbers in each of three
modalities, with their ledgers, and brings manifests and the fused manifest (`concat`) up to date: from
nothing, and again after 1% of the videos were embedded anew in all modalities. Each is a process of its own,
whose peak memory is read when it ends. Then the objects read a second, beside boto3 with as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.rows import WorkItem, success_row
from clipfarm_dagster.manifests.refresh import fused_file, refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore, StoredObject
from clipfarm_dagster.store.object_store import CONCURRENCY
from clipfarm_dagster.vectors.hashing import metadata_hash, source_hash
from clipfarm_dagster.vectors.npy import l2_normalise, to_npy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from workbench.seaweedfs import running_seaweedfs

BUCKET = "clipfarm"
DIMENSION = 768
CHUNK = 2000


def open_corpus(home: Path) -> Corpus:
    return Corpus.open(load_settings(home=home, store_url=f"s3://{BUCKET}"))


def embed(corpus: Corpus, video_ids: Sequence[str], version: str) -> None:
    """Store and record a random vector for each video in each modality, as the engine does."""
    rng = np.random.default_rng(list(version.encode()))
    now = datetime.now(UTC)
    hashed = metadata_hash([version])
    for stage in Stage:
        contract = corpus.contract(stage)
        with corpus.ledger(stage) as ledger:
            ledger.record_contract(contract)
            for start in range(0, len(video_ids), CHUNK):
                some = video_ids[start : start + CHUNK]
                vectors = l2_normalise(rng.standard_normal((len(some), DIMENSION)))
                keys = [corpus.keys.embedding(stage, video_id) for video_id in some]
                corpus.store.put_many([(k, to_npy(v)) for k, v in zip(keys, vectors, strict=True)])
                previous = ledger.rows(some)
                ledger.record(
                    [
                        success_row(
                            WorkItem(
                                video_id, {}, hashed, "2026-01-31T08:00:00.000000Z", previous.get(video_id)
                            ),
                            contract,
                            now,
                            source_hash=source_hash(hashed, version),
                            raw_etag=version,
                            raw_sha256=version,
                            artifact_key=key,
                            vector=vector,
                            seconds=0.1,
                            note=None,
                        )
                        for video_id, key, vector in zip(some, keys, vectors, strict=True)
                    ]
                )


def refresh(home: Path) -> None:
    """Bring everything up to date once, and print what it took."""
    started = time.perf_counter()
    corpus = open_corpus(home)
    for stage in Stage:
        with corpus.stage(stage) as opened:
            refresh_manifest(opened)
    manifests = time.perf_counter() - started
    done = refresh_fused(corpus, make_strategy("concat", ""))
    figures = {
        "seconds": time.perf_counter() - started,
        "manifests_seconds": manifests,
        "rows": done.fusion.rows,
        "read": done.fusion.objects_read,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def in_a_process(home: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--refresh", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def objects_a_second(store: ObjectStore, keys: Sequence[str]) -> float:
    started = time.perf_counter()
    read = sum(isinstance(answer, StoredObject) for _, answer in store.get_many(keys))
    assert read == len(keys)
    return read / (time.perf_counter() - started)


def objects_a_second_boto3(keys: Sequence[str]) -> float:
    import boto3
    from botocore.config import Config

    config = Config(max_pool_connections=CONCURRENCY)
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], config=config)
    with ThreadPoolExecutor(CONCURRENCY) as executor:
        started = time.perf_counter()
        read: int = sum(
            executor.map(lambda k: client.get_object(Bucket=BUCKET, Key=k)["Body"].read() != b"", keys)
        )
        assert read == len(keys)
        return read / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the objects lie; by default a temporary folder")
    parser.add_argument("--refresh", type=Path, metavar="HOME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.refresh:
        refresh(options.refresh)
        return
    with (
        tempfile.TemporaryDirectory(prefix="clipfarm-bench-", dir=options.folder) as name,
        running_seaweedfs(Path(name), max_gigabytes=10) as seaweedfs,
    ):
        os.environ.update(seaweedfs.server.environment)
        home = Path(name) / "home"
        ids = [f"{number * 7919 % options.videos:011x}" for number in range(options.videos)]
        corpus = open_corpus(home)
        started = time.perf_counter()
        embed(corpus, ids, "1")
        print(f"{len(ids):,} videos stored in {time.perf_counter() - started:.0f} s", flush=True)

        full = in_a_process(home)
        print(f"full build      {_line(full)}", flush=True)
        embed(corpus, ids[::100][: len(ids) // 100], "2")
        update = in_a_process(home)
        share = update["seconds"] / full["seconds"]
        print(f"1% changed      {_line(update)}; {share:.1%} of the full build", flush=True)
        path = fused_file(corpus, "concat").path
        started = time.perf_counter()
        with path.open("rb") as file:
            corpus.store.put_stream("bench/upload", iter(partial(file.read, 8 << 20), b""))
        seconds = time.perf_counter() - started
        print(
            f"of which the upload of {path.stat().st_size / 1e6:,.0f} MB alone takes {seconds:.1f} s",
            flush=True,
        )
        idle = in_a_process(home)
        print(f"nothing changed {_line(idle)}", flush=True)

        keys = [corpus.keys.embedding(Stage.TEXT, video_id) for video_id in ids[:10_000]]
        rates = {"ClipFarm": [], "boto3": []}  # type: dict[str, list[float]]
        for _ in range(3):
            rates["ClipFarm"].append(objects_a_second(corpus.store, keys))
            rates["boto3"].append(objects_a_second_boto3(keys))
        ours, theirs = (sorted(rates[name])[1] for name in ("ClipFarm", "boto3"))
        print(
            f"objects read a second, {CONCURRENCY} at a time: {ours:,.0f}; boto3 with {CONCURRENCY} threads:"
            f" {theirs:,.0f}; {ours / theirs:.1f} times"
        )


def _line(figures: dict[str, float]) -> str:
    return (
        f"{figures['seconds']:6.1f} s (manifests {figures['manifests_seconds']:.1f} s),"
        f" {figures['rows']:,} rows, {figures['read']:,} vectors read, peak memory"
        f" {figures['peak_mib']:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
