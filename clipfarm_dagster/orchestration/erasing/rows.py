"""Takes ids out of the rows of Dagster's tables: deletes rows of their own, replaces them in others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Row, Table, select

from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.orchestration.erasing.databases import Database
from clipfarm_dagster.orchestration.erasing.scope import Scope

_ROWS_AT_A_TIME = 200
_READ_AT_A_TIME = 1000
_IDS_AT_A_TIME = 100
PARTITIONS_TABLE = "dynamic_partitions"
"""Where the partitions are: the last to go, so that what was broken off before can be seen."""


@dataclass
class Counts:
    """What was done to a database."""

    deleted: Counter[str] = field(default_factory=Counter)
    """Rows by table."""
    replaced: Counter[str] = field(default_factory=Counter)
    """Rows by table and column."""

    def add(self, other: Counts) -> None:
        """Count what was done to another database."""
        self.deleted.update(other.deleted)
        self.replaced.update(other.replaced)

    def tables(self) -> set[str]:
        """The tables that were changed."""
        return set(+self.deleted) | {place.split(".")[0] for place in self.replaced}


def clear_rows(
    database: Database,
    ids: IdText,
    asset_keys: frozenset[str],
    whole: frozenset[str],
    scope: Scope,
    *,
    dry_run: bool = False,
) -> Counts:
    """Delete the events of the ids' partitions of some assets, and replace the ids wherever else they are.

    Args:
        asset_keys: as the tables have them, in JSON.
        whole: of assets all of whose events are deleted, since they have more of videos than their ids.
        dry_run: whether only to count.

    Raises:
        ErasureError: the database cannot be used; what was done can be repeated.
    """
    counts = Counts()
    present = database.table_names()
    # events before assets, which name the latest of them
    tables = sorted(database.tables, key=lambda table: table.name != "event_logs")
    for table in tables:
        if table.name not in present or table.name == PARTITIONS_TABLE:
            continue
        columns = _columns(database, table)
        if not columns:
            continue
        for keys in _rows_with(database, table, columns, ids, whole):
            query = select(table.c.id, *columns).where(table.c.id.in_(keys))
            if dry_run:
                with database.reading() as connection:
                    rows = connection.execute(query).fetchall()
                    _count(connection, table, rows, ids, asset_keys, whole, scope, counts)
                continue
            with database.writing() as connection:
                rows = connection.execute(query.with_for_update()).fetchall()
                _clear(connection, table, rows, ids, asset_keys, whole, scope, counts)
    return counts


def delete_partitions(database: Database, partitions_name: str, ids: IdText) -> int:
    """Delete partition keys; how many there were.

    Raises:
        ErasureError: the database cannot be used.
    """
    table = _table(database, PARTITIONS_TABLE)
    deleted = 0
    for chunk in _chunks(list(ids.tombstones), _IDS_AT_A_TIME):
        with database.writing() as connection:
            deleted += connection.execute(
                table.delete().where(
                    table.c.partitions_def_name == partitions_name, table.c.partition.in_(chunk)
                )
            ).rowcount
    return deleted


def partition_keys(database: Database) -> dict[str, set[str]]:
    """All keys of each set of dynamic partitions, by its name.

    Raises:
        ErasureError: the database cannot be used.
    """
    table = _table(database, PARTITIONS_TABLE)
    found: dict[str, set[str]] = {}
    with database.reading() as connection:
        for name, key in connection.execute(select(table.c.partitions_def_name, table.c.partition)):
            found.setdefault(name, set()).add(key)
    return found


def _clear(
    connection: Connection,
    table: Table,
    rows: Sequence[Row[Any]],
    ids: IdText,
    asset_keys: frozenset[str],
    whole: frozenset[str],
    scope: Scope,
    counts: Counts,
) -> None:
    """Delete and change rows of one table, all of which may have ids."""
    own = _own_events(table, rows, ids, asset_keys, whole)
    if own:
        tags = table.metadata.tables["asset_event_tags"]
        counts.deleted[tags.name] += connection.execute(
            tags.delete().where(tags.c.event_id.in_(own))
        ).rowcount
        counts.deleted[table.name] += connection.execute(table.delete().where(table.c.id.in_(own))).rowcount
    for row in rows:
        values = dict(row._mapping)
        if row.id in own:
            continue
        changed = _changed(values, scope.of_row(table.name, values))
        if table.name == "asset_keys" and row.asset_key in whole and row.last_materialization is not None:
            changed = {**changed, "last_materialization": ""}
        if table.name == "asset_keys" and changed:
            changed = _changed_asset(connection, table, values, changed)
        if changed:
            connection.execute(table.update().where(table.c.id == row.id).values(**changed))
            counts.replaced.update(f"{table.name}.{column}" for column in changed)


def _count(
    connection: Connection,
    table: Table,
    rows: Sequence[Row[Any]],
    ids: IdText,
    asset_keys: frozenset[str],
    whole: frozenset[str],
    scope: Scope,
    counts: Counts,
) -> None:
    """Count what `_clear` does."""
    own = _own_events(table, rows, ids, asset_keys, whole)
    if own:
        tags = table.metadata.tables["asset_event_tags"]
        query = select(sqlalchemy.func.count()).select_from(tags).where(tags.c.event_id.in_(own))
        counts.deleted[tags.name] += connection.execute(query).scalar_one()
        counts.deleted[table.name] += len(own)
    for row in rows:
        values = dict(row._mapping)
        if row.id not in own:
            changed = _changed(values, scope.of_row(table.name, values))
            counts.replaced.update(f"{table.name}.{column}" for column in changed)


def _own_events(
    table: Table,
    rows: Sequence[Row[Any]],
    ids: IdText,
    asset_keys: frozenset[str],
    whole: frozenset[str],
) -> set[int]:
    """Those of some rows that are events of the ids' partitions, or of assets all of whose events go."""
    if table.name != "event_logs":
        return set()
    return {
        row.id
        for row in rows
        if row.asset_key in whole or (row.asset_key in asset_keys and row.partition in ids.tombstones)
    }


