"""How long it takes to erase one video among many: `make bench-erasure`.

Starts SeaweedFS on free ports of 127.0.0.1 and makes 100,000 videos there: raw objects of some bytes, vectors
of 768 numbers in each of three modalities, their ledgers with snapshots, manifests and a fused manifest with
all vectors, and copies of these in the home folder. A Dagster instance on SQLite with the shipped settings
has their partitions, and their events as runs of 500 videos have left them: ClipFarm writes the first one of
a stage, all others are copies of it with another id. Ids are plain numbers, so that many begin with others.

Then one of the videos is erased as `clipfarm erase` does it, and it is looked for everywhere.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.ledger.rows import WorkItem, success_row
from clipfarm_dagster.manifests.fusion import fused_schema
from clipfarm_dagster.manifests.refresh import fused_file, refresh_manifest, stored_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.manifests.vector_table import vectors_writer, with_vectors
from clipfarm_dagster.orchestration.erasure import erase_videos
from clipfarm_dagster.orchestration.launching import announce
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.hashing import metadata_hash, source_hash
from clipfarm_dagster.vectors.npy import l2_normalise, to_npy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from workbench.event_copies import copy_events
from workbench.seaweedfs import SeaweedFS, running_seaweedfs

BUCKET = "clipfarm"
DIMENSION = 768
CHUNK = 2_000
VIDEOS_PER_RUN = 500
CAPTURED = "2026-01-31T08:00:00.000000Z"


@contextmanager
def told(what: str, seaweedfs: SeaweedFS) -> Iterator[None]:
    """Print what a block took: seconds, and processor seconds of this process and of the server."""
    started, own, server = time.perf_counter(), time.process_time(), seaweedfs.cpu_seconds()
    yield
    print(
        f"{time.perf_counter() - started:7.1f} s, {time.process_time() - own:6.1f} s of processor time,"
        f" server {seaweedfs.cpu_seconds() - server:6.1f} s: {what}",
        flush=True,
    )


def put_inputs(corpus: Corpus, video_ids: Sequence[str]) -> None:
    """Write the CSV and the raw objects."""
    lines = ["video_id,captured_at,title,description,query"]
    lines += [f"{video_id},{CAPTURED},title,description,query" for video_id in video_ids]
    corpus.store.put(corpus.keys.metadata(), "\n".join(lines).encode())
    for stage in Stage:
        for start in range(0, len(video_ids), CHUNK):
            some = video_ids[start : start + CHUNK]
            corpus.store.put_many([(corpus.keys.raw(stage, video_id), b"raw") for video_id in some])


def embed(corpus: Corpus, stage: Stage, video_ids: Sequence[str]) -> None:
    """Store and record a random vector for each video, as the engine does."""
    rng, now, hashed = np.random.default_rng(len(stage)), datetime.now(UTC), metadata_hash(["1"])
    contract = corpus.contract(stage)
    with corpus.stage(stage) as opened:
        opened.ledger.record_contract(contract)
        for start in range(0, len(video_ids), CHUNK):
            some = video_ids[start : start + CHUNK]
            vectors = l2_normalise(rng.standard_normal((len(some), DIMENSION)))
            keys = [corpus.keys.embedding(stage, video_id) for video_id in some]
            corpus.store.put_many([(key, to_npy(v)) for key, v in zip(keys, vectors, strict=True)])
            opened.ledger.record(
                [
                    success_row(
                        WorkItem(video_id, {}, hashed, CAPTURED, None),
                        contract,
                        now,
                        source_hash=source_hash(hashed, "1"),
                        raw_etag="1",
                        raw_sha256="1",
                        artifact_key=key,
                        vector=vector,
                        seconds=0.1,
                        note=None,
                    )
                    for video_id, key, vector in zip(some, keys, vectors, strict=True)
                ]
            )
        opened.ledger.push()
        refresh_manifest(opened)


def fuse(corpus: Corpus, folder: Path) -> None:
    """Write the file of fused vectors for the rows of the manifests, with other numbers, and copy it here."""
    rng, manifests = np.random.default_rng(0), {stage: stored_manifest(corpus, stage)[0] for stage in Stage}
    schema = fused_schema(make_strategy("concat", ""), len(Stage) * DIMENSION)
    first = manifests[Stage.TEXT].table
    columns, count = {name: first[name] for name in ("video_id", "captured_at")}, first.num_rows
    for stage, manifest in manifests.items():
        for name in ("embedding_key", "source_hash", "artifact_sha256"):
            columns[f"{stage}_{name}"] = manifest.table[name]
        columns[f"{stage}_contract_id"] = pa.array([manifest.contract.id] * count)
    columns["fused_dim"] = pa.array([len(Stage) * DIMENSION] * count, pa.int32())
    table = pa.table(columns).select([name for name in schema.names if name in columns])
    with vectors_writer(folder / "fused", schema) as writer:
        for start in range(0, count, CHUNK):
            some = table.slice(start, CHUNK)
            vectors = l2_normalise(rng.standard_normal((some.num_rows, len(Stage) * DIMENSION)))
            writer.write_table(with_vectors(some, vectors, schema))
    with (folder / "fused").open("rb") as file:
        parts = iter(lambda: file.read(8 << 20), b"")
        corpus.store.put_stream(corpus.keys.fused_manifest("concat"), parts)
    fused_file(corpus, "concat")


def tell_dagster(corpus: Corpus, instance: dg.DagsterInstance, video_ids: Sequence[str]) -> None:
    """Partitions, runs, and events."""
    instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, list(video_ids))
    definitions = build_definitions()
    for stage in Stage:
        with corpus.stage(stage) as opened:
            announce(instance, DEFAULT_NAMES, opened, list(opened.ledger.rows([video_ids[0]]).values()))
        job = definitions.resolve_job_def(DEFAULT_NAMES.embedding_job(stage))
        for start in range(0, len(video_ids), VIDEOS_PER_RUN):
            some = list(video_ids[start : start + VIDEOS_PER_RUN])
            run = instance.create_run_for_job(
                job,
                run_config=id_list_run_config(DEFAULT_NAMES, stage, some),
                tags=id_list_run_tags(DEFAULT_NAMES, stage, some),
                status=dg.DagsterRunStatus.SUCCESS,
            )
            copy_events(instance, DEFAULT_NAMES.embedding(stage), video_ids[0], some, run.run_id)


def size_of(folder: Path) -> float:
    """GiB of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30


