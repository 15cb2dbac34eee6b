"""How the SQLite ledgers of several machines stay one: a log in the store, and its snapshot.

    <stage>_embedding.sqlite                        snapshot: all rows up to a number of the log
    <stage>_embedding.journal/head.json             which segments follow; replaced by conditional puts
    <stage>_embedding.journal/<number>-….jsonl.gz   a segment: rows that one machine wrote

All generations of a stage share the log; each row in it names its own. `send` appends the rows that were
written here since. Whoever finds that the head has moved takes in what others have appended (`take_in`), and
tries again: so all machines see one order, and no clock has a say. When segments hold more than a tenth of
all rows, the snapshot is made anew and they are removed.

A snapshot may hold rows that are not in the log yet. They do no harm: whoever writes such a row finds by its
version that somebody else has written it too.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from clipfarm_dagster.errors import LedgerError, ObjectMissingError, PreconditionFailedError
from clipfarm_dagster.ledger.former_ids import rewrite_merged_ids
from clipfarm_dagster.ledger.generations import serving_of, tables_of
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import (
    Head,
    JournalKeys,
    Position,
    Segment,
    open_database,
    read_position,
    write_position,
)
from clipfarm_dagster.ledger.merging import drop_generation, forget_unlisted, merge_rows, merge_table
from clipfarm_dagster.ledger.migrations import new_version
from clipfarm_dagster.ledger.schema import SERVING_ITEMS, UNNAMED
from clipfarm_dagster.ledger.unsent import (
    SentRow,
    doubt_all,
    dropped_generations,
    has_unsent,
    note_sent,
    offer_all,
    send_all,
    settle_offers,
    unsent_rows,
)
from clipfarm_dagster.store import ObjectStore

_ATTEMPTS = 20
_SNAPSHOT_SHARE = 10
"""The snapshot is made anew when segments hold more than one in so many rows."""
_SEGMENT_ROWS = 20_000


class _LostError(Exception):
    """A part of the log is gone or damaged."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(f"{key!r}: {problem}")


