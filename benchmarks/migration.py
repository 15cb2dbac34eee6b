"""How fast vectors are copied within a store, and how much memory that takes: `make bench-migration`.

Starts SeaweedFS on free ports of 127.0.0.1 and stores 100,000 vectors of 768 numbers. They are copied into
other folders in three ways: by `copy_vectors`, which compares each with its recorded hash and writes it on
condition, once from this machine's file of vectors (there is one after `search` or a comparison), and once
read from the store; and by boto3's `copy_object` in threads, which does neither: the server copies. A
twentieth of the vectors decides how many threads boto3 is given.

Each way is a process of its own. They take turns, a part of the vectors at a time, so that whatever else
runs on the machine slows all of them down alike. Server and client share its cores; processor time is told of
both.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from clipfarm_dagster.manifests.vector_table import (
    CHUNK,
    FUSED_VECTOR_COLUMN,
    vectors_of,
    vectors_writer,
    with_vectors,
)
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster.store.object_store import COPIES_AT_ONCE, Copied
from clipfarm_dagster.vectors.copying import VectorCopy, copy_vectors
from clipfarm_dagster.vectors.npy import l2_normalise, to_npy, vector_sha256

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from workbench.seaweedfs import SeaweedFS, running_seaweedfs

BUCKET = "clipfarm"
DIMENSION = 768
ROUNDS = 5
THREADS = (8, 16, 32)
"""Threads that boto3 is tried with."""


def store_vectors(store: ObjectStore, count: int, folder: Path) -> None:
    """Store random vectors in the order of their ids; write ids and hashes into a file, one line each, and
    the vectors into another, as `modality_vectors` does."""
    rng = np.random.default_rng(0)
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), DIMENSION)
    schema = pa.schema([("video_id", pa.string()), pa.field(FUSED_VECTOR_COLUMN, kind, nullable=False)])
    with (folder / "hashes").open("w") as file, vectors_writer(folder / "vectors", schema) as writer:
        for start in range(0, count, CHUNK):
            ids = [f"{number:011x}" for number in range(start, min(start + CHUNK, count))]
            vectors = l2_normalise(rng.standard_normal((len(ids), DIMENSION)))
            store.put_many([(source(i), to_npy(v)) for i, v in zip(ids, vectors, strict=True)])
            file.writelines(f"{i} {vector_sha256(v)}\n" for i, v in zip(ids, vectors, strict=True))
            writer.write_table(with_vectors(pa.table({"video_id": ids}), vectors, schema))


def source(video_id: str) -> str:
    return f"clipfarm/embeddings/video/{video_id}.npy"


def copies(folder: Path, to: str, start: int, stop: int, *, from_file: bool = False) -> Iterator[VectorCopy]:
    """Some of the copies, read from the file of hashes as they are asked for; with the vectors of the other
    file, as a cut-over takes them."""
    vectors = LocalFile(folder / "vectors", "the file of vectors", "")
    with (folder / "hashes").open() as file:
        lines = islice(file, start, stop)
        while some := [line.split() for line in islice(lines, CHUNK)]:
            own = vectors_of(vectors, [video_id for video_id, _ in some]) if from_file else {}
            for video_id, sha256 in some:
                target = f"clipfarm/generations/video/{to}/{video_id}.npy"
                yield VectorCopy(source(video_id), target, sha256, DIMENSION, vector=own.get(video_id))


Copying = Callable[[Iterator[VectorCopy]], int]


def by_clipfarm() -> Copying:
    store = ObjectStore.open(f"s3://{BUCKET}")

    def copy(todo: Iterator[VectorCopy]) -> int:
        outcomes = Counter(type(answer) for _, answer in copy_vectors(store, todo))
        assert set(outcomes) == {Copied}, outcomes
        return outcomes[Copied]

    return copy


def by_boto3(threads: int) -> Copying:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=threads))

    def copy_one(one: VectorCopy) -> bool:
        place = {"Bucket": BUCKET, "Key": one.source_key}
        answer = client.copy_object(Bucket=BUCKET, Key=one.target_key, CopySource=place)
        return "ETag" in answer["CopyObjectResult"]

    def copy(todo: Iterator[VectorCopy]) -> int:
        with ThreadPoolExecutor(threads) as executor:
            return sum(executor.map(copy_one, todo))

    return copy


def copy_when_told(way: str, folder: Path, to: str) -> None:
    """Copy the parts that are named on standard input, and print of each what it took."""
    copy = by_boto3(int(way)) if way.isdigit() else by_clipfarm()
    for line in sys.stdin:
        start, stop = map(int, line.split())
        before = time.process_time()
        done = copy(copies(folder, to, start, stop, from_file=way == "file"))
        assert done == stop - start
        # not ru_maxrss, which begins with that of the process it was started by
        peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
        print(json.dumps([time.process_time() - before, peak]), flush=True)


@dataclass(frozen=True)
class Took:
    """What copying a part took."""

    rate: float
    """Vectors a second."""
    client: float
    server: float
    """Processor time of each vector, in microseconds."""
    peak_mib: float


class Way:
    """A process that copies in one way."""

    def __init__(self, seaweedfs: SeaweedFS, folder: Path, way: str, to: str | None = None) -> None:
        self.name = f"boto3 copy_object, {way} threads" if way.isdigit() else f"copy_vectors, {way}"
        self._seaweedfs = seaweedfs
        command = [sys.executable, __file__, "--copy", way, str(folder), to or way]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.copy(0, 1)  # imports and connects

    def copy(self, start: int, stop: int) -> Took:
        """Copy a part."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        server, started = self._seaweedfs.cpu_seconds(), time.perf_counter()
        self._process.stdin.write(f"{start} {stop}\n")
        self._process.stdin.flush()
        client, peak_mib = json.loads(self._process.stdout.readline())
        seconds = time.perf_counter() - started
        micro = 1e6 / (stop - start)
        return Took(
            1e6 / micro / seconds, client * micro, (self._seaweedfs.cpu_seconds() - server) * micro, peak_mib
        )

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def tell(name: str, took: Sequence[Took]) -> None:
    rates = sorted(one.rate for one in took)
    print(
        f"{name:32} {median(rates):7,.0f} vectors a second ({rates[0]:,.0f} to {rates[-1]:,.0f}),"
        f" processor time of each: client {median(one.client for one in took):5,.0f} µs,"
        f" server {median(one.server for one in took):5,.0f} µs; peak memory {took[-1].peak_mib:,.0f} MiB",
        flush=True,
    )


