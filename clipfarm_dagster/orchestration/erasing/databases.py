"""The databases of a Dagster instance: which there are, how they are written to, and written anew.

All of this reaches past Dagster's interfaces, so it works for the versions and storages named here alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy
from packaging.specifiers import SpecifierSet
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.pool import NullPool

from clipfarm_dagster.errors import ErasureError
from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.maintenance.scanning import bytes_hold

KNOWN_DAGSTER = SpecifierSet(">=1.13.27,<1.14")
"""Versions of Dagster whose tables, and what they hold, were read for this package."""

_SQLITE = {
    "dagster._core.storage.event_log.sqlite.sqlite_event_log.SqliteEventLogStorage",
    "clipfarm_dagster.instance.event_log.PooledSqliteEventLogStorage",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage.SqliteRunStorage",
    "dagster._core.storage.schedules.sqlite.sqlite_schedule_storage.SqliteScheduleStorage",
}
_POSTGRES = {
    "dagster_postgres.event_log.event_log.PostgresEventLogStorage",
    "clipfarm_dagster.instance.postgres_event_log.KeptPostgresEventLogStorage",
    "dagster_postgres.run_storage.run_storage.PostgresRunStorage",
    "dagster_postgres.schedule_storage.schedule_storage.PostgresScheduleStorage",
}
_WAIT_SECONDS = 30


@dataclass(frozen=True)
class Database:
    """A SQLite file, or the tables of one storage in PostgreSQL."""

    name: str
    """The file's path, or the word `postgresql`."""
    engine: Engine
    tables: tuple[Table, ...]
    """Those of Dagster that the database may have."""
    path: Path | None = None
    """Of a SQLite file."""
    run_id: str | None = None
    """Of the run whose events alone are here."""

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read from, which holds up nobody who writes.

        Raises:
            ErasureError: the database cannot be used.
        """
        with self._explained(), self.engine.connect() as connection:
            yield connection

    def table_names(self) -> set[str]:
        """The tables of Dagster that the database has.

        Raises:
            ErasureError: the database cannot be used.
        """
        with self.reading() as connection:
            present = sqlalchemy.inspect(connection).get_table_names()
        return {table.name for table in self.tables}.intersection(present)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that nobody else's write comes into.

        Raises:
            ErasureError: the database cannot be used; the transaction has changed nothing.
        """
        options = {"clipfarm_write": True}
        with self._explained(), self.engine.execution_options(**options).begin() as connection:
            yield connection

    def compact(self, tables: Collection[str], ids: IdText, *, within_others: bool = False) -> bool:
        """Write the database anew without the remains of what was deleted; whether that was done.

        Args:
            tables: those to write anew. A SQLite file is written anew as a whole, also if its bytes have one
                of `ids` though none of its tables was changed; its write-ahead log is emptied in any case.
            within_others: whether `ids` inside other videos' ids count too.

        Raises:
            ErasureError: the database is in use, or there is no room.
        """
        with self._explained():
            if self.path is None:
                return _vacuum_postgres(self.engine, tables)
            log = self.path.with_name(f"{self.path.name}-wal")
            needed = bool(tables) or any(
                bytes_hold(path, ids, within_others=within_others) for path in (self.path, log)
            )
            if needed or (log.exists() and log.stat().st_size):
                _vacuum_sqlite(self.engine, self.path, needed)
            return needed

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlalchemy.exc.DBAPIError as error:
            # less the statement and its values, which have ids
            problem = (str(error.orig).strip() or "no reason given").splitlines()[0]
            raise ErasureError(
                f"{self.name}: {problem}. Nothing is left half written; free the database, and repeat"
            ) from None


def check_known(instance: dg.DagsterInstance) -> None:
    """Refuse an instance whose version or storages are not known.

    Raises:
        ErasureError: they are not.
    """
    if not KNOWN_DAGSTER.contains(dg.__version__, prereleases=True):
        raise ErasureError(
            f"what Dagster {dg.__version__} stores is not known; erasing works with Dagster {KNOWN_DAGSTER}"
        )
    storages = (instance.event_log_storage, instance.run_storage, instance.schedule_storage)
    for storage in storages:
        if _class_name(storage) not in _SQLITE | _POSTGRES:
            raise ErasureError(
                f"erasing knows Dagster's storages for SQLite and PostgreSQL, and not {_class_name(storage)}"
            )


