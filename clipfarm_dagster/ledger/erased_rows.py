"""Keeps rows of erased videos in the store's log out of an SQLite ledger, in a transaction of the caller's.

The table `erased` notes for which tombstones rows were seen in the log: it has to be written anew for them.
"""

# ruff: noqa: S608 (names of tables are checked)

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from clipfarm_dagster.ledger.tombstones import Erased


def remove_rows(connection: sqlite3.Connection, schema: str, table: str, erased: Erased) -> set[str]:
    """Remove the rows of erased videos from a table of a copy; returns their ids."""
    if not erased:
        return set()
    found = connection.execute(f"SELECT video_id FROM {schema}.{table} WHERE video_id IS NOT NULL")
    gone = erased.among(str(video_id) for (video_id,) in found)
    connection.executemany(
        f"DELETE FROM {schema}.{table} WHERE video_id = ?", [(video_id,) for video_id in gone]
    )
    return gone


def note_in_log(connection: sqlite3.Connection, names: Collection[str]) -> None:
    """Note that the log has rows of some videos, by tombstone."""
    connection.executemany(
        "UPDATE main.erased SET in_log = 1 WHERE tombstone = ?", [(name,) for name in names]
    )


def clear_in_log(connection: sqlite3.Connection, *, but: Collection[str]) -> None:
    """Note that the log has no rows of erased videos any more, but perhaps of some, by tombstone."""
    noted = connection.execute("SELECT tombstone FROM main.erased WHERE in_log IS NOT NULL").fetchall()
    connection.executemany(
        "UPDATE main.erased SET in_log = NULL WHERE tombstone = ?",
        [(name,) for (name,) in noted if name not in but],
    )
