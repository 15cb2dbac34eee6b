"""The ledger of one stage: rows in, rows out, in SQLite or PostgreSQL.

Writes go through SQLAlchemy in one transaction a batch; `reading` has what it tells of its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Self

from sqlalchemy import URL, Connection, Table, make_url, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.erasing import ErasingLedger
from clipfarm_dagster.ledger.failures import Guarded, repeated
from clipfarm_dagster.ledger.migrations import is_current, migrate
from clipfarm_dagster.ledger.schema import LEDGER_COLUMNS, LedgerRow
from clipfarm_dagster.ledger.versions import forgotten, to_write
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract


class Ledger(ErasingLedger):
    """One stage's rows: of the generation that serves, or of another (see `of`). Threads may share it;
    processes open their own.

    Raises:
        LedgerError: from every method, when the database cannot be read or written.
    """

    def __init__(self, stage: Stage, url: URL) -> None:
        super().__init__(stage, url)
        self.before_first_write: Callable[[], None] | None = None
        try:
            self._bring_up_to_date()
        except LedgerError:
            self._engine.dispose()
            raise
        self._restarts.reached()

    @classmethod
    def open(cls, stage: Stage, *, state_url: str, sqlite_path: Path) -> Self:
        """Open the ledger at `state_url`, or the SQLite file where that is empty; created when new.

        Raises:
            LedgerError: the URL is unusable, or the database cannot be opened.
        """
        if not state_url:
            sqlite_path.parent.mkdir(parents=True, exist_ok=True)
            return cls(stage, URL.create("sqlite", database=str(sqlite_path)))
        try:
            url = make_url(state_url)
        except (ArgumentError, ValueError):  # the latter for a port that is no number
            raise LedgerError(
                "CLIPFARM_STATE_URL is not a database URL; it should look like postgresql://user@host/database"
            ) from None
        if url.get_backend_name() != "postgresql":
            raise LedgerError(
                f"CLIPFARM_STATE_URL names {url.get_backend_name()!r}; use postgresql://…, or leave it empty"
                " for SQLite files in the home folder"
            )
        return cls(stage, url.set(drivername="postgresql+psycopg2"))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def of(self, contract_id: str) -> Self:
        """The rows of one generation, whether it serves or not. Shares the connections of this one."""
        other = copy.copy(self)
        other.generation = contract_id
        return other

    # writing

    @repeated
    def record(self, rows: Sequence[LedgerRow]) -> set[str]:
        """Insert or replace whole rows, all of them or none, but those of erased videos; returns the ids of
        these.

        A row that somebody else has written since the version that it names is merged with theirs
        (see `versions.merged`).

        Raises:
            StoreError: the store cannot be asked which videos are erased.
        """
        if not rows:
            return set()
        with self._writing() as (connection, items):
            erased = self._among(connection, _ids(rows))
            rows = [row for row in rows if row.video_id not in erased]
            self._write_rows(connection, items, rows, self._lock(connection, items, _ids(rows)))
        return erased

    @repeated
    def replace(self, changes: Sequence[tuple[LedgerRow, LedgerRow]]) -> list[str]:
        """Put the second row of each pair where the ledger still holds the first; returns the ids of these.

        What somebody else has recorded since the first was read stays. Where the second is there already,
        it is written again.
        """
        if not changes:
            return []
        ids = [before.video_id for before, _ in changes]
        with self._writing() as (connection, items):
            erased = self._among(connection, ids)
            current = self._lock(connection, items, [i for i in ids if i not in erased], add=False)
            rows = [after for before, after in changes if current.get(before.video_id) in (before, after)]
            self._write_rows(connection, items, [replace(row, row_version=None) for row in rows], current)
        return _ids(rows)

    @repeated
    def record_contract(self, contract: Contract) -> None:
        """Remember what a contract id stands for."""
        statement = self._insert(self._tables.contracts).on_conflict_do_nothing()
        with self._transaction() as connection:
            connection.execute(statement, [{"contract_id": contract.id, "contract": contract.to_json()}])

    @repeated
    def mark_overwriting(self, video_ids: Sequence[str]) -> dict[str, int]:
        """Say, before vectors are uploaded, that what the store holds for these ids is unknown.

        A crash between the upload and `record` then leaves rows that claim no vector, so the items are
        work again, whatever their input turns into meanwhile, for every machine: the mark has been sent to
        the store when this returns.

        Returns:
            The version of each row by then, for the rows that are recorded once the vectors are uploaded.
            None of those that are erased, whose vectors must not be uploaded.
        """
        if not video_ids:
            return {}
        with self._writing() as (connection, items):
            erased = self._among(connection, video_ids)
            ids = [video_id for video_id in video_ids if video_id not in erased]
            current = self._lock(connection, items, ids)
            rows = [forgotten(current.get(i, LedgerRow(video_id=i, row_version=0))) for i in ids]
            self._write_rows(connection, items, rows, current)
        if self.journal is not None:
            self.journal.send()
        return {video_id: row.row_version or 0 for video_id, row in self.rows(video_ids).items()}

    # whose it is

    def push(self) -> bool:
        """Bring the store up to what was written here; tells whether there was anything to send.

        Raises:
            StoreError: the store cannot be read or written.
        """
        return self.journal is not None and self.journal.push()

    def set_corpus_id(self, corpus_id: str) -> None:
        """Say for good which corpus this ledger belongs to."""
        self.before_first_write = None
        with self._transaction() as connection:
            self._writers.alone(connection)
            if connection.execute(select(self._tables.corpus)).first() is None:
                connection.execute(self._tables.corpus.insert().values(corpus_id=corpus_id))

    # which generation serves

    def name_serving(self, contract_id: str) -> None:
        """Say of which contract the rows in `processed_items` are, where that was never said."""
        with self._transaction() as connection:
            self._writers.alone(connection)
            self._generations.name_serving(connection, contract_id)

    def serve(self, contract_id: str) -> None:
        """Let `processed_items` hold the rows of another generation; those that it held get a table of their
        own."""
        with self._transaction() as connection:
            self._writers.alone(connection)
            self._generations.serve(connection, contract_id)

    def drop(self, contract_id: str, *, tell: bool = True) -> None:
        """Forget the rows of a generation that does not serve: here and, once that is sent, everywhere.

        Args:
            tell: whether other machines are told of it.

        Raises:
            ValueError: it serves.
        """
        with self._transaction() as connection:
            self._writers.alone(connection)
            self._generations.drop(connection, contract_id, tell=tell)

    # inside

    @repeated
    def _bring_up_to_date(self) -> None:
        try:
            with self._engine.connect() as connection:
                current = is_current(connection, self._tables)
            if not current:  # only then, since it waits for whoever is writing
                with self._writing_engine.begin() as connection:
                    migrate(connection, self._tables)
        except SQLAlchemyError as error:
            raise self._error("open", error) from None

    @contextmanager
    def _writing(self) -> Iterator[tuple[Connection, Table]]:
        self.follow_erasures()
        with self._transaction() as connection:
            self._writers.share(connection)
            items = self._generations.own(connection, self.generation)
            self._writers.renew(connection, self.generation)
            yield connection, items

    def _lock(
        self, connection: Connection, items: Table, ids: Sequence[str], *, add: bool = True
    ) -> dict[str, LedgerRow]:
        """The rows of some ids, that nobody else writes from here on.

        Args:
            add: whether the caller writes a row of each.
        """
        added = self._writers.add_rows(connection, items, ids) if add else set()
        return self._read_rows(connection, items, sorted({*ids} - added, key=str), lock=True)

    def _transaction(self) -> Guarded:
        if self.before_first_write is not None:
            self.before_first_write()
        return Guarded(self._writing_engine.begin, partial(self._error, "write"), self._restarts)

    def _write_rows(
        self,
        connection: Connection,
        items: Table,
        rows: Sequence[LedgerRow],
        current: Mapping[str, LedgerRow],
    ) -> None:
        """Write rows over those that are there now."""
        if not rows:
            return
        insert = self._insert(items)
        changes = {name: insert.excluded[name] for name in LEDGER_COLUMNS if name != "video_id"}
        statement = insert.on_conflict_do_update(index_elements=["video_id"], set_=changes)
        connection.execute(statement, [asdict(to_write(row, current.get(row.video_id))) for row in rows])
        if self._tables.unsent is not None:
            generation = self._generations.serving(connection) if self.generation is None else self.generation
            versions = {video_id: row.row_version for video_id, row in current.items()}
            connection.execute(
                sqlite.insert(self._tables.unsent).on_conflict_do_nothing(),
                [
                    {"generation": generation, "video_id": i, "base_version": versions.get(i, 0)}
                    for i in _ids(rows)
                ],
            )


def _ids(rows: Sequence[LedgerRow]) -> list[str]:
    return [row.video_id for row in rows]