def compare(seaweedfs: SeaweedFS, folder: Path, count: int) -> None:
    """Let all ways take turns, and print how they compare."""
    few = max(count // 20, 1)
    tried = {}
    for threads in THREADS:
        way = Way(seaweedfs, folder, str(threads), f"try-{threads}")
        tried[threads] = way.copy(1, few)
        way.end()
        tell(way.name, [tried[threads]])
    best = str(max(tried, key=lambda threads: tried[threads].rate))
    ways = {name: Way(seaweedfs, folder, name) for name in ("file", best, "store")}
    took: dict[str, list[Took]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        start, stop = max(count * number // ROUNDS, 1), count * (number + 1) // ROUNDS
        for name, way in ways.items():
            took[name].append(way.copy(start, stop))
    for name, way in ways.items():
        way.end()
        tell(way.name, took[name])
    for name in ("file", "store"):
        ratios = [ours.rate / theirs.rate for ours, theirs in zip(took[name], took[best], strict=True)]
        memory = [f"{one.peak_mib:,.0f}" for one in took[name]]
        print(
            f"from {name}: {median(ratios):.1f} times as fast as boto3"
            f" ({min(ratios):.1f} to {max(ratios):.1f}); peak memory {memory[0]} MiB"
            f" after {count // ROUNDS:,} vectors, {memory[-1]} MiB after {count:,}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--quick", action="store_const", dest="vectors", const=5_000, help="only 5,000")
    parser.add_argument("--folder", type=Path, help="where the objects lie; by default a temporary folder")
    parser.add_argument("--copy", nargs=3, metavar=("WAY", "FOLDER", "TO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.copy:
        way, folder, to = options.copy
        copy_when_told(way, Path(folder), to)
        return
    with (
        tempfile.TemporaryDirectory(prefix="clipfarm-bench-", dir=options.folder) as name,
        running_seaweedfs(Path(name), max_gigabytes=10) as seaweedfs,
    ):
        os.environ.update(seaweedfs.server.environment)
        started = time.perf_counter()
        store_vectors(ObjectStore.open(f"s3://{BUCKET}"), options.vectors, Path(name))
        print(f"{options.vectors:,} vectors stored in {time.perf_counter() - started:.0f} s", flush=True)
        print(f"copy_vectors keeps {COPIES_AT_ONCE} copies under way", flush=True)
        compare(seaweedfs, Path(name), options.vectors)


if __name__ == "__main__":
    main()
