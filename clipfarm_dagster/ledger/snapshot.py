"""The SQLite ledger's snapshot in the store: uploaded after work, restored where there is none.

Two machines may work at once. Each upload is conditional on the snapshot that this machine last saw; when
another machine was faster, its rows are merged in, the newer `processed_at` winning, and the upload is tried
again. So no writer loses another's rows.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from clipfarm_dagster.errors import LedgerError, ObjectMissingError, PreconditionFailedError
from clipfarm_dagster.ledger.ledger import Ledger, new_version
from clipfarm_dagster.ledger.schema import LEDGER_COLUMNS
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore

_ATTEMPTS = 20


def restore_snapshot(path: Path, store: ObjectStore, key: str) -> bool:
    """Download the snapshot to `path` where there is no ledger yet; tells whether it did.

    Raises:
        StoreError: the store cannot be read.
        LedgerError: the object under `key` is no SQLite database, or there is no space for its copy.
    """
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if path.exists():
            return False
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            copy = Path(folder) / path.name
            try:
                etag = store.download(key, copy).etag
            except ObjectMissingError:
                return False
            _check_database(copy, f"{store.url}: {key}")
            with _connect(copy) as connection:
                _set_base(connection, etag, version=None)
            copy.replace(path)
    return True


def push_snapshot(ledger: Ledger, store: ObjectStore, key: str) -> bool:
    """Bring the store's snapshot up to the SQLite `ledger`, merging what others put there since.

    Tells whether anything was uploaded. A PostgreSQL ledger is shared as it is and has no snapshot.

    Raises:
        StoreError: the store cannot be read or written.
        LedgerError: others keep winning the race, their snapshot is no database, or the ledger cannot be
            copied or written.
    """
    path = ledger.sqlite_path
    if path is None:
        return False
    with _lock(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for attempt in range(_ATTEMPTS):
            version = ledger.version()
            with _connect(path) as connection:
                etag, pushed = _base(connection)
            if version == pushed:
                return False
            copy = Path(folder) / f"{attempt}.sqlite"
            _copy_database(path, copy)
            try:
                etag = store.put_file_if_unchanged(key, copy, etag)
            except PreconditionFailedError:
                _merge_from_store(ledger, store, key, Path(folder) / f"{attempt}-theirs.sqlite")
                continue
            with _connect(path) as connection:
                _set_base(connection, etag, version)
            return True
    raise LedgerError(
        f"the {ledger.stage} ledger's snapshot {key!r} changed {_ATTEMPTS} times while it was being uploaded;"
        " nothing is lost, the next run uploads it"
    )


def _merge_from_store(ledger: Ledger, store: ObjectStore, key: str, copy: Path) -> None:
    """Take over the rows that are newer in the store's snapshot, and remember its ETag."""
    path = ledger.sqlite_path
    assert path is not None
    try:
        etag = store.download(key, copy).etag
    except ObjectMissingError:
        with _connect(path) as connection:
            _set_base(connection, None, version=None)
        return
    _check_database(copy, f"{store.url}: {key}")
    _migrate(ledger.stage, copy)
    names = ", ".join(LEDGER_COLUMNS)
    changes = ", ".join(f"{name} = excluded.{name}" for name in LEDGER_COLUMNS if name != "video_id")
    with _connect(path) as connection:
        connection.execute("ATTACH DATABASE ? AS theirs", (str(copy),))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            f"INSERT INTO main.processed_items ({names}) SELECT {names} FROM theirs.processed_items"  # noqa: S608
            f" WHERE true ON CONFLICT (video_id) DO UPDATE SET {changes}"
            " WHERE coalesce(excluded.processed_at, '') > coalesce(processed_items.processed_at, '')"
        )
        connection.execute("INSERT OR IGNORE INTO main.contracts SELECT * FROM theirs.contracts")
        connection.execute("UPDATE main.ledger_version SET token = ?", (new_version(),))
        _set_base(connection, etag, version=None)
        connection.execute("COMMIT")


def _migrate(stage: Stage, path: Path) -> None:
    Ledger.open(stage, state_url="", sqlite_path=path).close()


def _lock(path: Path) -> FileLock:
    return FileLock(f"{path}.lock")


@contextlib.contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise LedgerError(
            f"cannot snapshot the ledger at {path}: {error}; its folder needs space for a second copy."
            " Nothing is lost, the next run tries again"
        ) from None


def _copy_database(source: Path, target: Path) -> None:
    with _connect(source) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))


def _check_database(path: Path, name: str) -> None:
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("SELECT count(*) FROM processed_items").fetchone()
    except sqlite3.DatabaseError as error:
        raise LedgerError(
            f"{name} is no ledger snapshot ({error}); move it away, and the ledger starts anew"
        ) from None


def _base(connection: sqlite3.Connection) -> tuple[str | None, str | None]:
    """ETag of the store's snapshot that this database includes, and the ledger's version at that time."""
    connection.execute("CREATE TABLE IF NOT EXISTS snapshot_base (etag TEXT, version TEXT)")
    row = connection.execute("SELECT etag, version FROM snapshot_base").fetchone()
    return (row[0], row[1]) if row else (None, None)


def _set_base(connection: sqlite3.Connection, etag: str | None, version: str | None) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS snapshot_base (etag TEXT, version TEXT)")
    connection.execute("DELETE FROM snapshot_base")
    connection.execute("INSERT INTO snapshot_base VALUES (?, ?)", (etag, version))
