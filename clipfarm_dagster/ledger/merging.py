"""Takes rows of the store's into an SQLite ledger, in a transaction of the caller's.

Rows that nobody has written here since the store had them give way. A row that was written on both sides is
merged (`versions.merged`), and sent again.
"""

# ruff: noqa: S608 (names of tables are constants, those of columns are checked)

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from clipfarm_dagster.ledger.schema import LEDGER_COLUMNS, LedgerRow
from clipfarm_dagster.ledger.versions import merged, next_version

_COLUMN_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_OF_ANOTHER_LOG = -1
"""Base version of rows that another log had, until it is known whether this one has them."""
_CLAIM = ("vector_source_hash", "vector_contract_id", "artifact_sha256")


def merge_table(connection: sqlite3.Connection, schema: str, table: str) -> int:
    """Merge the rows of a table of the store's; tells how many rows are another than before.

    Columns that this version of ClipFarm does not know are kept as they are.
    """
    columns = _columns(connection, schema, table)
    _add_columns(connection, columns)
    source = f"{schema}.{table}"
    theirs = "coalesce(s.row_version, 0)" if "row_version" in columns else "0"
    connection.execute(
        f"""DELETE FROM unsent
        WHERE base_version = {_OF_ANOTHER_LOG} AND video_id IN (SELECT video_id FROM {source})"""
    )
    connection.execute(
        f"""DELETE FROM unsent WHERE EXISTS (
            SELECT 1 FROM {source} s JOIN main.processed_items m USING (video_id)
            WHERE s.video_id = unsent.video_id AND {theirs} = m.row_version AND m.row_version <> 0)"""
    )
    changed = _merge_conflicts(connection, source, theirs, columns)
    names = ", ".join(columns)
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns if name != "video_id")
    return (
        changed
        + connection.execute(
            f"""INSERT INTO main.processed_items ({names})
            SELECT {names} FROM {source} s
            WHERE s.video_id IS NOT NULL AND s.video_id NOT IN (SELECT video_id FROM unsent)
                AND NOT EXISTS (SELECT 1 FROM main.processed_items m
                    WHERE m.video_id = s.video_id AND m.row_version = {theirs} AND m.row_version <> 0)
            ON CONFLICT (video_id) DO UPDATE SET {changes}"""
        ).rowcount
    )


def merge_rows(connection: sqlite3.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Merge rows as `merge_table` does; all have the same columns."""
    if not rows:
        return 0
    names = [name for name in rows[0] if _COLUMN_NAME.fullmatch(name)]
    connection.execute(f"CREATE TEMP TABLE theirs ({', '.join(names)})")
    try:
        connection.executemany(
            f"INSERT INTO temp.theirs VALUES ({', '.join('?' * len(names))})",
            [[row[name] for name in names] for row in rows],
        )
        return merge_table(connection, "temp", "theirs")
    finally:
        connection.execute("DROP TABLE temp.theirs")


def offer_all(connection: sqlite3.Connection) -> None:
    """Let rows that another log had give way to those of this one; `settle_offers` has the others sent."""
    connection.execute(
        f"INSERT OR IGNORE INTO unsent SELECT video_id, {_OF_ANOTHER_LOG} FROM processed_items"
    )


def settle_offers(connection: sqlite3.Connection) -> None:
    """Send the offered rows that nothing was merged with."""
    connection.execute(f"UPDATE unsent SET base_version = 0 WHERE base_version = {_OF_ANOTHER_LOG}")


def doubt_all(connection: sqlite3.Connection) -> None:
    """Let every row count as written on both sides, unless the store has the very same version of it."""
    connection.execute(
        """INSERT INTO unsent SELECT video_id, NULL FROM processed_items WHERE true
        ON CONFLICT (video_id) DO UPDATE SET base_version = NULL"""
    )


def _merge_conflicts(connection: sqlite3.Connection, source: str, theirs: str, columns: Sequence[str]) -> int:
    # rows of before there were versions are alike if they claim the same vector
    differing = " OR ".join(f"s.{name} IS NOT m.{name}" for name in _CLAIM if name in columns) or "true"
    known = [name for name in LEDGER_COLUMNS if name in columns]
    selected = [f"s.{name}" for name in known] + [f"m.{name}" for name in LEDGER_COLUMNS]
    found = connection.execute(
        f"""SELECT {", ".join(selected)}
        FROM {source} s JOIN unsent u USING (video_id) JOIN main.processed_items m USING (video_id)
        WHERE {theirs} IS NOT u.base_version OR ({theirs} = 0 AND ({differing}))"""
    ).fetchall()
    both = [
        (
            LedgerRow(**dict(zip(LEDGER_COLUMNS, values[len(known) :], strict=True))),
            LedgerRow(**dict(zip(known, values, strict=False))),
        )
        for values in found
    ]
    connection.executemany(
        f"UPDATE main.processed_items SET {', '.join(f'{n} = :{n}' for n in LEDGER_COLUMNS)}"
        " WHERE video_id = :video_id",
        [
            asdict(
                replace(merged(ours, other), row_version=next_version(ours.row_version, other.row_version))
            )
            for ours, other in both
        ],
    )
    connection.executemany(
        "UPDATE unsent SET base_version = ? WHERE video_id = ?",
        [(other.row_version or 0, other.video_id) for _, other in both],
    )
    return len(both)


def _columns(connection: sqlite3.Connection, schema: str, table: str) -> list[str]:
    found = connection.execute(f"PRAGMA {schema}.table_info({table})").fetchall()
    return [name for _, name, *_ in found if _COLUMN_NAME.fullmatch(name)]


def _add_columns(connection: sqlite3.Connection, names: Sequence[str]) -> None:
    known = _columns(connection, "main", "processed_items")
    for name in names:
        if name not in known:
            connection.execute(f"ALTER TABLE main.processed_items ADD COLUMN {name}")
