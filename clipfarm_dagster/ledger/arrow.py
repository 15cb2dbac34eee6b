"""How a ledger's columns become Arrow's, whatever an SQLite column really holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table

if TYPE_CHECKING:
    import pyarrow as pa

_SQL_TYPE = {"text": "TEXT", "integer": "BIGINT", "big_integer": "BIGINT", "float": "DOUBLE PRECISION"}
_SQL_ZERO = {"text": "''", "integer": "0", "big_integer": "0", "float": "0.0"}


def rows_to_arrow(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Rows of values in the order of `schema` as a table."""
    import pyarrow as pa

    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema
    )


def cast_expression(column: Column[Any]) -> str:
    """SQL that reads a column as its declared type: an SQLite column may hold anything."""
    return f"CAST({column.name} AS {_SQL_TYPE[column.type.__visit_name__]}) AS {column.name}"


def zero_expression(column: Column[Any]) -> str:
    """SQL for a value of a column's type that is not null."""
    return f"{_SQL_ZERO[column.type.__visit_name__]} AS {column.name}"


def arrow_schema(table: Table, names: Sequence[str]) -> pa.Schema:
    """The Arrow types of some columns."""
    import pyarrow as pa

    kinds = {
        "text": pa.string(),
        "integer": pa.int64(),
        "big_integer": pa.int64(),
        "float": pa.float64(),
    }
    return pa.schema([(name, kinds[table.c[name].type.__visit_name__]) for name in names])
