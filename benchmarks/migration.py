"""How fast vectors are copied within a store, and how much memory that takes: `make bench-migration`.

Starts SeaweedFS on free ports of 127.0.0.1 and stores 100,000 vectors of 768 numbers. They are copied into
other folders by `copy_vectors`, which reads each, compares it with its recorded hash and writes it on
condition, and by boto3's `copy_object` in threads, which does neither: the server copies. A tenth of the
vectors decides how many threads boto3 is given. Each copying is a process of its own, whose peak memory is
read when it ends. Server and client share the machine's cores, so what the server needs for a vector bounds
both; the processor time is that of the client alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.object_store import COPIES_AT_ONCE, Copied
from clipfarm_dagster.vectors.copying import VectorCopy, copy_vectors
from clipfarm_dagster.vectors.npy import l2_normalise, to_npy, vector_sha256

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from workbench.seaweedfs import running_seaweedfs

BUCKET = "clipfarm"
DIMENSION = 768
CHUNK = 2000
THREADS = (16, 32)
"""Threads that boto3 is tried with."""


@dataclass(frozen=True)
class Figures:
    """What one copying took."""

    vectors: int
    seconds: float
    cpu_seconds: float
    """Processor time of the process that copied."""
    peak_mib: float

    @property
    def rate(self) -> float:
        """Vectors a second."""
        return self.vectors / self.seconds


def store_vectors(store: ObjectStore, count: int, hashes: Path) -> None:
    """Store random vectors, and write their ids and hashes into a file, one line each."""
    rng = np.random.default_rng(0)
    with hashes.open("w") as file:
        for start in range(0, count, CHUNK):
            ids = [f"{number * 7919 % count:011x}" for number in range(start, min(start + CHUNK, count))]
            vectors = l2_normalise(rng.standard_normal((len(ids), DIMENSION)))
            store.put_many([(source(i), to_npy(v)) for i, v in zip(ids, vectors, strict=True)])
            file.writelines(f"{i} {vector_sha256(v)}\n" for i, v in zip(ids, vectors, strict=True))


def source(video_id: str) -> str:
    return f"clipfarm/embeddings/video/{video_id}.npy"


def copies(hashes: Path, count: int, folder: str) -> Iterator[VectorCopy]:
    """The first copies, read from the file as they are asked for."""
    with hashes.open() as file:
        for line in islice(file, count):
            video_id, sha256 = line.split()
            target = f"clipfarm/generations/video/{folder}/{video_id}.npy"
            yield VectorCopy(source(video_id), target, sha256, DIMENSION)


def copy_by_clipfarm(todo: Iterator[VectorCopy]) -> int:
    store = ObjectStore.open(f"s3://{BUCKET}")
    outcomes = Counter(type(answer) for _, answer in copy_vectors(store, todo))
    assert set(outcomes) == {Copied}, outcomes
    return outcomes[Copied]


def copy_by_boto3(todo: Iterator[VectorCopy], threads: int) -> int:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=threads))

    def copy(one: VectorCopy) -> bool:
        place = {"Bucket": BUCKET, "Key": one.source_key}
        answer = client.copy_object(Bucket=BUCKET, Key=one.target_key, CopySource=place)
        return "ETag" in answer["CopyObjectResult"]

    with ThreadPoolExecutor(threads) as executor:
        return sum(executor.map(copy, todo))


def copy_and_print(hashes: Path, count: int, threads: int, folder: str) -> None:
    """Copy once, by boto3 if threads are given, and print the figures."""
    todo = copies(hashes, count, folder)
    started, before = time.perf_counter(), time.process_time()
    done = copy_by_boto3(todo, threads) if threads else copy_by_clipfarm(todo)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - before
    assert done == count
    # not ru_maxrss, which begins with that of the process it was started by
    peak_mib = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps([done, seconds, cpu_seconds, peak_mib]))


def in_a_process(hashes: Path, count: int, threads: int, folder: str) -> Figures:
    command = [sys.executable, __file__, "--copy", str(hashes), str(count), str(threads), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures = Figures(*json.loads(done.stdout))
    name = f"boto3 copy_object, {threads} threads" if threads else f"copy_vectors, {COPIES_AT_ONCE} at a time"
    print(
        f"{name:32} {figures.vectors:8,} vectors {figures.rate:8,.0f} a second,"
        f" {1e6 * figures.cpu_seconds / figures.vectors:6,.0f} µs of processor time each,"
        f" peak memory {figures.peak_mib:,.0f} MiB",
        flush=True,
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--quick", action="store_const", dest="vectors", const=5_000, help="only 5,000")
    parser.add_argument("--folder", type=Path, help="where the objects lie; by default a temporary folder")
    parser.add_argument("--copy", nargs=4, metavar=("FILE", "COUNT", "THREADS", "TO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.copy:
        hashes, count, threads, to = options.copy
        copy_and_print(Path(hashes), int(count), int(threads), to)
        return
    with (
        tempfile.TemporaryDirectory(prefix="clipfarm-bench-", dir=options.folder) as name,
        running_seaweedfs(Path(name), max_gigabytes=10) as seaweedfs,
    ):
        os.environ.update(seaweedfs.server.environment)
        hashes, count = Path(name) / "hashes", options.vectors
        started = time.perf_counter()
        store_vectors(ObjectStore.open(f"s3://{BUCKET}"), count, hashes)
        print(f"{count:,} vectors stored in {time.perf_counter() - started:.0f} s", flush=True)
        tenth = max(count // 10, 1)
        small = in_a_process(hashes, tenth, 0, "small")
        tried = {threads: in_a_process(hashes, tenth, threads, f"boto3-{threads}") for threads in THREADS}
        threads = max(tried, key=lambda threads: tried[threads].rate)
        theirs = in_a_process(hashes, count, threads, "boto3")
        ours = in_a_process(hashes, count, 0, "clipfarm")
        print(
            f"{ours.rate / theirs.rate:.1f} times as fast as boto3, for"
            f" {theirs.cpu_seconds / ours.cpu_seconds:.1f} times less processor time of the client; peak"
            f" memory {small.peak_mib:,.0f} MiB at {tenth:,} vectors, {ours.peak_mib:,.0f} MiB at {count:,}"
        )


if __name__ == "__main__":
    main()
