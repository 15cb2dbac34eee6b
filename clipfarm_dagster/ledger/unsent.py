"""Which rows of an SQLite ledger were written here and are not in the store's log yet, in transactions of the
caller's.

The table `unsent` has a row for each, with the version that the store has of it: 0 where it has none, null
where that is unknown.
"""

# ruff: noqa: S608 (names of tables are checked, versions are constants)

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

from clipfarm_dagster.ledger.generations import tables_of
from clipfarm_dagster.ledger.schema import UNNAMED

OF_ANOTHER_LOG = -1
"""Base version of rows that another log had, until it is known whether this one has them."""


class SentRow(NamedTuple):
    """A row that is in the log now."""

    generation: str
    video_id: str
    row_version: int


def has_unsent(connection: sqlite3.Connection) -> bool:
    """Whether there is anything to send."""
    (unsent,) = connection.execute("SELECT count(*) FROM unsent").fetchone()
    return bool(unsent or dropped_generations(connection))


def unsent_rows(connection: sqlite3.Connection) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The contracts that the rows name, and the rows, each with its `generation`, if that has a name yet."""
    rows: list[dict[str, Any]] = []
    for generation, table in tables_of(connection).items():
        with closing(connection.cursor()) as cursor:
            cursor.row_factory = sqlite3.Row
            found = cursor.execute(
                f"SELECT m.* FROM unsent JOIN main.{table} m USING (video_id) WHERE generation = ?",
                [generation],
            )
            name = {} if generation == UNNAMED else {"generation": generation}
            rows += [{**name, **dict(row)} for row in found]
    named = {row[name] for row in rows for name in ("contract_id", "vector_contract_id")}
    contracts = dict(connection.execute("SELECT contract_id, contract FROM contracts").fetchall())
    return {i: text for i, text in contracts.items() if i in named}, rows


def dropped_generations(connection: sqlite3.Connection) -> list[str]:
    """Generations that were dropped here, which the log does not say yet."""
    found = connection.execute("SELECT contract_id FROM generations WHERE table_name IS NULL").fetchall()
    return [contract_id for (contract_id,) in found]


def note_sent(connection: sqlite3.Connection, sent: Sequence[SentRow], dropped: Sequence[str]) -> None:
    """Note that rows are in the log, and that it says which generations were dropped."""
    connection.execute(
        "CREATE TEMP TABLE sent"
        " (generation TEXT, video_id TEXT, row_version INTEGER, PRIMARY KEY (generation, video_id))"
    )
    connection.executemany("INSERT INTO sent VALUES (?, ?, ?)", sent)
    for generation, table in tables_of(connection).items():
        connection.execute(
            f"""DELETE FROM unsent WHERE generation = ? AND EXISTS (
                SELECT 1 FROM sent JOIN main.{table} USING (video_id, row_version)
                WHERE sent.generation = ? AND sent.video_id = unsent.video_id)""",
            [generation, generation],
        )
    connection.execute(  # written again since
        """UPDATE unsent SET base_version = sent.row_version FROM sent
        WHERE sent.generation = unsent.generation AND sent.video_id = unsent.video_id"""
    )
    connection.executemany(
        "DELETE FROM generations WHERE contract_id = ? AND table_name IS NULL", [(i,) for i in dropped]
    )


def offer_all(connection: sqlite3.Connection) -> None:
    """Let rows that another log had give way to those of this one; `settle_offers` has the others sent."""
    _note_all(connection, str(OF_ANOTHER_LOG), "NOTHING")


def settle_offers(connection: sqlite3.Connection) -> None:
    """Send the offered rows that nothing was merged with."""
    connection.execute(f"UPDATE unsent SET base_version = 0 WHERE base_version = {OF_ANOTHER_LOG}")


def send_all(connection: sqlite3.Connection) -> None:
    """Have every row sent."""
    _note_all(connection, "0", "NOTHING")


def doubt_all(connection: sqlite3.Connection) -> None:
    """Let every row count as written on both sides, unless the store has the very same version of it."""
    _note_all(connection, "NULL", "UPDATE SET base_version = NULL")


def _note_all(connection: sqlite3.Connection, base_version: str, if_noted: str) -> None:
    for generation, table in tables_of(connection).items():
        connection.execute(
            f"""INSERT INTO unsent SELECT ?, video_id, {base_version} FROM main.{table} WHERE true
            ON CONFLICT (generation, video_id) DO {if_noted}""",
            [generation],
        )
