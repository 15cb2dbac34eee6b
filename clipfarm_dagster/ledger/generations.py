"""Which table of a ledger holds the rows of which generation.

`processed_items` holds the rows of the generation that serves, where the original pipeline's readers look for
them. Every other generation has a table of its own. The table `generations` says which is which; a cut-over
renames two tables. So whoever has a generation in hand looks its table up in each transaction.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from sqlalchemy import Connection, Table, delete, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from clipfarm_dagster.ledger.schema import SERVING_ITEMS, UNNAMED, Tables, items_table
from clipfarm_dagster.ledger.writers import Writers

_CONTRACT_ID = re.compile(r"[0-9a-z]{1,32}")


def items_name(contract_id: str) -> str:
    """Name of the table of a generation that does not serve.

    Raises:
        ValueError: the text can be no contract's id.
    """
    if not _CONTRACT_ID.fullmatch(contract_id) and contract_id != UNNAMED:
        raise ValueError(f"{contract_id!r} is not the id of a contract")
    return f"generation_{contract_id or 'unnamed'}"


class Generations:
    """The tables of a ledger's generations, as its database names them. Every method works in a transaction
    of the caller's; those that change something, in one that writes."""

    def __init__(self, tables: Tables, writers: Writers) -> None:
        self._tables, self._writers = tables, writers
        self._names = tables.generations
        self._schema = tables.items.schema

    def serving(self, connection: Connection) -> str:
        """Contract id of the generation that serves; `UNNAMED` before that is known."""
        query = select(self._names.c.contract_id).where(self._names.c.table_name == SERVING_ITEMS)
        contract_id: str = connection.execute(query).scalar_one()
        return contract_id

    def known(self, connection: Connection) -> list[str]:
        """Contract ids of the generations that have a table."""
        names = self._names
        query = (
            select(names.c.contract_id).where(names.c.table_name.is_not(None)).order_by(names.c.contract_id)
        )
        found = connection.execute(query).scalars()
        return [contract_id for contract_id in found if contract_id != UNNAMED]

    def find(self, connection: Connection, contract_id: str | None) -> Table | None:
        """The table of a generation's rows, None of the one that serves; None where there is none yet.

        On PostgreSQL no cut-over renames it until the transaction ends.
        """
        if contract_id is None:
            return self._tables.items
        query: Any = select(self._names.c.table_name).where(self._names.c.contract_id == contract_id)
        if self._schema is not None:
            query = query.with_for_update(read=True)
        name: str | None = connection.execute(query).scalar()
        return None if name is None else items_table(self._schema, name)

    def own(self, connection: Connection, contract_id: str | None) -> Table:
        """As `find`, and made where there is none."""
        table = self.find(connection, contract_id)
        if table is None:
            assert contract_id is not None
            self._writers.making(connection)
            table = self.find(connection, contract_id)  # another one may have made it meanwhile
        if table is None:
            assert contract_id is not None
            table = items_table(self._schema, items_name(contract_id))
            table.create(connection)
            self._note(connection, contract_id, table.name)
        return table

    def name_serving(self, connection: Connection, contract_id: str) -> None:
        """Give the generation that serves its contract, unless it has one, or another has that contract."""
        if self.serving(connection) != UNNAMED or self.find(connection, contract_id) is not None:
            return
        names = self._names
        connection.execute(delete(names).where(names.c.contract_id == contract_id))  # of one dropped before
        unnamed = names.c.contract_id == UNNAMED
        connection.execute(update(names).where(unnamed).values(contract_id=contract_id))
        if (changes := self._tables.changes) is not None:
            connection.execute(delete(changes).where(changes.c.contract_id == contract_id))
            of_it = changes.c.contract_id == UNNAMED
            connection.execute(update(changes).where(of_it).values(contract_id=contract_id))
        if (unsent := self._tables.unsent) is not None:
            rows = unsent.c.generation == UNNAMED
            connection.execute(update(unsent).where(rows).values(generation=contract_id))

    def serve(self, connection: Connection, contract_id: str) -> None:
        """Let a generation serve; the one that did so gets a table of its own."""
        former = self.serving(connection)
        if former == contract_id:
            return
        following = self.own(connection, contract_id)
        for generation, table, name in (
            (former, self._tables.items, items_name(former)),
            (contract_id, following, SERVING_ITEMS),
        ):
            connection.execute(text(f"ALTER TABLE {table.fullname} RENAME TO {name}"))
            self._note(connection, generation, name)

    def drop(self, connection: Connection, contract_id: str, *, tell: bool) -> None:
        """Remove the rows of a generation.

        Args:
            tell: whether other machines are told of it.

        Raises:
            ValueError: it serves.
        """
        if self.serving(connection) == contract_id:
            raise ValueError(f"generation {contract_id} serves")
        table = self.find(connection, contract_id)
        # the name first: on PostgreSQL that waits for those who have looked it up
        connection.execute(delete(self._names).where(self._names.c.contract_id == contract_id))
        if (changes := self._tables.changes) is not None:
            connection.execute(delete(changes).where(changes.c.contract_id == contract_id))
        if table is not None:
            table.drop(connection)
        if (unsent := self._tables.unsent) is not None:
            connection.execute(delete(unsent).where(unsent.c.generation == contract_id))
            if tell:
                self._note(connection, contract_id, None)

    def _note(self, connection: Connection, contract_id: str, items: str | None) -> None:
        insert: Any = (sqlite if self._schema is None else postgresql).insert(self._names)
        statement = insert.values(contract_id=contract_id, table_name=items)
        changes = {"table_name": statement.excluded["table_name"]}
        connection.execute(statement.on_conflict_do_update(index_elements=["contract_id"], set_=changes))


def tables_of(connection: sqlite3.Connection, schema: str = "main") -> dict[str, str]:
    """Name of each generation's table in an SQLite database, by contract id."""
    names = {name for (name,) in connection.execute(f"SELECT name FROM {schema}.sqlite_master")}  # noqa: S608
    if "generations" not in names:  # of a version that knew one generation alone
        return {UNNAMED: SERVING_ITEMS}
    found = connection.execute(f"SELECT contract_id, table_name FROM {schema}.generations")  # noqa: S608
    return {
        str(contract_id): str(items)
        for contract_id, items in found
        if items in names and _holds_items(str(items))
    }


def serving_of(connection: sqlite3.Connection, schema: str = "main") -> str:
    """Contract id of the generation that serves in an SQLite database."""
    return next((i for i, items in tables_of(connection, schema).items() if items == SERVING_ITEMS), UNNAMED)


def count_rows(connection: sqlite3.Connection) -> int:
    """Rows of all generations in an SQLite database."""
    counted = [
        connection.execute(f"SELECT count(*) FROM main.{table}").fetchone()  # noqa: S608 - names are checked
        for table in tables_of(connection).values()
    ]
    return sum(count for (count,) in counted)


def _holds_items(name: str) -> bool:
    return name == SERVING_ITEMS or (
        name.startswith("generation_")
        and _CONTRACT_ID.fullmatch(name.removeprefix("generation_")) is not None
    )