def is_known(instance: dg.DagsterInstance) -> bool:
    """Whether an instance's version and storages are known."""
    try:
        check_known(instance)
    except ErasureError:
        return False
    return True


def open_databases(instance: dg.DagsterInstance) -> Iterator[Database]:
    """All databases of a known instance, one after the other; the one with the partitions comes last."""
    from dagster._core.instance.utils import RUNLESS_RUN_ID
    from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
    from dagster._core.storage.runs.schema import RunStorageSqlMetadata
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

    for storage, metadata in (
        (instance.schedule_storage, ScheduleStorageSqlMetadata),
        (instance.run_storage, RunStorageSqlMetadata),
    ):
        if is_postgres(storage):
            yield _postgres(storage, metadata.sorted_tables)
        else:
            yield _sqlite(storage._conn_string, metadata.sorted_tables)  # type: ignore[union-attr]
    events: Any = instance.event_log_storage
    if is_postgres(events):
        yield _postgres(events, SqlEventLogStorageMetadata.sorted_tables)
        return
    event_table = SqlEventLogStorageMetadata.tables["event_logs"]
    # of the events without a run, which have a file of that name
    runless = [RUNLESS_RUN_ID] if Path(events.path_for_shard(RUNLESS_RUN_ID)).exists() else []
    for run_id in [*events.get_all_run_ids(), *runless]:
        yield _sqlite(events.conn_string_for_shard(run_id), [event_table], run_id=run_id)
    yield _sqlite(events.conn_string_for_shard("index"), SqlEventLogStorageMetadata.sorted_tables)


def partitions_database(instance: dg.DagsterInstance) -> Database:
    """The database that has the partitions and all asset events of a known instance."""
    from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata

    events: Any = instance.event_log_storage
    tables = SqlEventLogStorageMetadata.sorted_tables
    if is_postgres(events):
        return _postgres(events, tables)
    return _sqlite(events.conn_string_for_shard("index"), tables)


def is_postgres(storage: object) -> bool:
    """Whether a known storage keeps what it has in PostgreSQL."""
    return _class_name(storage) in _POSTGRES


def _class_name(storage: object) -> str:
    return f"{type(storage).__module__}.{type(storage).__qualname__}"


def _postgres(storage: Any, tables: Sequence[Table]) -> Database:
    engine = storage._engine.execution_options(isolation_level="READ COMMITTED")
    return Database("postgresql", engine, tuple(tables))


def _sqlite(url: str, tables: Sequence[Table], run_id: str | None = None) -> Database:
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args={"timeout": _WAIT_SECONDS})

    @sqlalchemy.event.listens_for(engine, "connect")
    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = (
            None  # the driver would begin its transactions later than they begin here
        )
        connection.execute("PRAGMA secure_delete=ON")

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("clipfarm_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    path = Path(engine.url.database or "")
    return Database(str(path), engine, tuple(tables), path, run_id)


def _vacuum_sqlite(engine: Engine, path: Path, needed: bool) -> None:
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        if needed:
            cursor.execute("VACUUM")
        [busy, *_] = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except engine.dialect.loaded_dbapi.Error as error:
        raise ErasureError(f"{path}: {error}. Free it, or make room for a second copy, and repeat") from error
    finally:
        raw.close()
    if busy and needed:  # where none of the ids was seen, the log may stay for now
        raise ErasureError(
            f"{path}: another process has been reading it for {_WAIT_SECONDS} seconds, so that its"
            " write-ahead log could not be emptied; stop it, and repeat"
        )


def _vacuum_postgres(engine: Engine, tables: Collection[str]) -> bool:
    with engine.connect() as plain:
        connection = plain.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(f"SET lock_timeout = '{_WAIT_SECONDS}s'")
        for table in sorted(tables):
            connection.exec_driver_sql(f"VACUUM (FULL, ANALYZE) {table}")
        connection.exec_driver_sql("RESET lock_timeout")
    return bool(tables)