def run(folder: Path, seaweedfs: SeaweedFS, count: int) -> None:
    """Make everything, erase a video, and print what that took."""
    home = folder / "home"
    os.environ["DAGSTER_HOME"] = str(ensure_instance(home / "dagster"))
    corpus = Corpus.open(load_settings(home=home, store_url=f"s3://{BUCKET}"))
    video_ids = [f"clip-{number}" for number in range(1, count + 1)]
    gone = video_ids[count // 3]
    with told("raw objects and CSV made", seaweedfs):
        put_inputs(corpus, video_ids)
    for stage in Stage:
        with told(f"{stage} vectors, ledger and manifest made", seaweedfs):
            embed(corpus, stage, video_ids)
    with told("fused vectors made", seaweedfs):
        fuse(corpus, folder)
    with dg.DagsterInstance.get() as instance:
        with told("Dagster's partitions, runs and events made", seaweedfs):
            tell_dagster(corpus, instance, video_ids)
        print(f"{count:,} videos; {size_of(home):.1f} GiB in the home folder", flush=True)
        steps = [("", time.perf_counter(), time.process_time(), seaweedfs.cpu_seconds())]

        def say(line: str) -> None:
            steps.append((line, time.perf_counter(), time.process_time(), seaweedfs.cpu_seconds()))

        done = erase_videos(corpus, instance, DEFAULT_NAMES, [gone], say=say)
        say("")
    for (what, *before), (_, *after) in pairwise(steps[1:]):
        wall, own, server = (a - b for a, b in zip(after, before, strict=True))
        print(f"{wall:7.1f} s, {own:6.1f} s of processor time, server {server:6.1f} s: {what}")
    wall, own, server = (a - b for a, b in zip(steps[-1][1:], steps[0][1:], strict=True))
    print(f"{wall:7.1f} s, {own:6.1f} s of processor time, server {server:6.1f} s: one of {count:,} erased")
    print(f"removed: {done.removed.to_dict()}")
    if not done.complete:
        raise SystemExit(f"left: {done.left.to_dict()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--quick", action="store_const", dest="videos", const=2_000, help="only 2,000")
    parser.add_argument("--folder", type=Path, help="where everything lies; by default a temporary folder")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("CLIPFARM_", "DAGSTER_"))]:
        del os.environ[name]
    with (
        tempfile.TemporaryDirectory(prefix="clipfarm-bench-", dir=options.folder) as name,
        running_seaweedfs(Path(name), max_gigabytes=10) as seaweedfs,
    ):
        os.environ.update(seaweedfs.server.environment)
        run(Path(name), seaweedfs, options.videos)


if __name__ == "__main__":
    main()
