"""The pooled event log against Dagster's own: same files, same answers, many processes and threads."""

import contextlib
import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.event_api import EventLogCursor
from dagster._core.events import (
    AssetMaterializationPlannedData,
    AssetObservationData,
    DagsterEvent,
    EventSpecificData,
    StepMaterializationData,
)
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.sql import run_alembic_downgrade

from clipfarm_dagster.instance import event_log
from clipfarm_dagster.instance.event_log import PooledSqliteEventLogStorage

ASSET, OTHER = dg.AssetKey("video_embedding"), dg.AssetKey("raw_video")
KEYS = [f"v{n}" for n in range(12)]
Kind = dg.DagsterEventType


@pytest.fixture
def pooled(tmp_path: Path) -> Iterator[PooledSqliteEventLogStorage]:
    storage = PooledSqliteEventLogStorage(str(tmp_path / "home"))
    yield storage
    storage.dispose()


def stock_storage(home: Path) -> SqliteEventLogStorage:
    return SqliteEventLogStorage(str(home / "history" / "runs"))


def materialized(run_id: str, key: str, version: str = "1", asset: dg.AssetKey = ASSET) -> dg.EventLogEntry:
    event = dg.AssetMaterialization(asset, partition=key, tags={"dagster/data_version": version})
    return entry(run_id, Kind.ASSET_MATERIALIZATION, StepMaterializationData(event))


def observed(run_id: str, key: str, version: str = "1") -> dg.EventLogEntry:
    event = dg.AssetObservation(OTHER, partition=key, tags={"dagster/data_version": version})
    return entry(run_id, Kind.ASSET_OBSERVATION, AssetObservationData(event))


def planned(run_id: str, key: str | None) -> dg.EventLogEntry:
    data = AssetMaterializationPlannedData(ASSET, partition=key)
    return entry(run_id, Kind.ASSET_MATERIALIZATION_PLANNED, data)


def entry(run_id: str, kind: dg.DagsterEventType, data: EventSpecificData | None) -> dg.EventLogEntry:
    event = DagsterEvent(kind.value, "job", event_specific_data=data, step_key="step")
    return dg.EventLogEntry(
        error_info=None,
        level=10,
        user_message="",
        run_id=run_id,
        timestamp=time.time(),
        step_key="step",
        job_name="job",
        dagster_event=event,
    )


def message(run_id: str, text: str) -> dg.EventLogEntry:
    return dg.EventLogEntry(
        error_info=None, level=20, user_message=text, run_id=run_id, timestamp=time.time(), job_name="job"
    )


def story() -> list[list[dg.EventLogEntry]]:
    """What several runs and a sensor may write, as batches."""
    return [
        [message("run-1", "hello")],
        [entry("run-1", Kind.RUN_START, None)],
        [planned("run-1", key) for key in KEYS[:6]],
        [materialized("run-1", key) for key in KEYS[:4]],
        [observed("", key) for key in KEYS],
        [planned("run-2", None)],
        [materialized("run-2", key, "2") for key in KEYS[2:9]] + [observed("run-2", key) for key in KEYS[:3]],
        [materialized("run-2", KEYS[0], asset=dg.AssetKey(["another", "asset"]))],
        [planned("run-3", KEYS[1]), message("run-3", "mixed"), materialized("run-2", KEYS[2], "3")],
        [entry("run-1", Kind.RUN_FAILURE, None)],
    ]


def answers(storage: SqliteEventLogStorage) -> dict[str, object]:
    """What Dagster asks an event log."""
    keys = [ASSET, OTHER, dg.AssetKey(["another", "asset"])]
    found: dict[str, object] = {
        "keys": sorted(key.to_string() for key in storage.all_asset_keys()),
        "maximum": storage.get_maximum_record_id(),
        "records": sorted(
            (record.asset_entry for record in storage.get_asset_records(keys)), key=lambda e: str(e.asset_key)
        ),
        "failures": storage.fetch_run_status_changes(Kind.RUN_FAILURE, limit=10),
    }
    for run_id in ("run-1", "run-2", "run-3", ""):
        found[f"log of {run_id}"] = storage.get_records_for_run(run_id).records
        found[f"stats of {run_id}"] = storage.get_stats_for_run(run_id)
        found[f"partitions of {run_id}"] = storage.get_asset_partitions_for_run(run_id)
    for key in keys:
        found[f"partitions of {key}"] = storage.get_materialized_partitions(key)
        found[f"tags of {key}"] = storage.get_event_tags_for_asset(key)
        found[f"attempts at {key}"] = (
            storage.get_latest_asset_partition_materialization_attempts_without_materializations(key)
        )
        for kind in (Kind.ASSET_MATERIALIZATION, Kind.ASSET_OBSERVATION, Kind.ASSET_MATERIALIZATION_PLANNED):
            found[f"{kind} of {key}"] = storage.get_event_records(dg.EventRecordsFilter(kind, asset_key=key))
            found[f"{kind} ids of {key}"] = storage.get_latest_storage_id_by_partition(key, kind)
            found[f"{kind} versions of {key}"] = storage.get_latest_tags_by_partition(
                key, kind, ["dagster/data_version"]
            )
    return found


