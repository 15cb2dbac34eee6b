"""Rows that name a contract by the id that earlier versions gave it, with a model folder's name in it.

Each machine rewrites them by itself, and all to the same: so no row becomes work, and nothing has to be sent.
"""

# ruff: noqa: S608 (names of tables are checked, those of columns constants)

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Table, delete, select, update

from clipfarm_dagster.ledger.generations import tables_of
from clipfarm_dagster.vectors.contract import canonical_ids

_COLUMNS = ("contract_id", "vector_contract_id")


def present_ids(contracts: Mapping[str, str]) -> dict[str, str]:
    """The present id of each contract, given as JSON, that is recorded under a former one."""
    found: dict[str, str] = {}
    for contract_id, contract in contracts.items():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):  # of another version
            found |= canonical_ids({contract_id: contract})
    return found


def has_former_ids(connection: Connection, contracts: Table) -> bool:
    """Whether a ledger knows a contract by a former id."""
    return bool(present_ids(_recorded(connection, contracts)))


def rewrite_former_ids(connection: Connection, contracts: Table, items: Sequence[Table]) -> None:
    """Give every contract its present id, in the rows of all generations, in a transaction that writes."""
    recorded = _recorded(connection, contracts)
    for former, present in present_ids(recorded).items():
        for table in items:
            for name in _COLUMNS:
                change = update(table).where(table.c[name] == former).values({name: present})
                connection.execute(change)
        connection.execute(delete(contracts).where(contracts.c.contract_id.in_([former, present])))
        connection.execute(contracts.insert().values(contract_id=present, contract=recorded[former]))


def rewrite_merged_ids(connection: sqlite3.Connection) -> None:
    """The same of an SQLite ledger that has taken in rows of the store's, in the caller's transaction."""
    contracts = dict(connection.execute("SELECT contract_id, contract FROM main.contracts").fetchall())
    for former, present in present_ids(contracts).items():
        for table in tables_of(connection).values():
            for name in _COLUMNS:
                connection.execute(f"UPDATE main.{table} SET {name} = ? WHERE {name} = ?", [present, former])
        connection.execute("DELETE FROM main.contracts WHERE contract_id = ?", [former])
        connection.execute("INSERT OR IGNORE INTO main.contracts VALUES (?, ?)", [present, contracts[former]])


def _recorded(connection: Connection, contracts: Table) -> dict[str, str]:
    rows = connection.execute(select(contracts.c.contract_id, contracts.c.contract))
    return {row.contract_id: row.contract for row in rows}
