"""How a ledger forgets erased videos, and keeps them away.

Its table `erased` has the tombstones that it follows, each with what of the video is left here: first `rows`,
then only `bytes` of them in the database's files, then nothing. From the moment that a tombstone is in the
table, no process writes a row of its video. Each step can be repeated: it is done once the next one is noted.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Table, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from clipfarm_dagster.errors import ErasureError, LedgerError
from clipfarm_dagster.ledger.failures import Guarded, repeated
from clipfarm_dagster.ledger.log import SharedLog, open_database
from clipfarm_dagster.ledger.postgres import LOCK_SECONDS, postgres_engine
from clipfarm_dagster.ledger.reading import LedgerReader
from clipfarm_dagster.ledger.schema import items_table, new_version
from clipfarm_dagster.ledger.tombstones import Erased, Tombstones
from clipfarm_dagster.stages import Stage

ROWS, BYTES = "rows", "bytes"
"""What may be left of a video."""

_IDS_PER_QUERY = 500
_READ_AT_A_TIME = 10_000
_WAIT_SECONDS = 30.0
"""How long another process may use an SQLite file before it counts as in use."""


class ErasingLedger(LedgerReader):
    """What a `Ledger` does about erased videos."""

    def __init__(self, stage: Stage, url: URL) -> None:
        super().__init__(stage, url)
        self.journal: SharedLog | None = None
        """Its end of the log in the store; null where machines share the database, or it stands alone."""
        self.tombstones: Tombstones | None = None
        """What says which videos are erased; null where it stands alone."""
        self._followed: str | None = None

    def erased(self, video_ids: Iterable[str]) -> set[str]:
        """Those of some videos that are erased by now.

        Raises:
            StoreError: the store cannot be read.
            LedgerError: its list of erased videos is damaged.
        """
        return self.follow_erasures().among(video_ids)

    @repeated
    def follow_erasures(self, erased: Erased | None = None) -> Erased:
        """Forget the rows of all videos that are erased by now, and never write one again; returns these
        videos. Costs one small request where there is none since the last time.

        Args:
            erased: as they were read just now; by default the store is asked.

        Raises:
            StoreError: the store cannot be read.
            LedgerError: its list of erased videos is gone or damaged.
        """
        if self.tombstones is None:
            return Erased()
        erased = self.tombstones.read() if erased is None else erased
        if erased.version == self._followed:
            return erased
        known = self._what_remains()
        if not known.keys() <= erased.erasures.keys():  # another process has just added some
            erased = self.tombstones.read()
            if not known.keys() <= erased.erasures.keys():
                raise self._list_lost()
        new = erased.erasures.keys() - known.keys()
        if new:
            with self._locked() as connection:
                insert = self._insert(self._tables.erased).on_conflict_do_nothing()
                connection.execute(insert, [{"tombstone": name, "remains": ROWS} for name in new])
        if new or ROWS in known.values():
            self._forget_rows(erased)
        self._followed = erased.version
        return erased

    def followed(self, count: int) -> Erased:
        """The erased videos of which no row may be written, for a transaction that writes and has found
        `count` tombstones in the table: a request is made only if another process has just added some. (Each
        adds all that the list has, so that of two sets the larger has the smaller.)"""
        if self.tombstones is None or len(self.tombstones.last.erasures) >= count:
            return Erased() if self.tombstones is None else self.tombstones.last
        erased = self.tombstones.read()
        if len(erased.erasures) < count:
            raise self._list_lost()
        return erased

    def not_cleared(self) -> set[str]:
        """The tombstones of whose videos something may be left here."""
        return {name for name, remains in self._what_remains().items() if remains is not None}

    def clear_erased(self, *, everything: bool = False) -> None:
        """Leave nothing of erased videos here: no row, and no byte of one in the database's files.

        Args:
            everything: whether or not this ledger knows that something is left, and in the store's log too:
                what one machine has to do before an erasure is finished.

        Raises:
            ErasureError: other processes use the database; repeating finishes it.
            StoreError: the store cannot be read or written.
            LedgerError: the ledger cannot be written, or the store's list of erased videos is damaged.
        """
        erased = self.follow_erasures()
        if not erased:
            return
        if everything:  # a machine of an earlier version, which knows of no tombstones, may have written some
            self._forget_rows(erased)
            if self.journal is not None:
                self.journal.rewrite()
        remains = self._what_remains()
        names = [name for name, what in remains.items() if what == BYTES or everything]
        if not names:
            return
        if self.journal is not None:
            self.journal.remove_scratch()
        if self.sqlite_path is not None:
            self._rewrite_file(self.sqlite_path)
        else:
            self._rewrite_tables()
        with self._locked() as connection:
            self._note(connection, names, BYTES, None)

    # inside

    def _among(self, connection: Connection, video_ids: Collection[str]) -> set[str]:
        """Those of some ids that are erased, in a transaction that writes."""
        count = connection.execute(select(func.count()).select_from(self._tables.erased)).scalar_one()
        return self.followed(count).among(video_ids)

    def _forget_rows(self, erased: Erased) -> None:
        with self._connection() as connection:
            ids = self._held(connection, erased)
        with self._locked() as connection:
            if self.sqlite_path is not None:
                connection.exec_driver_sql("PRAGMA secure_delete = ON")
            # any page of a file may keep what a row was before; a server's, only where the row was
            remains = BYTES if ids or (self.sqlite_path and self._was_used(connection)) else None
            for table in self._tables_with_ids(connection):
                for some in _chunks(ids):
                    connection.execute(delete(table).where(table.c.video_id.in_(some)))
            if ids:
                connection.execute(update(self._tables.generations).values(version=new_version()))
            self._note(connection, erased.erasures, ROWS, remains)

    def _held(self, connection: Connection, erased: Erased) -> set[str]:
        """The erased ids that any table has."""
        found: set[str] = set()
        for table in self._tables_with_ids(connection):
            ids = select(table.c.video_id).execution_options(yield_per=_READ_AT_A_TIME)
            found |= erased.among(connection.execute(ids).scalars())
        return found

    def _was_used(self, connection: Connection) -> bool:
        """Whether an SQLite file has, or may have had, any row."""
        tables = self._items_tables(connection)
        return bool(
            connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            or any(connection.execute(select(table.c.video_id).limit(1)).first() for table in tables)
        )

    def _note(self, connection: Connection, names: Collection[str], was: str, remains: str | None) -> None:
        table = self._tables.erased
        for some in _chunks(names):
            change = update(table).where(table.c.tombstone.in_(some), table.c.remains == was)
            connection.execute(change.values(remains=remains))

    def _what_remains(self) -> dict[str, str | None]:
        table = self._tables.erased
        with self._connection() as connection:
            return {row.tombstone: row.remains for row in connection.execute(select(table))}

    def _rewrite_file(self, path: Path) -> None:
        """Write an SQLite file anew, and empty its write-ahead log."""
        try:
            with open_database(path, timeout=_WAIT_SECONDS) as connection:
                connection.execute("VACUUM")
                [busy, *_] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise self._not_cleared(error) from None
        if busy:
            raise self._not_cleared("another process keeps reading it")

    def _rewrite_tables(self) -> None:
        """Write the tables of a server anew, with their indexes and statistics."""
        # it may take longer than a statement may
        options = [*self._url.normalized_query.get("options", ()), "-c statement_timeout=0"]
        engine = postgres_engine(self._url.update_query_dict({"options": " ".join(options)}))
        try:
            with Guarded(engine.connect, self._not_cleared) as connection:
                tables = [table.fullname for table in self._items_tables(connection)]
                connection.rollback()
                outside = connection.execution_options(isolation_level="AUTOCOMMIT")
                outside.exec_driver_sql(f"SET lock_timeout = '{LOCK_SECONDS}s'")
                for table in tables:
                    outside.exec_driver_sql(f"VACUUM (FULL, ANALYZE) {table}")
        finally:
            engine.dispose()

    def _items_tables(self, connection: Connection) -> list[Table]:
        names = connection.execute(select(self._tables.generations.c.table_name)).scalars()
        return [items_table(self._schema, name) for name in names if name is not None]

    def _tables_with_ids(self, connection: Connection) -> list[Table]:
        tables = self._items_tables(connection)
        return tables if self._tables.unsent is None else [*tables, self._tables.unsent]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Connection]:
        """A transaction for which all that write have to wait. Tombstones are no rows: `before_first_write`
        is not called."""
        with Guarded(self._writing_engine.begin, partial(self._error, "write"), self._restarts) as connection:
            self._writers.alone(connection)
            yield connection

    def _insert(self, table: Table) -> Any:
        return (sqlite if self._schema is None else postgresql).insert(table)

    def _list_lost(self) -> LedgerError:
        assert self.tombstones is not None
        return LedgerError(
            f"the {self.stage} ledger at {self.name} knows of erased videos that {self.tombstones.place} no"
            " longer lists; restore that object from a backup, so that they stay away. Without one, empty the"
            " table `erased` of each ledger, and erase these videos again"
        )

    def _not_cleared(self, error: object) -> ErasureError:
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        return ErasureError(
            f"the {self.stage} ledger at {self.name} could not be written anew, so that deleted rows may be"
            f" left in its files: {cause}. No row is left; repeat when it is not in use"
        )


def _chunks(values: Collection[str]) -> Iterator[list[str]]:
    listed = list(values)
    for start in range(0, len(listed), _IDS_PER_QUERY):
        yield listed[start : start + _IDS_PER_QUERY]
