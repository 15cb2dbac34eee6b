"""What the store's log of a ledger consists of, and how much of it an SQLite file holds (see `journal`)."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

ATTEMPTS = 20
"""So often something is tried again where other machines have changed the log meanwhile."""


@dataclass(frozen=True)
class JournalKeys:
    """Where a stage's shared ledger lies in the store."""

    snapshot: str
    folder: str
    """With a slash at the end."""

    @property
    def head(self) -> str:
        """The object that says what there is."""
        return f"{self.folder}head.json"


class SharedLog(Protocol):
    """How a ledger tells other machines what was written to it (see `journal.Journal`)."""

    def send(self) -> bool:
        """Append what was written since the last time; tells whether there was anything."""

    def push(self) -> bool:
        """`send`, and then tidy the log if that is due; tells whether there was anything to send."""

    def remove_scratch(self) -> None:
        """Remove copies of the ledger that a killed process has left on this machine."""

    def rewrite(self) -> None:
        """Make the log anew of this ledger's rows and those that others are adding: nothing else is left."""


@dataclass(frozen=True)
class Segment:
    """Some rows of the log, or that a generation was dropped."""

    number: int
    key: str
    """Of the object with the rows; empty where there are none."""
    rows: int
    dropped: str | None = None
    """Contract id of the generation whose rows up to here count no longer."""


@dataclass(frozen=True)
class Head:
    """What the log holds: a snapshot of everything up to a number, and the segments that follow it."""

    log_id: str
    """Random; another one after the log was lost and begun anew."""
    number: int = 0
    snapshot_number: int = 0
    """0 where there is no snapshot."""
    segments: tuple[Segment, ...] = ()
    maker: str | None = None
    """Random text of the machine that began the latest snapshot; nobody else may finish one meanwhile."""

    def to_json(self) -> bytes:
        """As the store keeps it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Head:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        told = json.loads(data)
        segments = tuple(
            Segment(int(s["number"]), str(s["key"]), int(s["rows"]), s.get("dropped"))
            for s in told["segments"]
        )
        number, snapshot_number = int(told["number"]), int(told["snapshot_number"])
        return cls(str(told["log_id"]), number, snapshot_number, segments, told.get("maker"))


@dataclass(frozen=True)
class Position:
    """How much of the log a ledger holds."""

    number: int = 0
    head_etag: str | None = None
    head: str | None = None
    snapshot_etag: str | None = None
    """Of a snapshot of before there was a log."""
    lost: str | None = None
    """The key whose object is gone or damaged, so that the log has to begin anew."""
    log_id: str | None = None

    @classmethod
    def at(cls, head: Head, etag: str) -> Position:
        """That of a ledger that holds all up to a head."""
        return cls(head.number, etag, head.to_json().decode(), log_id=head.log_id)


def read_position(connection: sqlite3.Connection) -> Position:
    """How much of the log a database holds."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "journal_position" in names:
        return Position(*connection.execute("SELECT * FROM journal_position").fetchone())
    if "snapshot_base" in names:  # of before there was a log
        row = connection.execute("SELECT etag FROM snapshot_base").fetchone()
        return Position(snapshot_etag=row[0] if row else None)
    return Position()


def write_position(connection: sqlite3.Connection, position: Position) -> None:
    """Note, in the caller's transaction, how much of the log a database holds."""
    connection.execute(
        "CREATE TABLE IF NOT EXISTS journal_position"
        " (number INTEGER, head_etag TEXT, head TEXT, snapshot_etag TEXT, lost TEXT, log_id TEXT)"
    )
    connection.execute("DELETE FROM journal_position")
    connection.execute(
        "INSERT INTO journal_position VALUES (:number, :head_etag, :head, :snapshot_etag, :lost, :log_id)",
        asdict(position),
    )


@contextlib.contextmanager
def open_database(path: Path, *, timeout: float = 60) -> Iterator[sqlite3.Connection]:
    """A connection to an SQLite file that trusts nothing in its schema, and waits for locks, in seconds."""
    with contextlib.closing(sqlite3.connect(path, timeout=timeout, isolation_level=None)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        yield connection
