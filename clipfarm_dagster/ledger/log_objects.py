"""Reads what the store has of a ledger's log, and tells what is gone or damaged."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

from clipfarm_dagster.errors import ObjectMissingError
from clipfarm_dagster.ledger.generations import tables_of
from clipfarm_dagster.ledger.log import Head, JournalKeys, Segment, open_database
from clipfarm_dagster.ledger.schema import SERVING_ITEMS
from clipfarm_dagster.store import ObjectStore


class LostError(Exception):
    """A part of the log is gone or damaged."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(f"{key!r}: {problem}")


def read_head(store: ObjectStore, keys: JournalKeys) -> tuple[Head | None, str | None]:
    """The head of the log and its ETag; None where there is none.

    Raises:
        LostError: it is damaged.
        StoreError: the store cannot be read.
    """
    try:
        stored = store.get(keys.head)
    except ObjectMissingError:
        return None, None
    try:
        return Head.from_json(stored.data), stored.info.etag
    except (ValueError, TypeError, KeyError) as error:
        raise LostError(keys.head, f"it is damaged ({type(error).__name__})") from None


def read_segment(store: ObjectStore, segment: Segment) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The contracts and the rows of a segment.

    Raises:
        LostError: it is damaged.
        StoreError: the store cannot be read, or the segment is not there.
    """
    if not segment.key:
        return {}, []
    try:
        lines = gzip.decompress(store.get(segment.key).data).decode().splitlines()
        contracts, *rows = (json.loads(line) for line in lines)
        return dict(contracts), [dict(row) for row in rows]
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise LostError(segment.key, f"it is damaged ({type(error).__name__})") from None


def check_snapshot(path: Path, key: str) -> None:
    """Refuse what is not plain tables of rows: a view or a virtual table would run what its maker wrote.

    Raises:
        LostError: it is something else, or damaged.
    """
    try:
        with open_database(path) as connection:
            plain = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage <> 0"
            ).fetchall()
            named = connection.execute("SELECT name FROM sqlite_master").fetchall()
            items = tables_of(connection).values() if ("generations",) in plain else [SERVING_ITEMS]
    except sqlite3.DatabaseError as error:
        raise LostError(key, f"it is not a ledger snapshot ({error})") from None
    read = {*items, SERVING_ITEMS, *({"generations", "contracts"} & {name for (name,) in named})}
    if missing := read - {name for (name,) in plain}:
        raise LostError(key, f"it is not a ledger snapshot (it has no table {', '.join(sorted(missing))})")
