"""The hashes: unambiguous, and the same in Python and SQL."""

from __future__ import annotations

import hashlib

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfarm_dagster.catalog.duckdb_connection import duckdb_connection
from clipfarm_dagster.vectors.hashing import metadata_hash, metadata_hash_sql, source_hash, source_hash_sql

# DuckDB takes no NUL in a text, and the CSV may not have any.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def test_known_values() -> None:
    assert metadata_hash(()) == hashlib.sha256(b"").hexdigest()
    assert metadata_hash(["é", None, "b,"]) == hashlib.sha256("2:é,0:,2:b,,".encode()).hexdigest()
    assert source_hash("m", '"e"') == hashlib.sha256(b'm:"e"').hexdigest()


@given(st.lists(text, max_size=4), st.lists(text, max_size=4))
def test_different_rows_never_collide(a: list[str], b: list[str]) -> None:
    assert (metadata_hash(a) == metadata_hash(b)) == (a == b)


def test_moving_text_between_columns_changes_the_hash() -> None:
    hashes = {metadata_hash(row) for row in (["ab", ""], ["a", "b"], ["", "ab"], ["1:a,", "b"], ["ab"])}
    assert len(hashes) == 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.none() | text] * 3), min_size=1, max_size=30), st.integers(0, 3))
def test_sql_agrees_with_python(rows: list[tuple[str | None, ...]], columns: int) -> None:
    names = [f"c{i}" for i in range(3)]
    table = pa.table({name: pa.array([r[i] for r in rows], pa.string()) for i, name in enumerate(names)})
    hash_sql = metadata_hash_sql(names[:columns])
    with duckdb_connection() as connection:
        connection.register("t", table)
        found = connection.sql(f"SELECT {hash_sql}, {source_hash_sql(hash_sql, 'c2')} FROM t").fetchall()
    for row, (of_metadata, of_source) in zip(rows, found, strict=True):
        assert of_metadata == metadata_hash(row[:columns])
        assert of_source == (None if row[2] is None else source_hash(of_metadata, row[2]))
