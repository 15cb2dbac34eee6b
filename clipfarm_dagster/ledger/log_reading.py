"""How an SQLite ledger takes in what the store's log has (see `journal`)."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from clipfarm_dagster.errors import LedgerError, ObjectMissingError
from clipfarm_dagster.ledger.former_ids import rewrite_merged_ids
from clipfarm_dagster.ledger.generations import count_rows, serving_of, tables_of
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import (
    ATTEMPTS,
    JournalKeys,
    Position,
    open_database,
    read_position,
    write_position,
)
from clipfarm_dagster.ledger.log_objects import LostError, check_snapshot, read_head, read_segment
from clipfarm_dagster.ledger.merging import (
    add_contracts,
    drop_generation,
    forget_unlisted,
    merge_rows,
    merge_table,
    remove_erased,
)
from clipfarm_dagster.ledger.schema import new_version
from clipfarm_dagster.ledger.tombstones import Erased
from clipfarm_dagster.ledger.unsent import doubt_all, offer_all, send_all, settle_offers
from clipfarm_dagster.store import ObjectStore


class LogReader:
    """The reading half of a `Journal`."""

    def __init__(
        self, ledger: Ledger, store: ObjectStore, keys: JournalKeys, prove: Callable[[], object]
    ) -> None:
        path = ledger.sqlite_path
        assert path is not None
        self._ledger, self._path, self._store, self._keys = ledger, path, store, keys
        self._prove = prove
        self._lock = FileLock(f"{path}.lock")
        self._met_erased: set[str] = set()
        """Erased videos of which the log had rows, since a snapshot was begun."""

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
            self._look_for_backups()
            return
        if etag is None and position.number == 0:
            snapshot = self._store.head(self._keys.snapshot)
            if snapshot is None or snapshot.etag == position.snapshot_etag:
                return
        if etag is None and position.lost is not None:
            return
        with self._lock:
            self._take_in()

    def remove_scratch(self) -> None:
        """Remove copies of the ledger that a killed process has left on this machine."""
        with self._lock:
            folder = self._path.parent
            of_before = (copy.parent for copy in folder.glob("tmp*/snapshot.sqlite"))  # by earlier versions
            for left in (*folder.glob(f"{self._scratch_prefix}*"), *of_before):
                shutil.rmtree(left)

    def _take_in(self) -> None:
        self._ledger.follow_erasures()
        try:
            for _ in range(ATTEMPTS):
                with contextlib.suppress(ObjectMissingError):  # made anew meanwhile: look again
                    return self._read_log()
            raise LostError(self._keys.snapshot, "what the head names is not there")
        except LostError as lost:
            self._begin_anew(lost)

    def _read_log(self) -> None:
        position = self._position()
        head, etag = read_head(self._store, self._keys)
        if head is None or etag is None:
            if position.number:
                raise LostError(self._keys.head, "it is gone")
            return self._read_old_snapshot()
        another = position.log_id is not None and position.log_id != head.log_id
        rewound = not another and head.number < position.number
        if head.to_json().decode() == position.head:  # put there once more
            self._look_for_backups()
        with self._scratch() as copy:
            start = 0 if another or rewound else position.number
            if start < head.snapshot_number:
                self._store.download(self._keys.snapshot, copy)
                check_snapshot(copy, self._keys.snapshot)
                start = head.snapshot_number
            segments = [(s, read_segment(self._store, s)) for s in head.segments if s.number > start]
            with self._connect() as connection:
                if copy.exists():
                    connection.execute("ATTACH DATABASE ? AS snapshot", (str(copy),))
                connection.execute("BEGIN IMMEDIATE")
                if another:
                    offer_all(connection)
                if rewound:
                    doubt_all(connection)
                erased = self._erased(connection)
                changed = self._merge_snapshot(connection, erased) if copy.exists() else 0
                for segment, (contracts, rows) in segments:
                    if segment.dropped is not None:
                        changed += drop_generation(connection, segment.dropped)
                    gone = erased.among(str(row["video_id"]) for row in rows)
                    self._met_erased |= gone
                    changed += merge_rows(connection, [row for row in rows if row["video_id"] not in gone])
                    add_contracts(connection, contracts)
                rewrite_merged_ids(connection)
                settle_offers(connection)
                self._take_up_erasures()
                self._finish(connection, Position.at(head, etag), changed)
                connection.execute("COMMIT")
        return None

    def _read_old_snapshot(self) -> None:
        """Take in a snapshot that has no log yet."""
        with self._scratch() as copy:
            try:
                etag = self._store.download(self._keys.snapshot, copy).etag
            except ObjectMissingError:
                return
            check_snapshot(copy, self._keys.snapshot)
            with self._connect() as connection:
                connection.execute("ATTACH DATABASE ? AS snapshot", (str(copy),))
                connection.execute("BEGIN IMMEDIATE")
                changed = self._merge_snapshot(connection, self._erased(connection))
                rewrite_merged_ids(connection)
                self._take_up_erasures()
                self._finish(connection, Position(snapshot_etag=etag), changed)
                connection.execute("COMMIT")

    def _merge_snapshot(self, connection: sqlite3.Connection, erased: Erased) -> int:
        try:
            changed = 0
            for generation, table in tables_of(connection, "snapshot").items():
                self._met_erased |= remove_erased(connection, "snapshot", table, erased)
                changed += merge_table(connection, "snapshot", table, generation or serving_of(connection))
            tables = connection.execute("SELECT name FROM snapshot.sqlite_master").fetchall()
            if ("generations",) in tables:
                changed += forget_unlisted(connection, "snapshot")
            if ("contracts",) in tables:
                found = connection.execute("SELECT contract_id, contract FROM snapshot.contracts")
                add_contracts(connection, dict(found.fetchall()))
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
            ):
                raise LostError(self._keys.snapshot, f"it is damaged ({error})") from None
            raise
        return changed

    def _erased(self, connection: sqlite3.Connection) -> Erased:
        (count,) = connection.execute("SELECT count(*) FROM main.erased").fetchone()
        return self._ledger.followed(count)

    def _take_up_erasures(self) -> None:
        """Have erasures finished again of which the log has rows: a machine that knows of no tombstones has
        sent them, and has put vectors where they were."""
        if self._ledger.tombstones is not None:
            self._ledger.tombstones.add(self._met_erased)

    def _look_for_backups(self) -> None:
        """Have finished erasures taken up again of which this ledger may have had rows just now, though the
        log is the one it knows: both are backups, for whoever finishes an erasure changes the log."""
        tombstones = self._ledger.tombstones
        if tombstones is not None and tombstones.last:
            finished = tombstones.last.erasures.keys() - tombstones.last.unfinished.keys()
            if again := finished.intersection(self._ledger.not_cleared()):
                tombstones.take_up(again)

    def _begin_anew(self, lost: LostError) -> None:
        """Let the next push begin a new log with all rows of this ledger, once they are proved."""
        with self._connect() as connection:
            rows = count_rows(connection)
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

    # inside

    @property
    def _scratch_prefix(self) -> str:
        return f"{self._path.name}.copy-"

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Where a snapshot may lie while the lock is held."""
        with tempfile.TemporaryDirectory(dir=self._path.parent, prefix=self._scratch_prefix) as folder:
            yield Path(folder) / "snapshot.sqlite"

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
