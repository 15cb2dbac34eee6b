"""How processes that write one ledger at the same time keep out of each other's way.

In SQLite one process writes at a time. On PostgreSQL those that write rows share a lock, and each locks the
rows that it writes, in the order of their ids: so writers of different videos do not wait for each other, and
those of the same ones do. What changes which rows there are, or whose they are, has the lock for itself.

A reader asks by one text whether anything has changed. If all writers replaced that text, they would queue at
its row. So on PostgreSQL there are many for each generation, of which a writer replaces the one of its
connection; the reader takes all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, Text, bindparam, func, literal, literal_column, select, true, update
from sqlalchemy.dialects import postgresql

from clipfarm_dagster.ledger.schema import SERVING_ITEMS, Tables, new_version

_SLOTS = 1024
"""More than connections that a server usually allows: two writers rarely have the same one."""


class Writers:
    """The locks and versions of one ledger. Every method works in a transaction of the caller's."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._names, self._changes = tables, tables.generations, tables.changes
        self._schema = tables.items.schema

    # locks

    def share(self, connection: Connection) -> None:
        """Begin to write rows: others may do so, too, but nothing else changes until the transaction ends."""
        if self._changes is None:
            self._renew_whole(connection)
            return
        # the row for the sake of earlier versions, whose writers change it; in this order, as in `alone`
        lock = func.pg_advisory_xact_lock_shared(func.hashtextextended(f"{self._schema} writers", 0))
        held, versions = select(lock).cte("held").prefix_with("MATERIALIZED"), self._tables.versions
        query = select(versions.c.token).join(held, true())
        connection.execute(query.with_for_update(read=True, of=versions))

    def alone(self, connection: Connection) -> None:
        """Begin to change more than rows: nobody else writes until the transaction ends."""
        if self._changes is not None:
            self._lock(connection, "writers")
        self._renew_whole(connection)

    def making(self, connection: Connection) -> None:
        """Begin to make the table of a generation, as one of those who write rows: one after the other."""
        if self._changes is not None:
            self._lock(connection, "tables")

    def add_rows(self, connection: Connection, items: Table, ids: Sequence[str]) -> set[str]:
        """Add an empty row for each id that has none, for the caller to write over; returns these ids. Nobody
        else writes a row of them until the transaction ends. In SQLite nobody does so anyway."""
        if self._changes is None:
            return set()
        ordered = bindparam("ids", sorted(set(ids), key=str), type_=postgresql.ARRAY(Text))
        empty = select(func.unnest(ordered), literal(0))
        insert = postgresql.insert(items).from_select(["video_id", "retry_count"], empty)
        added = insert.on_conflict_do_nothing().returning(items.c.video_id)
        return set(connection.execute(added).scalars())

    # versions

    def renew(self, connection: Connection, contract_id: str | None) -> None:
        """Say that rows of a generation change; None of the one that serves."""
        names, changes = self._names, self._changes
        which = self._which(contract_id)
        if changes is None:
            connection.execute(update(names).where(which).values(version=new_version()))
            return
        slot = func.pg_backend_pid() % _SLOTS
        token: Any = bindparam("new_token", new_version())
        insert = postgresql.insert(changes).from_select(
            ["contract_id", "slot", "token"], select(names.c.contract_id, slot, token).where(which)
        )
        replaced = {"token": insert.excluded["token"]}
        connection.execute(
            insert.on_conflict_do_update(index_elements=["contract_id", "slot"], set_=replaced)
        )

    def version(self, connection: Connection) -> str:
        """A text that every change of the ledger replaces."""
        versions, changes = self._tables.versions, self._changes
        if changes is None:
            token: str = connection.execute(select(versions.c.token)).scalar_one()
            return token
        both = select(versions.c.token, select(_together(changes)).scalar_subquery())
        return "-".join(connection.execute(both).one())

    def rows_version(self, connection: Connection, contract_id: str | None) -> str:
        """A text that every change of a generation's rows replaces; None of the one that serves."""
        names, changes = self._names, self._changes
        which = self._which(contract_id)
        if changes is None:
            found: str | None = connection.execute(select(names.c.version).where(which)).scalar()
            return found or ""
        of_it = select(_together(changes)).where(changes.c.contract_id == names.c.contract_id)
        both = select(func.coalesce(names.c.version, ""), of_it.scalar_subquery()).where(which)
        row = connection.execute(both).first()
        return "" if row is None else "-".join(row)

    def _lock(self, connection: Connection, what: str) -> None:
        connection.execute(
            select(func.pg_advisory_xact_lock(func.hashtextextended(f"{self._schema} {what}", 0)))
        )

    def _renew_whole(self, connection: Connection) -> None:
        connection.execute(update(self._tables.versions).values(token=new_version()))

    def _which(self, contract_id: str | None) -> Any:
        names = self._names.c
        return names.table_name == SERVING_ITEMS if contract_id is None else names.contract_id == contract_id


def _together(changes: Table) -> Any:
    """All texts of the table as one."""
    order = changes.c.contract_id.asc(), changes.c.slot.asc()
    separated: Any = postgresql.aggregate_order_by(literal_column("','"), *order)
    return func.coalesce(func.md5(func.string_agg(changes.c.token, separated)), "")
