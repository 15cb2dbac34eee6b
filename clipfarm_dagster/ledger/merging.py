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

from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from clipfarm_dagster.ledger.generations import items_name, serving_of, tables_of
from clipfarm_dagster.ledger.schema import (
    LEDGER_COLUMNS,
    SERVING_ITEMS,
    UNNAMED,
    LedgerRow,
    items_table,
    new_version,
)
from clipfarm_dagster.ledger.tombstones import Erased
from clipfarm_dagster.ledger.unsent import OF_ANOTHER_LOG
from clipfarm_dagster.ledger.versions import merged, next_version

_COLUMN_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_CLAIM = ("vector_source_hash", "vector_contract_id", "artifact_sha256", "artifact_key")


def merge_table(connection: sqlite3.Connection, schema: str, table: str, generation: str) -> int:
    """Merge the rows of a generation from a table of the store's; tells how many rows are another than
    before.

    Columns that this version of ClipFarm does not know are kept as they are.
    """
    ours = own_table(connection, generation)
    columns = _columns(connection, schema, table)
    _add_columns(connection, ours, columns)
    source = f"{schema}.{table}"
    theirs = "coalesce(s.row_version, 0)" if "row_version" in columns else "0"
    connection.execute(
        f"""DELETE FROM unsent
        WHERE generation = ? AND base_version = {OF_ANOTHER_LOG}
            AND video_id IN (SELECT video_id FROM {source})""",
        [generation],
    )
    connection.execute(
        f"""DELETE FROM unsent WHERE generation = ? AND EXISTS (
            SELECT 1 FROM {source} s JOIN {ours} m USING (video_id)
            WHERE s.video_id = unsent.video_id AND {theirs} = m.row_version AND m.row_version <> 0)""",
        [generation],
    )
    changed = _merge_conflicts(connection, ours, generation, source, theirs, columns)
    names = ", ".join(columns)
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns if name != "video_id")
    changed += connection.execute(
        f"""INSERT INTO {ours} ({names})
        SELECT {names} FROM {source} s
        WHERE s.video_id IS NOT NULL
            AND s.video_id NOT IN (SELECT video_id FROM unsent WHERE generation = ?)
            AND NOT EXISTS (SELECT 1 FROM {ours} m
                WHERE m.video_id = s.video_id AND m.row_version = {theirs} AND m.row_version <> 0)
        ON CONFLICT (video_id) DO UPDATE SET {changes}""",
        [generation],
    ).rowcount
    if changed:
        connection.execute(
            "UPDATE generations SET version = ? WHERE contract_id = ?", [new_version(), generation]
        )
    return changed


