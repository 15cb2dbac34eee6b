"""The ledger of one stage: rows in, rows out, in SQLite or PostgreSQL.

Writes go through SQLAlchemy in one transaction a batch; large bulk reads go through ADBC straight into Arrow.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import (
    URL,
    Connection,
    FromClause,
    Table,
    false,
    func,
    make_url,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.arrow import arrow_schema, cast_expression, rows_to_arrow, zero_expression
from clipfarm_dagster.ledger.bulk_read import stream_postgresql, stream_sqlite
from clipfarm_dagster.ledger.failures import Guarded, database_error
from clipfarm_dagster.ledger.generations import Generations
from clipfarm_dagster.ledger.migrations import is_current, migrate, new_version
from clipfarm_dagster.ledger.postgres import postgres_engine
from clipfarm_dagster.ledger.schema import (
    LEDGER_COLUMNS,
    LedgerRow,
    Status,
    Tables,
)
from clipfarm_dagster.ledger.sqlite import sqlite_engine
from clipfarm_dagster.ledger.versions import forgotten, to_write
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import pyarrow as pa

    from clipfarm_dagster.ledger.log import SharedLog

_ROWS_READ_HERE = 20_000
"""Up to so many rows are read in this process; for more, starting another one pays."""

_IDS_PER_QUERY = 500
"""SQLite as Debian ships it allows 32,766 bound values a statement, older ones 999."""


class Ledger:
    """One stage's rows: of the generation that serves, or of another (see `of`). Threads may share it;
    processes open their own.

    Raises:
        LedgerError: from every method, when the database cannot be read or written.
    """

    def __init__(self, stage: Stage, url: URL) -> None:
        self.stage = stage
        self.generation: str | None = None
        """Contract id of the generation whose rows these are; None for whichever serves."""
        self._url = url
        self._schema = f"clipfarm_{stage}" if url.get_backend_name() == "postgresql" else None
        self._tables = Tables.of(self._schema)
        self._generations = Generations(self._tables)
        self.journal: SharedLog | None = None
        """Its end of the log in the store; null where machines share the database, or it stands alone."""
        self.before_first_write: Callable[[], None] | None = None
        self._engine = postgres_engine(url) if self._schema else sqlite_engine(url)
        self._writing_engine = self._engine.execution_options(clipfarm_writes=True)
        try:
            with self._engine.connect() as connection:
                current = is_current(connection, self._tables)
            if not current:  # only then, since it waits for whoever is writing
                with self._writing_engine.begin() as connection:
                    migrate(connection, self._tables)
        except SQLAlchemyError as error:
            self._engine.dispose()
            raise self._error("open", error) from None

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

    @property
    def name(self) -> str:
        """Where the ledger lies, without a password: fit for messages."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @property
    def sqlite_path(self) -> Path | None:
        """The SQLite file, or `None` on PostgreSQL."""
        return Path(self._url.database or "") if self._schema is None else None

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def of(self, contract_id: str) -> Self:
        """The rows of one generation, whether it serves or not. Shares the connections of this one."""
        other = copy.copy(self)
        other.generation = contract_id
        return other

    # reading

    def columns(self, names: Sequence[str] = LEDGER_COLUMNS) -> pa.Table:
        """All rows as an Arrow table with the columns `names`, in no particular order."""
        with self.stream(names) as reader:
            return reader.read_all()

    @contextmanager
    def stream(self, names: Sequence[str] = LEDGER_COLUMNS) -> Iterator[pa.RecordBatchReader]:
        """All rows with the columns `names`, batch by batch, as they are read while the block runs.

        A reading that fails may raise only at the end of the block: what was read counts once it is left.
        """
        if unknown := set(names) - set(LEDGER_COLUMNS):
            raise ValueError(f"no ledger columns: {sorted(unknown)}")
        casts = ", ".join(cast_expression(self._tables.items.c[name]) for name in names)
        schema = arrow_schema(self._tables.items, names)
        with self._connection() as connection:
            table = self._generations.find(connection, self.generation)
            query = f"SELECT {casts} FROM {table}"  # noqa: S608 - names are checked above
            if table is None:
                rows: Sequence[Any] | None = []
            else:
                count = connection.execute(select(func.count()).select_from(table)).scalar_one()
                rows = connection.exec_driver_sql(query).fetchall() if count <= _ROWS_READ_HERE else None
        if rows is not None:
            yield rows_to_arrow(rows, schema).to_reader()
            return
        if self.sqlite_path is None:
            read = stream_postgresql(self._url, query, schema, partial(self._error, "read"))
            with read as reader:
                yield reader
        else:
            typed = ", ".join(zero_expression(self._tables.items.c[name]) for name in names)
            with stream_sqlite(self.sqlite_path, f"SELECT {typed} UNION ALL {query}") as reader:
                yield reader
        with self._connection() as connection:
            table_now = self._generations.find(connection, self.generation)
            if str(table_now) != str(table):  # another connection has read it
                raise LedgerError(
                    f"another generation of {self.stage} vectors began to serve while the ledger at"
                    f" {self.name} was read; try again"
                )

    def rows(self, video_ids: Iterable[str]) -> dict[str, LedgerRow]:
        """The rows of some ids; ids without a row are absent from the answer."""
        with self._reading() as (connection, items):
            return self._read_rows(connection, items, list(video_ids))

    def counts(self) -> dict[str, int]:
        """Number of rows by status."""
        with self._reading() as (connection, items):
            query = select(items.c.status, func.count()).group_by(items.c.status)
            return {status: count for status, count in connection.execute(query) if status is not None}

    def with_status(self, statuses: Sequence[Status], *, limit: int | None = None) -> list[LedgerRow]:
        """Rows with one of `statuses`, the latest processed first."""
        with self._reading() as (connection, items):
            query = (
                select(items)
                .where(items.c.status.in_([str(status) for status in statuses]))
                .order_by(items.c.processed_at.desc(), items.c.video_id)
                .limit(limit)
            )
            return [_ledger_row(row._mapping) for row in connection.execute(query)]

    def with_note(self) -> list[LedgerRow]:
        """Successes of which there is something to know, the latest processed first."""
        with self._reading() as (connection, items):
            query = (
                select(items)
                .where(items.c.status == str(Status.SUCCESS), items.c.note.is_not(None))
                .order_by(items.c.processed_at.desc(), items.c.video_id)
            )
            return [_ledger_row(row._mapping) for row in connection.execute(query)]

    def video_ids(self, status: Status, *, limit: int) -> list[str]:
        """At most `limit` ids whose latest attempt ended with `status`, in no particular order."""
        with self._reading() as (connection, items):
            query = select(items.c.video_id).where(items.c.status == str(status)).limit(limit)
            return list(connection.execute(query).scalars())

    def has_success(self) -> bool:
        """Whether any video's latest attempt was a success."""
        return bool(self.video_ids(Status.SUCCESS, limit=1))

    def vector_contract_ids(self) -> list[str]:
        """The contracts of the vectors that are claimed, that of most first."""
        with self._reading() as (connection, items):
            claimed = items.c.vector_contract_id
            query = select(claimed).where(claimed.is_not(None)).group_by(claimed)
            return list(connection.execute(query.order_by(func.count().desc(), claimed)).scalars())

    def recent_seconds(self, limit: int) -> list[float]:
        """Seconds of preparation and inference of the items last processed, at most `limit` of them."""
        with self._reading() as (connection, items):
            query = (
                select(items.c.seconds)
                .where(items.c.seconds.is_not(None))
                .order_by(items.c.processed_at.desc())
                .limit(limit)
            )
            return list(connection.execute(query).scalars())

    def version(self) -> str:
        """A random text that every change of the rows replaces."""
        with self._connection() as connection:
            token: str = connection.execute(select(self._tables.versions.c.token)).scalar_one()
            return token

    def contract(self, contract_id: str) -> Contract | None:
        """The contract of an id that was recorded here, or `None`."""
        query = select(self._tables.contracts.c.contract).where(
            self._tables.contracts.c.contract_id == contract_id
        )
        with self._connection() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else Contract.from_json(found)

    # writing

    def record(self, rows: Sequence[LedgerRow]) -> None:
        """Insert or replace whole rows, all of them or none.

        A row that somebody else has written since the version that it names is merged with theirs
        (see `versions.merged`).
        """
        if rows:
            with self._writing() as (connection, items):
                self._write_rows(connection, items, rows, self._read_rows(connection, items, _ids(rows)))

    def replace(self, changes: Sequence[tuple[LedgerRow, LedgerRow]]) -> list[str]:
        """Put the second row of each pair where the ledger still holds the first; returns the ids of these.

        What somebody else has recorded since the first was read stays.
        """
        if not changes:
            return []
        with self._writing() as (connection, items):
            current = self._read_rows(connection, items, [before.video_id for before, _ in changes])
            rows = [after for before, after in changes if current.get(before.video_id) == before]
            self._write_rows(connection, items, [replace(row, row_version=None) for row in rows], current)
        return _ids(rows)

    def record_contract(self, contract: Contract) -> None:
        """Remember what a contract id stands for."""
        statement = self._insert(self._tables.contracts).on_conflict_do_nothing()
        with self._transaction() as connection:
            connection.execute(statement, [{"contract_id": contract.id, "contract": contract.to_json()}])

    def mark_overwriting(self, video_ids: Sequence[str]) -> dict[str, int]:
        """Say, before vectors are uploaded, that what the store holds for these ids is unknown.

        A crash between the upload and `record` then leaves rows that claim no vector, so the items are
        work again, whatever their input turns into meanwhile, for every machine: the mark has been sent to
        the store when this returns.

        Returns:
            The version of each row by then, for the rows that are recorded once the vectors are uploaded.
        """
        if not video_ids:
            return {}
        with self._writing() as (connection, items):
            current = self._read_rows(connection, items, video_ids)
            rows = [forgotten(current.get(i, LedgerRow(video_id=i, row_version=0))) for i in video_ids]
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

    def corpus_id(self) -> str | None:
        """Id of the corpus that this ledger belongs to (see `corpus_id`); null before the first write."""
        with self._connection() as connection:
            corpus_id: str | None = connection.execute(select(self._tables.corpus.c.corpus_id)).scalar()
            return corpus_id

    def set_corpus_id(self, corpus_id: str) -> None:
        """Say for good which corpus this ledger belongs to."""
        self.before_first_write = None
        with self._transaction() as connection:
            self._renew_version(connection)
            if connection.execute(select(self._tables.corpus)).first() is None:
                connection.execute(self._tables.corpus.insert().values(corpus_id=corpus_id))

    # which generation serves

    def serving(self) -> str:
        """Contract id of the generation whose rows `processed_items` holds; `UNNAMED` until that is known."""
        with self._connection() as connection:
            return self._generations.serving(connection)

    def generations(self) -> list[str]:
        """Contract ids of the generations that have rows here."""
        with self._connection() as connection:
            return self._generations.known(connection)

    def name_serving(self, contract_id: str) -> None:
        """Say of which contract the rows in `processed_items` are, where that was never said."""
        with self._transaction() as connection:
            self._renew_version(connection)
            self._generations.name_serving(connection, contract_id)

    def serve(self, contract_id: str) -> None:
        """Let `processed_items` hold the rows of another generation; those that it held get a table of their
        own."""
        with self._transaction() as connection:
            self._renew_version(connection)
            self._generations.serve(connection, contract_id)

    def drop(self, contract_id: str) -> None:
        """Forget the rows of a generation that does not serve: here and, once that is sent, everywhere.

        Raises:
            ValueError: it serves.
        """
        with self._transaction() as connection:
            self._renew_version(connection)
            self._generations.drop(connection, contract_id)

    # inside

    def _connection(self) -> Guarded:
        return Guarded(self._engine.connect, partial(self._error, "read"))

    @contextmanager
    def _reading(self) -> Iterator[tuple[Connection, FromClause]]:
        with self._connection() as connection:
            items = self._generations.find(connection, self.generation)
            yield (
                connection,
                (select(self._tables.items).where(false()).subquery() if items is None else items),
            )

    @contextmanager
    def _writing(self) -> Iterator[tuple[Connection, Table]]:
        with self._transaction() as connection:
            self._renew_version(connection)  # nobody else writes from here on
            yield connection, self._generations.own(connection, self.generation)

    def _transaction(self) -> Guarded:
        if self.before_first_write is not None:
            self.before_first_write()
        return Guarded(self._writing_engine.begin, partial(self._error, "write"))

    def _read_rows(
        self, connection: Connection, items: FromClause, ids: Sequence[str]
    ) -> dict[str, LedgerRow]:
        found: dict[str, LedgerRow] = {}
        for start in range(0, len(ids), _IDS_PER_QUERY):
            query = select(items).where(items.c.video_id.in_(ids[start : start + _IDS_PER_QUERY]))
            for row in connection.execute(query):
                found[row.video_id] = _ledger_row(row._mapping)
        return found

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

    def _renew_version(self, connection: Connection) -> None:
        # before the rows: writers on PostgreSQL then wait for each other here, and cannot deadlock over rows
        connection.execute(update(self._tables.versions).values(token=new_version()))

    def _insert(self, table: Table) -> Any:
        return (sqlite if self._schema is None else postgresql).insert(table)

    def _error(self, action: str, error: Exception) -> LedgerError:
        return database_error(self.stage, self._url, self.name, action, error)


def _ledger_row(mapping: Any) -> LedgerRow:
    row = LedgerRow(**{name: mapping[name] for name in LEDGER_COLUMNS})
    return row if row.row_version is not None else replace(row, row_version=0)


def _ids(rows: Sequence[LedgerRow]) -> list[str]:
    return [row.video_id for row in rows]
