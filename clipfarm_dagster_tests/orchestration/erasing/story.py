"""An instance in which videos have left every kind of trace, and what Dagster says of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.selector import InstigatorSelector
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    DynamicPartitionsRequestResult,
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.orchestration.erasing.databases import is_postgres, open_databases
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.sensors.watching import LastPlan
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

KEY = DEFAULT_NAMES.embedding(Stage.TEXT)
RAW = DEFAULT_NAMES.raw(Stage.TEXT)
GONE = "clip-0001"
NEIGHBOURS = ["clip-00012", "x-clip-0001", "clip-0001.b", "clip-0003"]
IDS = [GONE, *NEIGHBOURS]
SAID = "what only this one says"
"""The transcript of the video that goes; previews show it."""

_ORIGIN = RemoteInstigatorOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("clipfarm_dagster.definitions"), "__repository__"),
    DEFAULT_NAMES.embedding_sensor,
)
_SELECTOR = InstigatorSelector(
    location_name="clipfarm_dagster.definitions",
    repository_name="__repository__",
    name=DEFAULT_NAMES.embedding_sensor,
)

Rows = dict[tuple[str, str, int], dict[str, Any]]


def live_through(corpus: Corpus, instance: dg.DagsterInstance) -> None:
    """Runs by list that fail and succeed, runs of a partition and of a range, a backfill, ticks and logs."""
    put_metadata(corpus, [metadata_row(video_id) for video_id in IDS])
    for video_id in IDS:
        put_transcript(corpus, video_id, f"said in {video_id}")
    corpus.store.put(corpus.keys.raw(Stage.TEXT, GONE), b'{"words": 1}')
    tick(instance)
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)
    assert {run.status for run in instance.get_runs()} >= {dg.DagsterRunStatus.FAILURE}
    put_transcript(corpus, GONE, SAID)
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)
    assert materialize(
        instance,
        tags={ASSET_PARTITION_RANGE_START_TAG: GONE, ASSET_PARTITION_RANGE_END_TAG: IDS[-1]},
    ).success
    for partition in [NEIGHBOURS[0], GONE]:
        assert materialize(instance, partition_key=partition).success
    instance.report_runless_asset_event(dg.AssetObservation(RAW, partition=GONE))
    launch_backfill(instance)
    statuses(instance)
    write_log(instance, instance.get_runs()[0].run_id)
    kept = Path(instance.root_directory) / "storage" / "thumbnails"  # as an IO manager keeps partitions
    kept.mkdir(parents=True, exist_ok=True)
    for video_id in IDS:
        (kept / video_id).write_bytes(b"\0")


def materialize(instance: dg.DagsterInstance, **options: Any) -> dg.ExecuteInProcessResult:
    """A run of the asset's own."""
    job = defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, asset_selection=[KEY], raise_on_error=False, **options)


def tick(instance: dg.DagsterInstance) -> None:
    """A tick of the sensor, recorded as the daemon does it, with a cursor that names videos."""
    daemon = Daemon(instance)
    requests = daemon.tick()
    cursor = replace(LastPlan.from_cursor(daemon.cursor), found={"text": [GONE, NEIGHBOURS[0]]}).to_cursor()
    instance.add_instigator_state(
        InstigatorState(
            _ORIGIN,
            InstigatorType.SENSOR,
            InstigatorStatus.RUNNING,
            SensorInstigatorData(cursor=cursor, min_interval=30),
        )
    )
    _record_tick(
        instance,
        TickStatus.SUCCESS,
        cursor=cursor,
        run_requests=requests,
        dynamic_partitions_request_results=[
            DynamicPartitionsRequestResult(DEFAULT_NAMES.partitions_name, IDS, None, [])
        ],
    )
    _record_tick(instance, TickStatus.SKIPPED, skip_reason=f"waits for {GONE}, {NEIGHBOURS[0]}")


def _record_tick(instance: dg.DagsterInstance, status: TickStatus, **data: Any) -> None:
    instance.create_tick(
        TickData(
            instigator_origin_id=_ORIGIN.get_id(),
            instigator_name=DEFAULT_NAMES.embedding_sensor,
            instigator_type=InstigatorType.SENSOR,
            status=status,
            timestamp=time.time(),
            run_ids=[],
            run_keys=[],
            selector_id=_SELECTOR.get_id(),
            **data,
        )
    )


def launch_backfill(instance: dg.DagsterInstance, video_ids: Sequence[str] = IDS[:3]) -> None:
    """A backfill of some partitions, as the UI stores it."""
    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id="backfill1",
            asset_graph=defs.resolve_asset_graph(),
            partition_names=list(video_ids),
            asset_selection=[KEY],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=f"again for {GONE}",
            description=None,
            run_config=None,
        )
    )


def write_log(instance: dg.DagsterInstance, run_id: str) -> None:
    """What a step prints."""
    with ExitStack() as stack:
        key = [run_id, "compute_logs", "step"]
        log: Any = stack.enter_context(
            instance.compute_log_manager.open_log_stream(key, ComputeIOType.STDERR)
        )
        print(f"\x1b[34m{GONE}\x1b[0m: read raw/text/{GONE}.json", file=log)
        print(f"{NEIGHBOURS[0]} and {NEIGHBOURS[2]}.json", file=log)


def statuses(instance: dg.DagsterInstance) -> dict[str, set[str]]:
    """Dagster's status of the embeddings' partitions, brought up to date in its cache."""
    definition = DEFAULT_NAMES.partitions_def
    value = get_and_update_asset_status_cache_value(instance, KEY, definition, instance)
    assert value is not None
    subsets = {
        "materialized": value.deserialize_materialized_partition_subsets(definition),
        "failed": value.deserialize_failed_partition_subsets(definition),
    }
    return {name: set(subset.get_partition_keys()) for name, subset in subsets.items()}


def all_rows(instance: dg.DagsterInstance) -> Rows:
    """Every row of every table that Dagster has."""
    rows: Rows = {}
    for database in open_databases(instance):
        for table in database.tables:
            if table.name in database.table_names():
                with database.reading() as connection:
                    for row in connection.execute(sqlalchemy.select(table)).mappings():
                        rows[database.name, table.name, row["id"]] = dict(row)
    return rows


def read_everything(instance: dg.DagsterInstance) -> dict[str, Any]:
    """What Dagster reads and deserialises for its pages."""
    runs = instance.get_runs()
    state = instance.get_instigator_state(_ORIGIN.get_id(), _SELECTOR.get_id())
    return {
        "runs": {run.run_id: run for run in runs},
        "records": len(instance.get_run_records()),
        "logs": {run.run_id: list(instance.all_logs(run.run_id)) for run in runs},
        "stats": [instance.get_run_stats(run.run_id) for run in runs],
        "snapshots": [instance.get_job_snapshot(run.job_snapshot_id) for run in runs if run.job_snapshot_id],
        "backfills": instance.get_backfills(),
        "ticks": instance.get_ticks(_ORIGIN.get_id(), _SELECTOR.get_id()),
        "state": state,
        "assets": instance.get_asset_records([KEY, RAW]),
    }


def files(instance: dg.DagsterInstance) -> list[Path]:
    """The files of an instance, databases among them."""
    return [path for path in Path(instance.root_directory).rglob("*") if path.is_file()]


def on_postgres(instance: dg.DagsterInstance) -> bool:
    """Whether the events are not in files."""
    return is_postgres(instance.event_log_storage)
