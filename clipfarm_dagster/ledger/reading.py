"""What a ledger tells of its rows, in SQLite or PostgreSQL; large bulk reads go through ADBC into Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, FromClause, collate, false, func, select

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.arrow import arrow_schema, cast_expression, rows_to_arrow, zero_expression
from clipfarm_dagster.ledger.bulk_read import stream_postgresql, stream_sqlite
from clipfarm_dagster.ledger.failures import Guarded, database_error, repeated
from clipfarm_dagster.ledger.generations import Generations
from clipfarm_dagster.ledger.postgres import Restarts, postgres_engine
from clipfarm_dagster.ledger.schema import LEDGER_COLUMNS, LedgerRow, Status, Tables
from clipfarm_dagster.ledger.sqlite import sqlite_engine
from clipfarm_dagster.ledger.writers import Writers
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_READ_HERE = 20_000
"""Up to so many rows are read in this process; for more, starting another one pays."""

_IDS_PER_QUERY = 500
"""SQLite as Debian ships it allows 32,766 bound values a statement, older ones 999."""


class LedgerReader:
    """The reading half of a `Ledger`.

    Raises:
        LedgerError: from every method, when the database cannot be read.
    """

    def __init__(self, stage: Stage, url: URL) -> None:
        self.stage = stage
        self.generation: str | None = None
        """Contract id of the generation whose rows these are; None for whichever serves."""
        self._url = url
        self._schema = f"clipfarm_{stage}" if url.get_backend_name() == "postgresql" else None
        self._tables = Tables.of(self._schema)
        self._writers = Writers(self._tables)
        self._generations = Generations(self._tables, self._writers)
        self._engine = postgres_engine(url) if self._schema else sqlite_engine(url)
        self._restarts = Restarts(url)
        self._writing_engine = self._engine.execution_options(clipfarm_writes=True)

    @property
    def name(self) -> str:
        """Where the ledger lies, without a password: fit for messages."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @property
    def sqlite_path(self) -> Path | None:
        """The SQLite file, or `None` on PostgreSQL."""
        return Path(self._url.database or "") if self._schema is None else None

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

    @repeated
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

    def has_vector(self, contract_id: str | None = None) -> bool:
        """Whether any vector is claimed, of one contract or of any."""
        with self._reading() as (connection, items):
            claimed = items.c.vector_contract_id
            chosen = claimed.is_not(None) if contract_id is None else claimed == contract_id
            return connection.execute(select(claimed).where(chosen).limit(1)).first() is not None

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

    def rows_version(self) -> str:
        """A random text that every change of this generation's rows replaces."""
        with self._connection() as connection:
            return self._writers.rows_version(connection, self.generation)

    def version(self) -> str:
        """A random text that every change of the ledger replaces, in whichever generation."""
        with self._connection() as connection:
            return self._writers.version(connection)

    def contract(self, contract_id: str) -> Contract | None:
        """The contract of an id that was recorded here, or `None`."""
        query = select(self._tables.contracts.c.contract).where(
            self._tables.contracts.c.contract_id == contract_id
        )
        with self._connection() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else Contract.from_json(found)

    def corpus_id(self) -> str | None:
        """Id of the corpus that this ledger belongs to (see `corpus_id`); null before the first write."""
        with self._connection() as connection:
            corpus_id: str | None = connection.execute(select(self._tables.corpus.c.corpus_id)).scalar()
            return corpus_id

    def serving(self) -> str:
        """Contract id of the generation whose rows `processed_items` holds; `UNNAMED` until that is known."""
        with self._connection() as connection:
            return self._generations.serving(connection)

    def generations(self) -> list[str]:
        """Contract ids of the generations that have rows here."""
        with self._connection() as connection:
            return self._generations.known(connection)

    # inside

    def _connection(self) -> Guarded:
        return Guarded(self._engine.connect, partial(self._error, "read"), self._restarts)

    @contextmanager
    def _reading(self) -> Iterator[tuple[Connection, FromClause]]:
        with self._connection() as connection:
            items = self._generations.find(connection, self.generation)
            yield (
                connection,
                (select(self._tables.items).where(false()).subquery() if items is None else items),
            )

    def _read_rows(
        self, connection: Connection, items: FromClause, ids: Sequence[str], *, lock: bool = False
    ) -> dict[str, LedgerRow]:
        """The rows of some ids; with `lock`, PostgreSQL locks them in the order of the ids."""
        found: dict[str, LedgerRow] = {}
        for start in range(0, len(ids), _IDS_PER_QUERY):
            query = select(items).where(items.c.video_id.in_(ids[start : start + _IDS_PER_QUERY]))
            if lock and self._schema is not None:
                query = query.order_by(collate(items.c.video_id, "C")).with_for_update()
            for row in connection.execute(query):
                found[row.video_id] = _ledger_row(row._mapping)
        return found

    def _error(self, action: str, error: Exception) -> LedgerError:
        return database_error(self.stage, self._url, self.name, action, error)


def _ledger_row(mapping: Any) -> LedgerRow:
    row = LedgerRow(**{name: mapping[name] for name in LEDGER_COLUMNS})
    return row if row.row_version is not None else replace(row, row_version=0)