class Journal:
    """One machine's end of a stage's log.

    Args:
        prove: called where the log is lost: has to compare the vectors that the ledger claims with the store,
            since nobody knows any more what others have overwritten.
    """

    def __init__(
        self, ledger: Ledger, store: ObjectStore, keys: JournalKeys, prove: Callable[[], object]
    ) -> None:
        path = ledger.sqlite_path
        assert path is not None
        self._ledger, self._path, self._store, self._keys = ledger, path, store, keys
        self._prove = prove
        self._lock = FileLock(f"{path}.lock")

    def take_in(self) -> None:
        """Take in what other machines have written since the last time.

        Raises:
            StoreError: the store cannot be read.
            LedgerError: the log is damaged, and there is nothing here to begin it anew with.
        """
        info = self._store.head(self._keys.head)
        position = self._position()
        etag = None if info is None else info.etag
        if etag is not None and etag == position.head_etag:
            return
        if etag is None and position.number == 0:
            snapshot = self._store.head(self._keys.snapshot)
            if snapshot is None or snapshot.etag == position.snapshot_etag:
                return
        if etag is None and position.lost is not None:
            return
        with self._lock:
            self._take_in()

    def push(self) -> bool:
        """`send`, and then make the snapshot anew if it is due; tells whether there was anything to send.

        Raises:
            StoreError: the store cannot be read or written.
            LedgerError: as from `send`.
        """
        with self._lock:
            sent = self.send()
            if sent:
                self._compact()
        return sent

    def send(self) -> bool:
        """Append what was written here since the last time; tells whether there was anything.

        Raises:
            StoreError: the store cannot be read or written.
            LedgerError: others keep winning the race, or the ledger cannot be copied or written.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                with self._connect() as connection:
                    if not has_unsent(connection):
                        return False
                try:
                    self._append(self._position())
                except PreconditionFailedError:
                    self._take_in()
                    continue
                return True
        raise LedgerError(
            f"the {self._ledger.stage} ledger in the store, {self._keys.head!r}, changed {_ATTEMPTS} times"
            " while this machine's rows were being added; nothing is lost, the next run adds them"
        )

    # reading the log

    def _take_in(self) -> None:
        try:
            for _ in range(_ATTEMPTS):
                with contextlib.suppress(ObjectMissingError):  # made anew meanwhile: look again
                    return self._read_log()
            raise _LostError(self._keys.snapshot, "what the head names is not there")
        except _LostError as lost:
            self._begin_anew(lost)

    def _read_log(self) -> None:
        position = self._position()
        head, etag = self._read_head()
        if head is None or etag is None:
            if position.number:
                raise _LostError(self._keys.head, "it is gone")
            return self._read_old_snapshot()
        another = position.log_id is not None and position.log_id != head.log_id
        rewound = not another and head.number < position.number
        with tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
            copy = Path(folder) / "snapshot.sqlite"
            start = 0 if another or rewound else position.number
            if start < head.snapshot_number:
                self._store.download(self._keys.snapshot, copy)
                _check_snapshot(copy, self._keys.snapshot)
                start = head.snapshot_number
            segments = [(s, self._read_segment(s)) for s in head.segments if s.number > start]
            with self._connect() as connection:
                if copy.exists():
                    connection.execute("ATTACH DATABASE ? AS snapshot", (str(copy),))
                connection.execute("BEGIN IMMEDIATE")
                if another:
                    offer_all(connection)
                if rewound:
                    doubt_all(connection)
                changed = self._merge_snapshot(connection) if copy.exists() else 0
                for segment, (contracts, rows) in segments:
                    if segment.dropped is not None:
                        changed += drop_generation(connection, segment.dropped)
                    changed += merge_rows(connection, rows)
                    _add_contracts(connection, contracts)
                rewrite_merged_ids(connection)
                settle_offers(connection)
                self._finish(connection, Position.at(head, etag), changed)
                connection.execute("COMMIT")
        return None

    def _read_head(self) -> tuple[Head | None, str | None]:
        try:
            stored = self._store.get(self._keys.head)
        except ObjectMissingError:
            return None, None
        try:
            return Head.from_json(stored.data), stored.info.etag
        except (ValueError, TypeError, KeyError) as error:
            raise _LostError(self._keys.head, f"it is damaged ({type(error).__name__})") from None

    def _read_old_snapshot(self) -> None:
        """Take in a snapshot that has no log yet."""
        with tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
            copy = Path(folder) / "snapshot.sqlite"
            try:
                etag = self._store.download(self._keys.snapshot, copy).etag
            except ObjectMissingError:
                return
            _check_snapshot(copy, self._keys.snapshot)
            with self._connect() as connection:
                connection.execute("ATTACH DATABASE ? AS snapshot", (str(copy),))
                connection.execute("BEGIN IMMEDIATE")
                changed = self._merge_snapshot(connection)
                rewrite_merged_ids(connection)
                self._finish(connection, Position(snapshot_etag=etag), changed)
                connection.execute("COMMIT")

    def _read_segment(self, segment: Segment) -> tuple[dict[str, str], list[dict[str, Any]]]:
        if not segment.key:
            return {}, []
        try:
            lines = gzip.decompress(self._store.get(segment.key).data).decode().splitlines()
            contracts, *rows = (json.loads(line) for line in lines)
            return dict(contracts), [dict(row) for row in rows]
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise _LostError(segment.key, f"it is damaged ({type(error).__name__})") from None

    def _merge_snapshot(self, connection: sqlite3.Connection) -> int:
        try:
            changed = 0
            for generation, table in tables_of(connection, "snapshot").items():
                changed += merge_table(connection, "snapshot", table, generation or serving_of(connection))
            tables = connection.execute("SELECT name FROM snapshot.sqlite_master").fetchall()
            if ("generations",) in tables:
                changed += forget_unlisted(connection, "snapshot")
            if ("contracts",) in tables:
                found = connection.execute("SELECT contract_id, contract FROM snapshot.contracts")
                _add_contracts(connection, dict(found.fetchall()))
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
            ):
                raise _LostError(self._keys.snapshot, f"it is damaged ({error})") from None
            raise
        return changed

    def _begin_anew(self, lost: _LostError) -> None:
        """Let the next push begin a new log with all rows of this ledger, once they are proved."""
        with self._connect() as connection:
            rows = _count_rows(connection)
        if not rows:
            raise LedgerError(
                f"{self._store.url}: the {self._ledger.stage} ledger cannot be restored: {lost}. Use a"
                f" machine that has a ledger, or move {self._keys.snapshot!r} and {self._keys.folder!r} away,"
                " and a new ledger is started"
            )
        self._prove()
        position = self._position()
        info = self._store.head(self._keys.head)
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            send_all(connection)
            etag = None if info is None else info.etag
            anew = Position(position.number, etag, lost=lost.key, log_id=position.log_id)
            self._finish(connection, anew, 0)
            connection.execute("COMMIT")

    # writing it

    def _append(self, position: Position) -> None:
        if position.lost is not None and self._store.head(position.lost) is not None:
            name = position.lost.rpartition("/")[2]
            self._store.copy(position.lost, f"{self._keys.folder}damaged/{name}")
        head = self._base(position)
        with self._connect() as connection:
            connection.execute("BEGIN")
            contracts, rows, dropped = *unsent_rows(connection), dropped_generations(connection)
        numbers = itertools.count(head.number + 1)
        segments = [*head.segments, *(Segment(next(numbers), "", 0, generation) for generation in dropped)]
        for start in range(0, len(rows), _SEGMENT_ROWS):
            part, number = rows[start : start + _SEGMENT_ROWS], next(numbers)
            key = f"{self._keys.folder}{number:012d}-{secrets.token_hex(8)}.jsonl.gz"
            lines = [json.dumps(line) for line in (contracts, *part)]
            self._store.put(key, gzip.compress("\n".join(lines).encode(), compresslevel=3))
            segments.append(Segment(number, key, len(part)))
        following = replace(head, number=segments[-1].number, segments=tuple(segments))
        sent = [SentRow(row.get("generation", UNNAMED), row["video_id"], row["row_version"]) for row in rows]
        self._put_head(position, following, sent, dropped)

    def _base(self, position: Position) -> Head:
        """What to append to."""
        if position.lost is not None:
            return Head(secrets.token_hex(8), position.number)
        if position.head is not None:
            return Head.from_json(position.head)
        snapshot = self._store.head(self._keys.snapshot)
        if (snapshot and snapshot.etag) != position.snapshot_etag:
            raise PreconditionFailedError(f"{self._keys.snapshot!r} is new")
        number = 0 if snapshot is None else 1
        return Head(secrets.token_hex(8), number, number)

    def _compact(self) -> None:
        """Make the snapshot anew, if that is due and nobody else does.

        Only the machine whose name stands in the head finishes, and it looked at the object that it writes
        over after it had put its name there. So the object that is there when it finishes is its own.
        """
        position = self._position()
        head = Head.from_json(position.head or "")
        with self._connect() as connection:
            total = _count_rows(connection)
        if sum(segment.rows for segment in head.segments) * _SNAPSHOT_SHARE <= total:
            return
        maker = secrets.token_hex(8)
        with contextlib.suppress(PreconditionFailedError):
            self._put_head(position, replace(head, maker=maker), [])
            info = self._store.head(self._keys.snapshot)
            with tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
                copy = Path(folder) / "snapshot.sqlite"
                self._copy_rows(copy)
                etag = None if info is None else info.etag
                self._store.put_file_if_unchanged(self._keys.snapshot, copy, etag)
            self._finish_snapshot(maker, head.number)

    def _finish_snapshot(self, maker: str, number: int) -> None:
        for _ in range(_ATTEMPTS):
            position = self._position()
            head = Head.from_json(position.head or "")
            if head.maker != maker:
                return
            following = tuple(segment for segment in head.segments if segment.number > number)
            try:
                self._put_head(position, Head(head.log_id, head.number, number, following), [])
            except PreconditionFailedError:  # others have appended meanwhile
                self._take_in()
                continue
            for key in self._store.list(self._keys.folder)["key"].to_pylist():
                told = key.removeprefix(self._keys.folder).partition("-")[0]
                if told.isdecimal() and int(told) <= number:
                    self._store.delete(key)
            return

    def _copy_rows(self, copy: Path) -> None:
        with self._connect() as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
        with open_database(copy) as connection:
            for table in ("unsent", "journal_position", "snapshot_base"):
                connection.execute(f"DROP TABLE IF EXISTS {table}")

    def _put_head(
        self, position: Position, head: Head, sent: Sequence[SentRow], dropped: Sequence[str] = ()
    ) -> None:
        """The moment at which rows are in the log, and generations gone from it."""
        etag = self._store.put_if_unchanged(self._keys.head, head.to_json(), position.head_etag)
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            note_sent(connection, sent, dropped)
            self._finish(connection, Position.at(head, etag), 0)
            connection.execute("COMMIT")

    # inside

    def _finish(self, connection: sqlite3.Connection, position: Position, changed: int) -> None:
        write_position(connection, position)
        if changed:
            connection.execute("UPDATE ledger_version SET token = ?", (new_version(),))

    def _position(self) -> Position:
        with self._connect() as connection:
            return read_position(connection)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with open_database(self._path) as connection:
                yield connection
        except sqlite3.Error as error:
            space = (
                "; its folder needs space for a second copy"
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
                else ""
            )
            raise LedgerError(
                f"cannot snapshot the ledger at {self._path}: {error}{space}."
                " Nothing is lost, the next run tries again"
            ) from None


def _check_snapshot(path: Path, key: str) -> None:
    """Refuse what is not plain tables of rows: a view or a virtual table would run what its maker wrote."""
    try:
        with open_database(path) as connection:
            plain = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage <> 0"
            ).fetchall()
            named = connection.execute("SELECT name FROM sqlite_master").fetchall()
            items = tables_of(connection).values() if ("generations",) in plain else [SERVING_ITEMS]
    except sqlite3.DatabaseError as error:
        raise _LostError(key, f"it is not a ledger snapshot ({error})") from None
    read = {*items, SERVING_ITEMS, *({"generations", "contracts"} & {name for (name,) in named})}
    if missing := read - {name for (name,) in plain}:
        raise _LostError(key, f"it is not a ledger snapshot (it has no table {', '.join(sorted(missing))})")


def _count_rows(connection: sqlite3.Connection) -> int:
    """Rows of all generations."""
    counted = [
        connection.execute(f"SELECT count(*) FROM main.{table}").fetchone()  # noqa: S608 - names are checked
        for table in tables_of(connection).values()
    ]
    return sum(count for (count,) in counted)


def _add_contracts(connection: sqlite3.Connection, contracts: dict[str, str]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO main.contracts (contract_id, contract) VALUES (?, ?)", contracts.items()
    )