def _changed(values: Mapping[str, Any], ids: IdText) -> dict[str, str]:
    """The columns of a row that have ids, as they are without them."""
    changed = {}
    for column, value in values.items():
        if isinstance(value, str):
            # a tag's key says what its value is
            tag = values.get("key") if column == "value" else None
            replaced = ids.replaced_value(value, tag or column)
            if replaced != value:
                changed[column] = replaced
    return changed


def _changed_asset(
    connection: Connection, table: Table, values: Mapping[str, Any], changed: Mapping[str, str]
) -> dict[str, Any]:
    """The same for the row of an asset, which has a cache and a copy of the latest materialization.

    Dagster makes the cache again; it counts partitions, and a tombstone is none.
    """
    new: dict[str, Any] = dict(changed)
    if "cached_status_data" in new:
        new["cached_status_data"] = None
    if "last_materialization" in new:
        new["last_materialization"] = _latest_materialization(connection, table, values["asset_key"])
    return new


def _latest_materialization(connection: Connection, table: Table, asset_key: str) -> str | None:
    """What Dagster keeps of an asset's latest materialization, by the events that there are."""
    from dagster import DagsterEventType, EventLogEntry
    from dagster._core.event_api import EventLogRecord
    from dagster._serdes import deserialize_value, serialize_value

    events = table.metadata.tables["event_logs"]
    latest = connection.execute(
        select(events.c.id, events.c.event)
        .where(
            events.c.asset_key == asset_key,
            events.c.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION.value,
        )
        .order_by(events.c.id.desc())
        .limit(1)
    ).first()
    if latest is None:
        return None
    return serialize_value(EventLogRecord(latest.id, deserialize_value(latest.event, EventLogEntry)))


def _rows_with(
    database: Database, table: Table, columns: Sequence[Any], ids: IdText, whole: frozenset[str]
) -> Iterator[list[int]]:
    """Keys of rows that are of some assets, or have the text of an id in one of some columns, in batches."""
    position = sqlalchemy.func.strpos if database.path is None else sqlalchemy.func.instr
    found: set[int] = set()
    with database.reading() as connection:
        if table.name in ("event_logs", "asset_keys"):
            found.update(connection.execute(select(table.c.id).where(table.c.asset_key.in_(whole))).scalars())
        if ids.are_few:
            conditions = [position(column, video_id) > 0 for column in columns for video_id in ids.tombstones]
            found.update(connection.execute(select(table.c.id).where(sqlalchemy.or_(*conditions))).scalars())
        else:
            together = reduce(add, (sqlalchemy.func.coalesce(column, "") + " " for column in columns))
            rows = connection.execution_options(yield_per=_READ_AT_A_TIME).execute(
                select(table.c.id, together)
            )
            for batch in rows.partitions():
                held = ids.held_in([text for _, text in batch])
                found.update(row_id for (row_id, _), has in zip(batch, held, strict=True) if has)
    yield from _chunks(sorted(found), _ROWS_AT_A_TIME)


def _columns(database: Database, table: Table) -> list[Any]:
    """The columns of text that the database has: those of an older Dagster have fewer."""
    with database.reading() as connection:
        present = {column["name"] for column in sqlalchemy.inspect(connection).get_columns(table.name)}
    return [
        column for column in table.c if column.name in present and isinstance(column.type, sqlalchemy.String)
    ]


def _table(database: Database, name: str) -> Table:
    return next(table for table in database.tables if table.name == name)


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