def test_answers_are_those_of_the_stock_storage(tmp_path: Path, pooled: PooledSqliteEventLogStorage) -> None:
    stock = stock_storage(tmp_path / "stock")
    for batch in story():
        stock.store_event_batch(batch)
        pooled.store_event_batch(batch)
    expected, ours = answers(stock), answers(pooled)
    for question, answer in expected.items():
        assert ours[question] == answer, question
    assert ours["keys"] == ['["another", "asset"]', '["raw_video"]', '["video_embedding"]']
    pooled.wipe_asset(ASSET)
    stock.wipe_asset(ASSET)
    for storage in (stock, pooled):
        storage.delete_events("run-2")
    assert answers(pooled)["keys"] == answers(stock)["keys"]
    assert answers(pooled)[f"partitions of {ASSET}"] == set()


def test_single_events_are_stored_as_in_batches(tmp_path: Path, pooled: PooledSqliteEventLogStorage) -> None:
    stock = stock_storage(tmp_path / "stock")
    for event in [event for batch in story() for event in batch]:
        stock.store_event(event)
        pooled.store_event(event)
    assert answers(pooled) == answers(stock)


def test_planned_set_of_partitions_becomes_one_event_each(pooled: PooledSqliteEventLogStorage) -> None:
    assert pooled.supports_partition_subset_in_asset_materialization_planned_events
    subset = dg.StaticPartitionsDefinition(KEYS).subset_with_partition_keys(KEYS[3:9])
    data = AssetMaterializationPlannedData(ASSET, partitions_subset=subset)
    pooled.store_event(entry("run-1", Kind.ASSET_MATERIALIZATION_PLANNED, data))
    assert set(
        pooled.get_latest_asset_partition_materialization_attempts_without_materializations(ASSET)
    ) == set(KEYS[3:9])
    log = pooled.get_logs_for_run("run-1")
    assert sorted(str(event.get_dagster_event().partition) for event in log) == KEYS[3:9]
    assert {event.get_dagster_event().partitions_subset for event in log} == {None}


def test_folder_of_the_stock_storage_is_opened_and_given_back(tmp_path: Path) -> None:
    stock = stock_storage(tmp_path)
    first, rest = story()[:5], story()[5:]
    for batch in first:
        stock.store_event_batch(batch)
    before = answers(stock)
    pooled = PooledSqliteEventLogStorage(str(tmp_path))
    assert answers(pooled) == before
    for batch in rest:
        pooled.store_event_batch(batch)
    pooled.dispose()
    assert answers(stock_storage(tmp_path)) == answers(pooled)
    pooled.dispose()


def test_old_schema_is_migrated(tmp_path: Path) -> None:
    from dagster._core.storage.event_log.sqlite import sqlite_event_log
    from dagster._core.storage.sql import get_alembic_config

    stock = stock_storage(tmp_path)
    for batch in story():
        stock.store_event_batch(batch)
    config = get_alembic_config(sqlite_event_log.__file__)
    head = stock.alembic_version()[1]
    for shard in ("index", "run-1"):
        with stock._connect(shard) as connection:
            run_alembic_downgrade(config, connection, "-1", shard)
    pooled = PooledSqliteEventLogStorage(str(tmp_path))
    assert pooled.alembic_version() != (head, head)
    pooled.upgrade()
    assert pooled.alembic_version() == (head, head)
    assert pooled.get_materialized_partitions(ASSET) == set(KEYS[:9])
    pooled.dispose()


def write_much(home: str, name: str, batches: int) -> None:
    storage = PooledSqliteEventLogStorage(home)
    for number in range(batches):
        storage.store_event_batch([materialized(name, f"{name}-{number}-{n}") for n in range(20)])
        storage.store_event_batch([observed("", f"{name}-{number}-{n}") for n in range(5)])
        storage.store_event(message(name, f"batch {number}"))
    storage.dispose()


def check_all_written(storage: SqliteEventLogStorage, names: Sequence[str], batches: int) -> None:
    partitions = {f"{name}-{number}-{n}" for name in names for number in range(batches) for n in range(20)}
    assert storage.get_materialized_partitions(ASSET) == partitions
    records = storage.get_event_records(dg.EventRecordsFilter(Kind.ASSET_MATERIALIZATION), ascending=True)
    assert len(records) == len(partitions)
    by_run = defaultdict(list)
    for record in records:
        by_run[record.run_id].append(record.partition_key)
    for name in names:
        log = storage.get_logs_for_run(name)
        in_run = [event.get_dagster_event().partition for event in log if event.dagster_event]
        assert by_run[name] == in_run == [f"{name}-{b}-{n}" for b in range(batches) for n in range(20)]
        assert len(log) == 21 * batches
    observations = storage.get_event_records(dg.EventRecordsFilter(Kind.ASSET_OBSERVATION))
    assert len(storage.get_logs_for_run("")) == len(observations) == 5 * batches * len(names)


