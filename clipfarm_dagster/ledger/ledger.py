"""The ledger of one stage: rows in, rows out, in SQLite or PostgreSQL.

Writes go through SQLAlchemy in one transaction a batch; large bulk reads go through ADBC straight into Arrow.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Column,
    Connection,
    MetaData,
    Table,
    Text,
    func,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.schema import CreateColumn, CreateSchema

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.arrow import arrow_schema, cast_expression, rows_to_arrow, zero_expression
from clipfarm_dagster.ledger.bulk_read import stream_postgresql, stream_sqlite
from clipfarm_dagster.ledger.postgres import hint, postgres_engine
from clipfarm_dagster.ledger.schema import (
    LEDGER_COLUMNS,
    LedgerRow,
    Status,
    processed_items_table,
    unsent_table,
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

_DAMAGED = ("file is not a database", "database disk image is malformed")
"""What SQLite says of a file that it cannot read."""


class Ledger:
    """One stage's `processed_items`. Threads may share it; processes open their own.

    Raises:
        LedgerError: from every method, when the database cannot be read or written.
    """

    def __init__(self, stage: Stage, url: URL) -> None:
        self.stage = stage
        self._url = url
        self._schema = f"clipfarm_{stage}" if url.get_backend_name() == "postgresql" else None
        self._items = processed_items_table(self._schema)
        self._contracts = Table(
            "contracts",
            MetaData(schema=self._schema),
            Column("contract_id", Text, primary_key=True),
            Column("contract", Text, nullable=False),
        )
        self._versions = Table(
            "ledger_version", MetaData(schema=self._schema), Column("token", Text, nullable=False)
        )
        self._corpus = Table(
            "ledger_corpus", MetaData(schema=self._schema), Column("corpus_id", Text, nullable=False)
        )
        self._unsent = None if self._schema else unsent_table()
        self.journal: SharedLog | None = None
        """Its end of the log in the store; null where machines share the database, or it stands alone."""
        self.before_first_write: Callable[[], None] | None = None
        self._engine = postgres_engine(url) if self._schema else sqlite_engine(url)
        self._writing_engine = self._engine.execution_options(clipfarm_writes=True)
        try:
            with self._engine.connect() as connection:
                current = self._is_current(connection)
            if not current:  # only then, since it waits for whoever is writing
                with self._writing_engine.begin() as connection:
                    self._migrate(connection)
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
        table = self._items.name if self._schema is None else f"{self._schema}.{self._items.name}"
        casts = ", ".join(cast_expression(self._items.c[name]) for name in names)
        query = f"SELECT {casts} FROM {table}"  # noqa: S608 - names are checked above
        schema = arrow_schema(self._items, names)
        with self._connection() as connection:
            count = connection.execute(select(func.count()).select_from(self._items)).scalar_one()
            rows = connection.exec_driver_sql(query).fetchall() if count <= _ROWS_READ_HERE else None
        if rows is not None:
            yield rows_to_arrow(rows, schema).to_reader()
            return
        if self.sqlite_path is None:
            read = stream_postgresql(self._url, query, schema, partial(self._error, "read"))
            with read as reader:
                yield reader
            return
        typed = ", ".join(zero_expression(self._items.c[name]) for name in names)
        with stream_sqlite(self.sqlite_path, f"SELECT {typed} UNION ALL {query}") as reader:
            yield reader

    def rows(self, video_ids: Iterable[str]) -> dict[str, LedgerRow]:
        """The rows of some ids; ids without a row are absent from the answer."""
        with self._connection() as connection:
            return self._read_rows(connection, list(video_ids))

    def counts(self) -> dict[str, int]:
        """Number of rows by status."""
        query = select(self._items.c.status, func.count()).group_by(self._items.c.status)
        with self._connection() as connection:
            return {status: count for status, count in connection.execute(query) if status is not None}

    def with_status(self, statuses: Sequence[Status], *, limit: int | None = None) -> list[LedgerRow]:
        """Rows with one of `statuses`, the latest processed first."""
        query = (
            select(self._items)
            .where(self._items.c.status.in_([str(status) for status in statuses]))
            .order_by(self._items.c.processed_at.desc(), self._items.c.video_id)
            .limit(limit)
        )
        with self._connection() as connection:
            return [_ledger_row(row._mapping) for row in connection.execute(query)]

    def with_note(self) -> list[LedgerRow]:
        """Successes of which there is something to know, the latest processed first."""
        query = (
            select(self._items)
            .where(self._items.c.status == str(Status.SUCCESS), self._items.c.note.is_not(None))
            .order_by(self._items.c.processed_at.desc(), self._items.c.video_id)
        )
        with self._connection() as connection:
            return [_ledger_row(row._mapping) for row in connection.execute(query)]

    def video_ids(self, status: Status, *, limit: int) -> list[str]:
        """At most `limit` ids whose latest attempt ended with `status`, in no particular order."""
        query = select(self._items.c.video_id).where(self._items.c.status == str(status)).limit(limit)
        with self._connection() as connection:
            return list(connection.execute(query).scalars())

    def recent_seconds(self, limit: int) -> list[float]:
        """Seconds of preparation and inference of the items last processed, at most `limit` of them."""
        query = (
            select(self._items.c.seconds)
            .where(self._items.c.seconds.is_not(None))
            .order_by(self._items.c.processed_at.desc())
            .limit(limit)
        )
        with self._connection() as connection:
            return list(connection.execute(query).scalars())

    def version(self) -> str:
        """A random text that every change of the rows replaces."""
        with self._connection() as connection:
            token: str = connection.execute(select(self._versions.c.token)).scalar_one()
            return token

    def contract(self, contract_id: str) -> Contract | None:
        """The contract of an id that was recorded here, or `None`."""
        query = select(self._contracts.c.contract).where(self._contracts.c.contract_id == contract_id)
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
            with self._transaction() as connection:
                self._renew_version(connection)  # nobody else writes from here on
                self._write_rows(connection, rows, self._read_rows(connection, _ids(rows)))

    def replace(self, changes: Sequence[tuple[LedgerRow, LedgerRow]]) -> list[str]:
        """Put the second row of each pair where the ledger still holds the first; returns the ids of these.

        What somebody else has recorded since the first was read stays.
        """
        if not changes:
            return []
        with self._transaction() as connection:
            self._renew_version(connection)
            current = self._read_rows(connection, [before.video_id for before, _ in changes])
            rows = [after for before, after in changes if current.get(before.video_id) == before]
            self._write_rows(connection, [replace(row, row_version=None) for row in rows], current)
        return _ids(rows)

    def record_contract(self, contract: Contract) -> None:
        """Remember what a contract id stands for."""
        statement = self._insert(self._contracts).on_conflict_do_nothing()
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
        with self._transaction() as connection:
            self._renew_version(connection)
            current = self._read_rows(connection, video_ids)
            rows = [forgotten(current.get(i, LedgerRow(video_id=i, row_version=0))) for i in video_ids]
            self._write_rows(connection, rows, current)
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
            corpus_id: str | None = connection.execute(select(self._corpus.c.corpus_id)).scalar()
            return corpus_id

    def set_corpus_id(self, corpus_id: str) -> None:
        """Say for good which corpus this ledger belongs to."""
        self.before_first_write = None
        with self._transaction() as connection:
            self._renew_version(connection)
            if connection.execute(select(self._corpus)).first() is None:
                connection.execute(self._corpus.insert().values(corpus_id=corpus_id))

    # inside

    def _connection(self) -> _Guarded:
        return _Guarded(self, self._engine.connect, "read")

    def _transaction(self) -> _Guarded:
        if self.before_first_write is not None:
            self.before_first_write()
        return _Guarded(self, self._writing_engine.begin, "write")

    def _read_rows(self, connection: Connection, ids: Sequence[str]) -> dict[str, LedgerRow]:
        found: dict[str, LedgerRow] = {}
        for start in range(0, len(ids), _IDS_PER_QUERY):
            query = select(self._items).where(self._items.c.video_id.in_(ids[start : start + _IDS_PER_QUERY]))
            for row in connection.execute(query):
                found[row.video_id] = _ledger_row(row._mapping)
        return found

    def _write_rows(
        self, connection: Connection, rows: Sequence[LedgerRow], current: Mapping[str, LedgerRow]
    ) -> None:
        """Write rows over those that are there now."""
        if not rows:
            return
        insert = self._insert(self._items)
        changes = {name: insert.excluded[name] for name in LEDGER_COLUMNS if name != "video_id"}
        statement = insert.on_conflict_do_update(index_elements=["video_id"], set_=changes)
        connection.execute(statement, [asdict(to_write(row, current.get(row.video_id))) for row in rows])
        if self._unsent is not None:
            versions = {video_id: row.row_version for video_id, row in current.items()}
            connection.execute(
                sqlite.insert(self._unsent).on_conflict_do_nothing(),
                [{"video_id": i, "base_version": versions.get(i, 0)} for i in _ids(rows)],
            )

    def _renew_version(self, connection: Connection) -> None:
        # before the rows: writers on PostgreSQL then wait for each other here, and cannot deadlock over rows
        connection.execute(update(self._versions).values(token=new_version()))

    def _insert(self, table: Table) -> Any:
        return (sqlite if self._schema is None else postgresql).insert(table)

    def _error(self, action: str, error: Exception) -> LedgerError:
        cause = str(getattr(error, "orig", None) or error).strip()
        for password in (self._url.password, *self._url.normalized_query.get("password", ())):
            for form in {password, quote(password, safe="")} if password else ():
                cause = cause.replace(form, "***")
        if isinstance(getattr(error, "orig", None), sqlite3.DatabaseError) and cause in _DAMAGED:
            cause += "; move the file away, and it is restored from its snapshot in the store"
        elif advice := hint(getattr(error, "orig", None) or error):
            cause += f"; {advice}"
        return LedgerError(f"cannot {action} the {self.stage} ledger at {self.name}: {cause}")

    def _is_current(self, connection: Connection) -> bool:
        """Whether the database has all that this version needs, so that opening it changes nothing."""
        inspector = inspect(connection)
        tables = [self._items, self._contracts, self._versions, self._corpus, self._unsent]
        if not all(table is None or inspector.has_table(table.name, table.schema) for table in tables):
            return False
        columns = {column["name"] for column in inspector.get_columns(self._items.name, self._schema)}
        indexes = {index["name"] for index in inspector.get_indexes(self._items.name, self._schema)}
        return (
            columns.issuperset(self._items.columns.keys())
            and indexes.issuperset(index.name for index in self._items.indexes)
            and connection.execute(select(self._versions)).first() is not None
        )

    def _migrate(self, connection: Connection) -> None:
        """Create what is missing; add the columns that a database of an older schema lacks."""
        if self._schema is not None:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": self._schema})
            connection.execute(CreateSchema(self._schema, if_not_exists=True))
        for table in (self._contracts, self._versions, self._corpus, self._unsent):
            if table is not None:
                table.create(connection, checkfirst=True)
        if connection.execute(select(self._versions)).first() is None:
            connection.execute(self._versions.insert().values(token=new_version()))
        inspector = inspect(connection)
        if not inspector.has_table(self._items.name, schema=self._schema):
            self._items.create(connection)
            return
        existing = {column["name"] for column in inspector.get_columns(self._items.name, self._schema)}
        for column in self._items.columns:
            if column.name not in existing:
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(text(f"ALTER TABLE {self._items.fullname} ADD COLUMN {definition}"))
        for index in self._items.indexes:
            index.create(connection, checkfirst=True)
        if self._unsent is not None and "row_version" not in existing:  # of before the journal
            connection.execute(text("INSERT OR IGNORE INTO unsent SELECT video_id, 0 FROM processed_items"))


class _Guarded:
    """A SQLAlchemy connection whose errors are `LedgerError`s."""

    def __init__(self, ledger: Ledger, connect: Any, action: str) -> None:
        self._ledger, self._connect, self._action = ledger, connect, action

    def __enter__(self) -> Connection:
        try:
            self._context = self._connect()
            connection: Connection = self._context.__enter__()
            return connection
        except SQLAlchemyError as error:
            raise self._ledger._error(self._action, error) from None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, error, trace)
        except SQLAlchemyError as failure:
            raise self._ledger._error(self._action, failure) from None
        if isinstance(error, SQLAlchemyError):
            raise self._ledger._error(self._action, error) from None


def new_version() -> str:
    """A text that no ledger has had as its version."""
    return uuid.uuid4().hex


def _ledger_row(mapping: Any) -> LedgerRow:
    row = LedgerRow(**{name: mapping[name] for name in LEDGER_COLUMNS})
    return row if row.row_version is not None else replace(row, row_version=0)


def _ids(rows: Sequence[LedgerRow]) -> list[str]:
    return [row.video_id for row in rows]
