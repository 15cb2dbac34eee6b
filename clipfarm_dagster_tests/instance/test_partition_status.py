"""The status of partitions in memory against what Dagster computes from nothing, through random histories."""

import contextlib
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.partition_status_cache import (
    AssetStatusCacheValue,
    get_and_update_asset_status_cache_value,
)

from clipfarm_dagster.instance import kept_partitions, partition_account
from clipfarm_dagster.instance.kept_partitions import KeptPartitions
from clipfarm_dagster_tests.instance.test_event_log import ASSET, OTHER, materialized, observed, planned
from clipfarm_dagster_tests.support.postgres import new_database

VIDEOS = dg.DynamicPartitionsDefinition(name="video_id")
NEVER = dg.AssetKey("never_materialized")
Status = tuple[set[str], set[str], set[str]]


@dg.job
def a_job() -> None:
    """Its runs are made by hand."""


@dataclass(frozen=True)
class Instances:
    """One database, seen by two classes."""

    ours: dg.DagsterInstance
    stock: dg.DagsterInstance

    def status(self, asset: dg.AssetKey) -> Status:
        storage = self.ours.event_log_storage
        assert isinstance(storage, KeptPartitions)
        (value,) = storage.get_asset_status_cache_values([(asset, VIDEOS)], None)  # type: ignore[arg-type]
        return subsets(self.ours, value)

    def computed(self, asset: dg.AssetKey) -> Status:
        """From all events, as Dagster does where it has kept nothing."""
        self.stock.event_log_storage.wipe_asset_cached_status(asset)
        return subsets(self.stock, get_and_update_asset_status_cache_value(self.stock, asset, VIDEOS))

    def agree(self) -> None:
        for asset in (ASSET, OTHER, NEVER):
            computed = self.computed(asset)
            assert self.status(asset) == computed, asset
            by_dagster = get_and_update_asset_status_cache_value(self.ours, asset, VIDEOS)
            assert subsets(self.ours, by_dagster) == computed, asset
            for ask in (materialized_partitions, attempts):
                assert ask(self.ours, asset) == ask(self.stock, asset), asset
        ours, stock = (list(one.get_dynamic_partitions("video_id")) for one in (self.ours, self.stock))
        assert ours == stock
        assert not list(self.ours.get_dynamic_partitions("other_id"))


def subsets(instance: dg.DagsterInstance, value: AssetStatusCacheValue | None) -> Status:
    if value is None:
        return set(), set(), set()
    with partition_loading_context(None, instance):
        return (
            set(value.deserialize_materialized_partition_subsets(VIDEOS).get_partition_keys()),
            set(value.deserialize_failed_partition_subsets(VIDEOS).get_partition_keys()),
            set(value.deserialize_in_progress_partition_subsets(VIDEOS).get_partition_keys()),
        )


def materialized_partitions(instance: dg.DagsterInstance, asset: dg.AssetKey) -> object:
    return instance.get_materialized_partitions(asset)


def attempts(instance: dg.DagsterInstance, asset: dg.AssetKey) -> object:
    storage = instance.event_log_storage
    return storage.get_latest_asset_partition_materialization_attempts_without_materializations(asset)


@contextlib.contextmanager
def instances(home: Path, settings: dict[str, dict[str, object]]) -> Iterator[Instances]:
    with contextlib.ExitStack() as stack:
        opened = []
        for name, storage in settings.items():
            (home / name).write_text(yaml.safe_dump({"telemetry": {"enabled": False}} | storage))
            opened.append(stack.enter_context(dg.DagsterInstance.from_config(str(home), name)))
        yield Instances(*opened)


def event_log(module: str, name: str, **config: str) -> dict[str, object]:
    return {"event_log_storage": {"module": module, "class": name, "config": config}}


def of_postgres(ours: str, stock: str) -> dict[str, dict[str, object]]:
    """Settings of the two classes for one database, by a URL for each."""
    module = "clipfarm_dagster.instance.postgres_event_log"
    return {
        "ours.yaml": event_log(module, "KeptPostgresEventLogStorage", postgres_url=ours),
        "stock.yaml": event_log("dagster_postgres.event_log", "PostgresEventLogStorage", postgres_url=stock),
    }


