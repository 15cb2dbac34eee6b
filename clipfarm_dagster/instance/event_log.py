"""A SQLite event log for Dagster that keeps its connections and writes batches in one transaction.

Files and tables are those of Dagster's own `SqliteEventLogStorage`: a folder written by one is opened by the
other, and `dagster instance migrate` works. Configured in `dagster.yaml`:

    event_log_storage:
      module: clipfarm_dagster.instance.event_log
      class: PooledSqliteEventLogStorage
      config:
        base_dir: {env: DAGSTER_HOME}
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from dagster import AssetKey, DagsterEventType, EventLogEntry
from dagster._core.event_api import EventHandlerFn
from dagster._core.events import AssetMaterializationPlannedData
from dagster._core.storage.event_log import SqlEventLogStorageTable, SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    SqliteEventLogStorageWatchdog,
)
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy.engine import Connection, Engine
from watchdog.events import FileSystemEvent
from watchdog.observers import Observer

from clipfarm_dagster.instance.kept_partitions import KeptPartitions

KEPT_ENGINES = 32
"""Database files kept open; there is one file a run, and a webserver reads many."""

_BATCHED = {
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_OBSERVATION,
    DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
}


class PooledSqliteEventLogStorage(KeptPartitions, SqliteEventLogStorage):
    """Dagster's SQLite event log with one engine kept a file, real batches, and the status of partitions in
    memory.

    Transactions survive the death of any process; the last ones before a power cut may be lost
    (`synchronous=NORMAL`), the files stay whole.

    Args:
        base_dir: the instance's folder (`$DAGSTER_HOME`), as in Dagster's `storage.sqlite.base_dir`. The
            files lie in its `history/runs`.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: OrderedDict[str, _KeptEngine] = OrderedDict()
        self._engines_lock = threading.RLock()
        self._seen_tables: set[str] = set()
        self._seen_columns: set[str] = set()
        super().__init__(str(Path(base_dir) / "history" / "runs"), inst_data)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> PooledSqliteEventLogStorage:
        return cls(base_dir=config_value["base_dir"], inst_data=inst_data)

    # Connections

    @property
    def _database(self) -> str:
        return str(Path(self._base_dir).resolve())

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._engine(shard).connect() as connection, connection.begin():
            yield connection

    def _engine(self, shard: str) -> Engine:
        """The file's engine; a new one if the file was replaced or removed, or the process forked."""
        path = self.path_for_shard(shard)
        with self._engines_lock:
            kept = self._engines.get(shard)
            if kept is not None and kept.identity == _identity(path):
                self._engines.move_to_end(shard)
                return kept.engine
            engine = _create_engine(self.conn_string_for_shard(shard))
            self._initdb(engine)
            self._engines[shard] = _KeptEngine(engine, _identity(path))
            if kept is not None:
                kept.close()
            while len(self._engines) > KEPT_ENGINES:
                self._engines.popitem(last=False)[1].close()
            return engine

    def _close_engines(self) -> None:
        with self._engines_lock:
            while self._engines:
                self._engines.popitem()[1].close()

    def wipe(self) -> None:
        self._close_engines()
        super().wipe()

    def dispose(self) -> None:
        super().dispose()
        self._close_engines()

    # What the schema has, asked once: tables and columns are only ever added

    def has_table(self, table_name: str) -> bool:
        if table_name not in self._seen_tables:
            with self.index_connection() as connection:
                if not sqlalchemy.inspect(connection).has_table(table_name):
                    return False
            self._seen_tables.add(table_name)
        return True

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        if column_name not in self._seen_columns:
            if not super()._has_asset_key_col_on_connection(conn, column_name):
                return False
            self._seen_columns.add(column_name)
        return True

    # Writing

    @property
    def supports_partition_subset_in_asset_materialization_planned_events(self) -> bool:
        """True makes Dagster plan a range of partitions in one event, which becomes one row each here."""
        return True

    def store_event(self, event: EventLogEntry) -> None:
        if event.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION_PLANNED:
            self.store_event_batch([event])
        else:
            super().store_event(event)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events of one run in one transaction for each of the two files that hold them."""
        if not events:
            return
        if not _is_batch(events):
            for event in events:
                self.store_event(event)
            return
        events = [single for event in events for single in _by_partition(event)]
        rows = [self._event_to_row(event) for event in events]
        with self.run_connection(events[0].run_id) as connection:
            connection.execute(SqlEventLogStorageTable.insert(), rows)
        with self.index_connection() as connection:
            insert = SqlEventLogStorageTable.insert().returning(
                SqlEventLogStorageTable.c.id, sort_by_parameter_order=True
            )
            ids = connection.execute(insert, rows).scalars().all()
            self._store_asset_event_tags(connection, events, ids)
            for event, event_id in _latest(events, ids):
                self._store_asset_event(connection, event, event_id)

    # Following a run

    def watch(self, run_id: str, cursor: str | None, callback: EventHandlerFn) -> None:
        observer: Any = self._obs
        if observer is None:
            observer = Observer()
            observer.start()
            self._obs = observer
        handler = _Watchdog(self, run_id, callback, cursor)
        scheduled = observer.schedule(handler, self._base_dir, recursive=True)
        self._watchers[run_id][callback] = (handler, scheduled)


class _KeptEngine:
    def __init__(self, engine: Engine, identity: tuple[int, ...] | None) -> None:
        self.engine, self.identity, self._pid = engine, identity, os.getpid()

    def close(self) -> None:
        """Close idle connections at once and busy ones when they are returned; a parent's are left alone."""
        self.engine.dispose(close=self._pid == os.getpid())


class _Watchdog(SqliteEventLogStorageWatchdog):
    """Also wakes on the write-ahead log: with connections kept open, the database file changes rarely."""

    def dispatch(self, event: FileSystemEvent) -> None:
        if event.event_type == "modified" and event.src_path in (self._log_path, f"{self._log_path}-wal"):
            self._process_log()


def _create_engine(url: str) -> Engine:
    engine = sqlalchemy.create_engine(
        url,
        max_overflow=-1,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )

    @sqlalchemy.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine


def _identity(path: str) -> tuple[int, ...] | None:
    """What tells a file, and the process that opened it, from another; None if there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116, a Path object would cost more than the call
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino, os.getpid())


def _is_batch(events: Sequence[EventLogEntry]) -> bool:
    return len({event.run_id for event in events}) == 1 and all(
        event.dagster_event_type in _BATCHED for event in events
    )


def _by_partition(event: EventLogEntry) -> list[EventLogEntry]:
    """An event that plans a set of partitions, as one event a partition; any other as it is."""
    dagster_event = event.get_dagster_event()
    if dagster_event.event_type != DagsterEventType.ASSET_MATERIALIZATION_PLANNED:
        return [event]
    planned = dagster_event.asset_materialization_planned_data
    if planned.partitions_subset is None:
        return [event]
    return [
        event._replace(
            dagster_event=dagster_event._replace(
                event_specific_data=AssetMaterializationPlannedData(planned.asset_key, partition=key)
            )
        )
        for key in planned.partitions_subset.get_partition_keys()
    ]


def _latest(events: Sequence[EventLogEntry], ids: Sequence[int]) -> list[tuple[EventLogEntry, int]]:
    """The last event of each asset and type: the earlier ones leave no trace in the table of assets."""
    latest: dict[tuple[AssetKey | None, DagsterEventType | None], tuple[EventLogEntry, int]] = {}
    for event, event_id in zip(events, ids, strict=True):
        key = (event.get_dagster_event().asset_key, event.dagster_event_type)
        latest.pop(key, None)
        latest[key] = (event, event_id)
    return list(latest.values())
