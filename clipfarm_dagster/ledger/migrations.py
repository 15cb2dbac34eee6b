"""Brings a ledger's database up to what this version needs, with nothing lost."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, inspect, select, text, update
from sqlalchemy.schema import CreateColumn, CreateSchema

from clipfarm_dagster.ledger.former_ids import has_former_ids, rewrite_former_ids
from clipfarm_dagster.ledger.schema import SERVING_ITEMS, UNNAMED, Tables, items_table, new_version


def is_current(connection: Connection, tables: Tables) -> bool:
    """Whether the database has all that this version needs, so that opening it changes nothing."""
    inspector = inspect(connection)
    if not all(inspector.has_table(table.name, table.schema) for table in tables.all()):
        return False
    for table in (tables.unsent, tables.generations, *_items_tables(connection, tables)):
        if table is not None and not _columns(inspector, table) >= set(table.columns.keys()):
            return False
    return (
        _indexed(inspector, tables.items)
        >= {column.name for i in tables.items.indexes for column in i.columns}
        and connection.execute(select(tables.versions)).first() is not None
        and connection.execute(select(tables.generations)).first() is not None
        and not has_former_ids(connection, tables.contracts)
    )


def migrate(connection: Connection, tables: Tables) -> None:
    """Add what is missing, in a transaction that writes."""
    schema, items = tables.items.schema, tables.items
    if schema is not None:
        # other processes that open the same new or older database wait here
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": schema})
        connection.execute(CreateSchema(schema, if_not_exists=True))
    inspector = inspect(connection)
    of_before = _columns(inspector, items) if inspector.has_table(items.name, schema) else None
    if tables.unsent is not None:
        _migrate_unsent(connection, inspector, tables.unsent)
    for table in tables.all():
        if table is not items:
            table.create(connection, checkfirst=True)
    if connection.execute(select(tables.versions)).first() is None:
        connection.execute(tables.versions.insert().values(token=new_version()))
    if connection.execute(select(tables.generations)).first() is None:
        connection.execute(tables.generations.insert().values(contract_id=UNNAMED, table_name=SERVING_ITEMS))
    if of_before is None:
        items.create(connection)
        return
    for table in (tables.generations, *_items_tables(connection, tables)):
        for column in table.columns:
            if column.name not in _columns(inspector, table):
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(text(f"ALTER TABLE {table.fullname} ADD COLUMN {definition}"))
    indexed = _indexed(inspector, items)
    for index in items.indexes:
        if not {column.name for column in index.columns} <= indexed:
            index.create(connection, checkfirst=True)
    _rewrite_former_ids(connection, tables)
    if tables.unsent is not None and "row_version" not in of_before:  # of before the journal
        connection.execute(
            text(
                "INSERT OR IGNORE INTO unsent (generation, video_id, base_version)"
                " SELECT '', video_id, 0 FROM processed_items"
            )
        )


def _rewrite_former_ids(connection: Connection, tables: Tables) -> None:
    if has_former_ids(connection, tables.contracts):
        rewrite_former_ids(connection, tables.contracts, _items_tables(connection, tables))
        connection.execute(update(tables.versions).values(token=new_version()))


def _items_tables(connection: Connection, tables: Tables) -> list[Table]:
    names = connection.execute(select(tables.generations.c.table_name)).scalars()
    return [items_table(tables.items.schema, name) for name in names if name is not None]


def _migrate_unsent(connection: Connection, inspector: Any, unsent: Table) -> None:
    """Rows of before there were generations are of the one that serves, which has no name yet."""
    if not inspector.has_table(unsent.name) or "generation" in _columns(inspector, unsent):
        return
    connection.execute(text("ALTER TABLE unsent RENAME TO unsent_before"))
    unsent.create(connection)
    connection.execute(text("INSERT INTO unsent SELECT '', video_id, base_version FROM unsent_before"))
    connection.execute(text("DROP TABLE unsent_before"))


def _columns(inspector: Any, table: Table) -> set[str]:
    return {column["name"] for column in inspector.get_columns(table.name, table.schema)}


def _indexed(inspector: Any, table: Table) -> set[str]:
    """Names of the columns that a table has an index of. The indexes' own names tell the table for which they
    were made, which may have been renamed."""
    return {
        name for index in inspector.get_indexes(table.name, table.schema) for name in index["column_names"]
    }