def test_four_processes_write_while_this_one_reads(
    tmp_path: Path, pooled: PooledSqliteEventLogStorage
) -> None:
    names = [f"run-{n}" for n in range(4)]
    spawn = multiprocessing.get_context("spawn")
    home = str(tmp_path / "home")
    processes = [spawn.Process(target=write_much, args=(home, name, 6)) for name in names]
    for process in processes:
        process.start()
    seen = 0
    while any(process.is_alive() for process in processes):
        now = len(pooled.get_materialized_partitions(ASSET))
        assert now >= seen
        assert now % 20 == 0
        seen = now
        time.sleep(0.01)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check_all_written(pooled, names, 6)


def test_threads_share_one_storage(pooled: PooledSqliteEventLogStorage) -> None:
    names = [f"run-{n}" for n in range(8)]

    def write(name: str) -> None:
        for number in range(5):
            pooled.store_event_batch([materialized(name, f"{name}-{number}-{n}") for n in range(20)])
            pooled.store_event_batch([observed("", f"{name}-{number}-{n}") for n in range(5)])
            pooled.store_event(message(name, f"batch {number}"))

    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(write, names))
    check_all_written(pooled, names, 5)


def _after_fork(storage: PooledSqliteEventLogStorage) -> None:
    storage.store_event_batch([materialized("child", key) for key in KEYS[:3]])
    storage.dispose()


def test_forked_child_opens_connections_of_its_own(pooled: PooledSqliteEventLogStorage) -> None:
    pooled.store_event_batch([materialized("parent", KEYS[10])])
    child = multiprocessing.get_context("fork").Process(target=_after_fork, args=(pooled,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    pooled.store_event_batch([materialized("parent", KEYS[11])])
    assert pooled.get_materialized_partitions(ASSET) == {*KEYS[:3], *KEYS[10:]}


def test_file_that_was_replaced_is_opened_anew(tmp_path: Path, pooled: PooledSqliteEventLogStorage) -> None:
    pooled.store_event_batch([materialized("run-1", key) for key in KEYS])
    stock_storage(tmp_path / "home").wipe()
    assert pooled.get_logs_for_run("run-1") == []
    pooled.store_event_batch([materialized("run-1", KEYS[0])])
    assert len(stock_storage(tmp_path / "home").get_logs_for_run("run-1")) == 1
    pooled.wipe()
    assert pooled.get_logs_for_run("run-1") == []


def test_few_files_are_kept_open(
    pooled: PooledSqliteEventLogStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "KEPT_ENGINES", 3)
    for number in range(6):
        pooled.store_event(message(f"run-{number}", "hello"))
    assert opened_files(pooled) == {"run-3.db", "run-4.db", "run-5.db"}
    assert len(pooled.get_logs_for_run("run-0")) == 1
    pooled.dispose()
    assert opened_files(pooled) == set()


def opened_files(storage: PooledSqliteEventLogStorage) -> set[str]:
    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not list a process's open files in /proc")
    names = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            path = descriptor.readlink()
            if str(path.parent) == storage._base_dir and path.suffix == ".db":
                names.add(path.name)
    return names


def test_batch_is_stored_whole_or_not_at_all(pooled: PooledSqliteEventLogStorage) -> None:
    pooled.store_event_batch([materialized("run-1", KEYS[0])])
    no_time: Any = "never"
    broken = materialized("run-1", KEYS[2])._replace(timestamp=no_time)
    with pytest.raises(TypeError):
        pooled.store_event_batch([materialized("run-1", KEYS[1]), broken])
    assert pooled.get_materialized_partitions(ASSET) == {KEYS[0]}
    assert len(pooled.get_logs_for_run("run-1")) == 1


def test_a_watcher_hears_of_events_that_others_store(
    tmp_path: Path, pooled: PooledSqliteEventLogStorage
) -> None:
    writer = PooledSqliteEventLogStorage(str(tmp_path / "home"))
    writer.store_event(message("run-1", "first"))
    heard: list[str] = []
    arrived = threading.Event()

    def listen(event: dg.EventLogEntry, cursor: str) -> None:
        assert EventLogCursor.parse(cursor).storage_id() > 0
        heard.append(event.user_message)
        if len(heard) == 3:
            arrived.set()

    pooled.watch("run-1", None, listen)
    for text in ("second", "third"):
        writer.store_event(message("run-1", text))
    assert arrived.wait(30)
    assert heard == ["first", "second", "third"]
    pooled.end_watch("run-1", listen)
    writer.dispose()


@pytest.mark.parametrize("make", [stock_storage, lambda home: PooledSqliteEventLogStorage(str(home))])
def test_nothing_to_store(tmp_path: Path, make: Callable[[Path], SqliteEventLogStorage]) -> None:
    storage = make(tmp_path)
    storage.store_event_batch([])
    assert storage.all_asset_keys() == []
    storage.dispose()
