"""What recording costs a run, per item, on Dagster's stock SQLite instance and on the shipped one.

Each run records one materialization (8 metadata entries) and one observation an item, and does nothing else.
Usage: python benchmarks/recording.py [items]
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.orchestration.recording import DATA_VERSION_TAG, data_version_tags, record_events

VIDEOS = dg.DynamicPartitionsDefinition(name="videos")
RAW = dg.AssetKey("raw_video")
EMBEDDING = dg.AssetKey("video_embedding")
CHUNK = 250
"""Items recorded at a time, as the engine does."""

spent: list[float] = []


class Items(dg.Config):
    one_by_one: bool
    count: int


@dg.asset(
    key=EMBEDDING,
    deps=[RAW],
    partitions_def=VIDEOS,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=100_000),
    output_required=False,
)
def embedding(context: dg.AssetExecutionContext, config: Items):
    yield from ()
    record(context, context.partition_keys, config.one_by_one)


@dg.op
def embed_ids(context: dg.OpExecutionContext, config: Items) -> None:
    record(context, keys(config.count), config.one_by_one)


@dg.job(executor_def=dg.in_process_executor)
def id_list_job() -> None:
    embed_ids()


def record(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, ids: Sequence[str], one_by_one: bool
) -> None:
    start = time.perf_counter()
    for first in range(0, len(ids), CHUNK):
        events = [event for key in ids[first : first + CHUNK] for event in item_events(key)]
        if one_by_one:
            for event in events:
                context.log_event(event)
        else:
            record_events(context, events)
    spent.append(time.perf_counter() - start)


def item_events(key: str) -> tuple[dg.AssetObservation, dg.AssetMaterialization]:
    metadata: dict[str, dg.MetadataValue | str | int | float] = {
        "artifact": dg.MetadataValue.path(f"clipfarm/embeddings/video/{key}.npy"),
        "model": "MCG-NJU/videomae-base",
        "revision": "0" * 40,
        "dim": 768,
        "contract": "0123456789abcdef",
        "source_hash": "0" * 64,
        "raw_etag": "0" * 32,
        "seconds": 0.25,
    }
    return (
        dg.AssetObservation(RAW, partition=key, tags={DATA_VERSION_TAG: "0" * 32}),
        dg.AssetMaterialization(
            EMBEDDING,
            partition=key,
            metadata=metadata,
            tags=data_version_tags("0" * 64, "0123456789abcdef", {RAW: "0" * 32}),
        ),
    )


def keys(count: int) -> list[str]:
    return [f"video-{number:06}" for number in range(count)]


@dataclass
class Cost:
    """Milliseconds an item."""

    record: float
    run: float


def measure(*, shipped: bool, one_by_one: bool, in_range: bool, count: int) -> Cost:
    """Run once in a fresh instance, after one item to warm up; the run's cost is less that of one item."""
    with tempfile.TemporaryDirectory() as home:
        if shipped:
            ensure_instance(Path(home))
        os.environ["DAGSTER_HOME"] = home
        with dg.DagsterInstance.get() as instance:
            instance.add_dynamic_partitions("videos", keys(count))
            small = _run(instance, one_by_one, in_range, 1)
            whole = _run(instance, one_by_one, in_range, count)
    return Cost(record=1000 * spent[-1] / count, run=1000 * (whole - small) / count)


def _run(instance: dg.DagsterInstance, one_by_one: bool, in_range: bool, count: int) -> float:
    config = {"one_by_one": one_by_one, "count": count}
    start = time.perf_counter()
    if in_range:
        result = DEFS.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[EMBEDDING],
            run_config={"ops": {"video_embedding": {"config": config}}},
            tags={
                "dagster/asset_partition_range_start": keys(1)[0],
                "dagster/asset_partition_range_end": keys(count)[-1],
            },
        )
    else:
        result = id_list_job.execute_in_process(
            instance=instance, run_config={"ops": {"embed_ids": {"config": config}}}
        )
    assert result.success
    return time.perf_counter() - start


DEFS = dg.Definitions(assets=[dg.AssetSpec(RAW, partitions_def=VIDEOS), embedding], jobs=[id_list_job])


def main(count: int) -> None:
    print(f"{count} items a run; milliseconds an item; ratio: whole run to the shipped way\n")
    print("| run | instance | events by | recording | whole run | ratio |\n|---|---|---|---|---|---|")
    for in_range in (False, True):
        costs: dict[tuple[str, str], Cost] = {}
        for instance, how in (
            ("stock", "log_event"),
            ("stock", "record_events"),
            ("shipped", "record_events"),
        ):
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
                costs[instance, how] = measure(
                    shipped=instance == "shipped",
                    one_by_one=how == "log_event",
                    in_range=in_range,
                    count=count,
                )
        best = costs["shipped", "record_events"].run
        for (instance, how), cost in costs.items():
            kind = "range" if in_range else "id list"
            figures = f"{cost.record:.2f} | {cost.run:.2f} | {cost.run / best:.1f}"
            print(f"| {kind} | {instance} | {how} | {figures} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