@pytest.fixture(params=["sqlite", "postgres"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instances]:
    if request.param == "sqlite":
        name = "PooledSqliteEventLogStorage"
        ours = event_log("clipfarm_dagster.instance.event_log", name, base_dir=str(tmp_path))
        settings = {"ours.yaml": ours, "stock.yaml": {}}
    else:
        url = new_database(request.getfixturevalue("postgres_url"))
        settings = of_postgres(url, url)
    with instances(tmp_path, settings) as opened:
        yield opened


@dataclass
class History:
    """Random changes to what Dagster has stored, by programs with either class."""

    both: Instances
    random: random.Random
    keys: list[str] = field(default_factory=lambda: [f"v{number}" for number in range(60)])
    runs: list[dg.DagsterRun] = field(default_factory=list)
    ended: list[dg.DagsterRun] = field(default_factory=list)

    def step(self) -> str:
        """Change something, and tell what."""
        writer = self.random.choice([self.both.ours, self.both.stock])
        some = self.random.sample(self.keys, self.random.randint(1, 6))
        actions = {
            self.plan: 5,
            self.end: 4,
            self.materialize: 5,
            self.observe: 1,
            self.add_keys: 2,
            self.delete_keys: 2,
            self.delete_run: 1,
            self.wipe: 0.2,
        }
        (action,) = self.random.choices(list(actions), list(actions.values()))
        action(writer, some)
        return action.__name__

    def plan(self, writer: dg.DagsterInstance, some: list[str]) -> None:
        run = writer.create_run_for_job(a_job, status=dg.DagsterRunStatus.STARTED)
        self.runs.append(run)
        for key in some:
            writer.event_log_storage.store_event(planned(run.run_id, key))

    def end(self, writer: dg.DagsterInstance, some: list[str]) -> None:
        if not self.runs:
            return
        run = self.runs.pop(self.random.randrange(len(self.runs)))
        self.ended.append(run)
        if self.random.random() < 0.3:
            writer.event_log_storage.store_event_batch([materialized(run.run_id, key) for key in some])
        self.random.choice([writer.report_run_failed, writer.report_run_canceled])(run)

    def materialize(self, writer: dg.DagsterInstance, some: list[str]) -> None:
        run_id = self.random.choice([run.run_id for run in self.runs] or [""])
        writer.event_log_storage.store_event_batch([materialized(run_id, key) for key in some])

    def observe(self, writer: dg.DagsterInstance, some: list[str]) -> None:
        writer.event_log_storage.store_event_batch([observed("", key) for key in some])
        writer.report_runless_asset_event(dg.AssetMaterialization(OTHER, partition=some[0]))

    def add_keys(self, writer: dg.DagsterInstance, some: list[str]) -> None:
        self.keys += [f"n{len(self.keys) + number}" for number in range(3)]
        writer.add_dynamic_partitions("video_id", [*some, *self.keys[-3:]])

    def delete_keys(self, writer: dg.DagsterInstance, some: list[str]) -> None:
        for key in some[:3]:
            writer.delete_dynamic_partition("video_id", key)

    def delete_run(self, writer: dg.DagsterInstance, some: list[str]) -> None:
        runs = self.ended or self.runs
        if runs:
            writer.delete_run(runs.pop(self.random.randrange(len(runs))).run_id)

    def wipe(self, writer: dg.DagsterInstance, some: list[str]) -> None:
        writer.wipe_assets([self.random.choice([ASSET, OTHER])])


@pytest.mark.parametrize(
    ("seed", "steps"), [(1, 40), pytest.param(2, 1000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_status_is_what_dagster_computes(both: Instances, seed: int, steps: int) -> None:
    history = History(both, random.Random(seed))
    both.agree()
    done: list[str] = []
    for number in range(steps):
        done.append(history.step())
        if number % 4 == 0 or number == steps - 1:
            try:
                both.agree()
            except AssertionError as error:
                raise AssertionError(f"after {done}: {error}") from error
    assert len(set(done)) == 8 or steps < 100


def test_what_was_removed_is_forgotten(both: Instances) -> None:
    both.stock.add_dynamic_partitions("video_id", ["v1", "v2", "v3"])
    runs = []
    for key in ("v1", "v2"):
        run = both.stock.create_run_for_job(a_job, status=dg.DagsterRunStatus.STARTED)
        runs.append(run)
        for event in (planned(run.run_id, "v3"), materialized(run.run_id, key)):
            both.stock.event_log_storage.store_event(event)
    assert both.status(ASSET) == ({"v1", "v2"}, set(), {"v3"})
    both.stock.report_run_failed(runs[1])
    assert both.status(ASSET) == ({"v1", "v2"}, {"v3"}, set())
    both.stock.delete_run(runs[1].run_id)
    assert both.status(ASSET) == ({"v1"}, set(), {"v3"})
    both.agree()
    both.stock.delete_dynamic_partition("video_id", "v3")
    assert both.status(ASSET) == ({"v1"}, set(), set())
    both.stock.wipe_assets([ASSET])
    assert both.status(ASSET) == (set(), set(), set())
    both.agree()
    both.stock.event_log_storage.store_event(materialized("", "v2"))
    assert both.status(ASSET) == ({"v2"}, set(), set())
    both.agree()


def test_what_was_removed_behind_a_lost_trigger_is_seen(both: Instances) -> None:
    History(both, random.Random(3)).materialize(both.ours, ["v1", "v2"])
    both.ours.add_dynamic_partitions("video_id", ["v1", "v2", "v3"])
    both.agree()
    storage: Any = both.stock.event_log_storage
    with storage.index_connection() as connection:
        in_postgres = connection.dialect.name == "postgresql"
        trigger = "clipfarm_changes ON event_logs" if in_postgres else "clipfarm_events_deleted"
        connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        connection.exec_driver_sql("DELETE FROM event_logs WHERE partition = 'v1'")
    assert both.status(ASSET) == ({"v2"}, set(), set())
    both.agree()


def test_a_forked_process_follows_by_itself(both: Instances) -> None:
    both.ours.add_dynamic_partitions("video_id", ["v1", "v2"])
    both.ours.event_log_storage.store_event_batch([materialized("", "v1")])
    both.agree()
    receiver, sender = multiprocessing.Pipe()

    def ask() -> None:
        both.stock.event_log_storage.store_event_batch([materialized("", "v2")])
        sender.send(both.status(ASSET))

    child = multiprocessing.get_context("fork").Process(target=ask)
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() == ({"v1", "v2"}, set(), set())
    child.join(60)
    both.agree()


@pytest.fixture
def postgres(postgres_url: str, tmp_path: Path) -> Iterator[tuple[Instances, str]]:
    url = new_database(postgres_url)
    with instances(tmp_path, of_postgres(url, url)) as opened:
        yield opened, url


@pytest.mark.parametrize("begins", ["before the first look", "after it"])
def test_an_event_that_becomes_visible_after_a_later_one_is_seen(
    postgres: tuple[Instances, str], monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    import psycopg2

    both, url = postgres
    both.stock.add_dynamic_partitions("video_id", ["v1", "v2", "v3"])
    both.stock.event_log_storage.store_event_batch([materialized("", "v1")])
    both.agree()
    if begins == "before the first look":
        monkeypatch.setattr(kept_partitions, "_kept", {})  # as another process begins
    with contextlib.closing(psycopg2.connect(url)) as slow:
        columns = "run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition"
        slow.cursor().execute(
            f"INSERT INTO event_logs ({columns}) SELECT {columns.replace('partition', 'text %s')}"
            " FROM event_logs WHERE partition = 'v1'",
            ("v2",),
        )
        slow.cursor().execute(
            "INSERT INTO dynamic_partitions (partitions_def_name, partition) VALUES ('video_id', 'v9')"
        )
        both.stock.event_log_storage.store_event_batch([materialized("", "v3")])
        both.stock.add_dynamic_partitions("video_id", ["v4"])
        assert both.status(ASSET) == ({"v1", "v3"}, set(), set())
        slow.commit()
    if begins == "before the first look":
        monkeypatch.setattr(partition_account, "SETTLED_SECONDS", 0)
    assert both.status(ASSET) == ({"v1", "v2", "v3"}, set(), set())
    both.agree()
    assert list(both.ours.get_dynamic_partitions("video_id")) == ["v1", "v2", "v3", "v9", "v4"]


def test_a_writer_that_does_not_end_is_not_waited_for(
    postgres: tuple[Instances, str], caplog: pytest.LogCaptureFixture
) -> None:
    import psycopg2

    both, url = postgres
    both.stock.add_dynamic_partitions("video_id", ["v1"])
    both.stock.event_log_storage.store_event_batch([materialized("", "v1")])
    with contextlib.closing(psycopg2.connect(url)) as slow:
        slow.cursor().execute("LOCK TABLE event_logs IN ROW EXCLUSIVE MODE")
        assert both.status(ASSET) == ({"v1"}, set(), set())
    assert "lock timeout" in caplog.text
    both.agree()


def test_dagster_answers_where_the_database_may_not_be_changed(
    postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import psycopg2

    url = new_database(postgres_url)
    role = f"reader_{url.rpartition('/')[2]}"
    with instances(tmp_path, of_postgres(url, url)) as owner:
        owner.stock.add_dynamic_partitions("video_id", ["v1", "v2"])
        owner.stock.event_log_storage.store_event_batch([materialized("", "v1"), planned("", "v2")])
        with contextlib.closing(psycopg2.connect(url)) as connection:
            connection.cursor().execute(
                f"CREATE ROLE {role} LOGIN;"
                f" GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role};"
                f" GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"
            )
            connection.commit()
    as_reader = url.replace("clipfarm@", f"{role}@")
    with instances(tmp_path, of_postgres(as_reader, url)) as both:
        assert both.status(ASSET) == ({"v1"}, set(), set())
        both.agree()
    assert "permission denied" in caplog.text