def merge_rows(connection: sqlite3.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Merge rows as `merge_table` does, each into its `generation`; those that name none are of the one that
    serves. All of a generation have the same columns."""
    by_generation: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_generation.setdefault(str(row.get("generation") or UNNAMED), []).append(row)
    return sum(_merge_some(connection, some, of) for of, some in by_generation.items())


def _merge_some(connection: sqlite3.Connection, rows: Sequence[Mapping[str, Any]], generation: str) -> int:
    names = [name for name in rows[0] if _COLUMN_NAME.fullmatch(name) and name != "generation"]
    connection.execute(f"CREATE TEMP TABLE theirs ({', '.join(names)})")
    try:
        connection.executemany(
            f"INSERT INTO temp.theirs VALUES ({', '.join('?' * len(names))})",
            [[row[name] for name in names] for row in rows],
        )
        return merge_table(connection, "temp", "theirs", generation or serving_of(connection))
    finally:
        connection.execute("DROP TABLE temp.theirs")


def own_table(connection: sqlite3.Connection, generation: str) -> str:
    """Name of the table of a generation's rows here, made where there is none."""
    tables = tables_of(connection)
    if generation not in tables:
        name = items_name(generation)
        table = items_table(name=name)
        connection.execute(str(CreateTable(table).compile(dialect=sqlite.dialect())))
        for index in table.indexes:
            connection.execute(str(CreateIndex(index).compile(dialect=sqlite.dialect())))
        connection.execute(
            "INSERT OR REPLACE INTO generations (contract_id, table_name) VALUES (?, ?)", [generation, name]
        )
        return f"main.{name}"
    return f"main.{tables[generation]}"


def forget_unlisted(connection: sqlite3.Connection, schema: str) -> int:
    """Remove what a snapshot no longer has, since its generation was dropped: rows that were sent, of
    generations that do not serve."""
    theirs, removed = tables_of(connection, schema), 0
    for generation, table in tables_of(connection).items():
        if table == SERVING_ITEMS:
            continue
        listed = (
            f"UNION ALL SELECT video_id FROM {schema}.{theirs[generation]}" if generation in theirs else ""
        )
        removed += connection.execute(
            f"""DELETE FROM main.{table}
            WHERE video_id NOT IN (SELECT video_id FROM unsent WHERE generation = ? {listed})""",
            [generation],
        ).rowcount
    return removed


def drop_generation(connection: sqlite3.Connection, generation: str) -> int:
    """Forget a generation that another machine has dropped, unless it serves; tells how many rows went."""
    table = tables_of(connection).get(generation)
    if table == SERVING_ITEMS:
        return 0
    connection.execute("DELETE FROM generations WHERE contract_id = ?", [generation])
    connection.execute("DELETE FROM unsent WHERE generation = ?", [generation])
    if table is None:
        return 0
    (count,) = connection.execute(f"SELECT count(*) FROM main.{table}").fetchone()
    connection.execute(f"DROP TABLE main.{table}")
    return int(count) + 1


def add_contracts(connection: sqlite3.Connection, contracts: Mapping[str, str]) -> None:
    """Remember what contract ids of the store's stand for."""
    connection.executemany(
        "INSERT OR IGNORE INTO main.contracts (contract_id, contract) VALUES (?, ?)", [*contracts.items()]
    )


def remove_erased(connection: sqlite3.Connection, schema: str, table: str, erased: Erased) -> set[str]:
    """Remove the rows of erased videos from a table of a copy; returns their ids."""
    if not erased:
        return set()
    found = connection.execute(f"SELECT video_id FROM {schema}.{table} WHERE video_id IS NOT NULL")
    gone = erased.among(str(video_id) for (video_id,) in found)
    connection.executemany(f"DELETE FROM {schema}.{table} WHERE video_id = ?", [(one,) for one in gone])
    return gone


def _merge_conflicts(
    connection: sqlite3.Connection,
    ours_table: str,
    generation: str,
    source: str,
    theirs: str,
    columns: Sequence[str],
) -> int:
    # rows of before there were versions are alike if they claim the same vector
    differing = " OR ".join(f"s.{name} IS NOT m.{name}" for name in _CLAIM if name in columns) or "true"
    known = [name for name in LEDGER_COLUMNS if name in columns]
    selected = [f"s.{name}" for name in known] + [f"m.{name}" for name in LEDGER_COLUMNS]
    found = connection.execute(
        f"""SELECT {", ".join(selected)}
        FROM {source} s JOIN unsent u USING (video_id) JOIN {ours_table} m USING (video_id)
        WHERE u.generation = ?
            AND ({theirs} IS NOT u.base_version OR ({theirs} = 0 AND ({differing})))""",
        [generation],
    ).fetchall()
    both = [
        (
            LedgerRow(**dict(zip(LEDGER_COLUMNS, values[len(known) :], strict=True))),
            LedgerRow(**dict(zip(known, values, strict=False))),
        )
        for values in found
    ]
    connection.executemany(
        f"UPDATE {ours_table} SET {', '.join(f'{n} = :{n}' for n in LEDGER_COLUMNS)}"
        " WHERE video_id = :video_id",
        [
            asdict(
                replace(merged(ours, other), row_version=next_version(ours.row_version, other.row_version))
            )
            for ours, other in both
        ],
    )
    connection.executemany(
        "UPDATE unsent SET base_version = ? WHERE generation = ? AND video_id = ?",
        [(other.row_version or 0, generation, other.video_id) for _, other in both],
    )
    return len(both)


def _columns(connection: sqlite3.Connection, schema: str, table: str) -> list[str]:
    found = connection.execute(f"PRAGMA {schema}.table_info({table})").fetchall()
    return [name for _, name, *_ in found if _COLUMN_NAME.fullmatch(name)]


def _add_columns(connection: sqlite3.Connection, ours: str, names: Sequence[str]) -> None:
    known = _columns(connection, *ours.split("."))
    for name in names:
        if name not in known:
            connection.execute(f"ALTER TABLE {ours} ADD COLUMN {name}")
