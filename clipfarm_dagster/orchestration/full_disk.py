"""A full disk, told in one line whatever it broke: a ledger, a cache, a download, Dagster's own storage."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.store import local_path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
"""The latter too is what SQLite says where the files beside a database cannot grow."""

_PROBE_BYTES = 256 * 1024


def disk_line(error: Exception) -> str | None:
    """What to tell of an error because of which, or at whose time, a disk has no room; else None."""
    trouble, full = disk_trouble(error), [folder for folder in _folders() if _is_full(folder)]
    if trouble is None and not full:
        return None
    again = "run the command again: what was finished is recorded"
    if full:
        where = " and ".join(map(str, full))
        return (
            f"there is no room in {where}: {trouble or error}; make room or set another folder, and {again}"
        )
    return (
        f"writing failed, in {_folders()[0]} or another folder that is set: {trouble}; check whether its disk"
        f" is full or failing, and {again}"
    )


def disk_trouble(error: BaseException) -> str | None:
    """What the system said, where an error or one behind it is that something could not be written any
    more."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return str(cause)
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_FULL:
            return str(cause)
    return None


class QuietOnFullDisk:
    """A stream of errors that leaves out what is written while a full disk is being handled: Dagster writes
    there, with all of its SQL, what it could not write to its storage, and goes on or raises it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        error = sys.exception()
        if error is not None and disk_trouble(error) is not None:
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that led to it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        original = getattr(error, "orig", None)  # SQLAlchemy's
        if isinstance(original, BaseException):
            yield original
        error = error.__cause__ or error.__context__


def _folders() -> list[Path]:
    """The folders that commands write in, as far as the settings can be read."""
    try:
        settings = load_settings()
        found = [settings.home, local_path(settings.store_url)]
    except ClipFarmError:
        found = [Path(os.environ.get("CLIPFARM_HOME") or ".clipfarm").absolute()]
    if dagster_home := os.environ.get("DAGSTER_HOME"):
        found.append(Path(dagster_home))
    found.append(Path(tempfile.gettempdir()))
    return list(dict.fromkeys(folder for folder in found if folder is not None))


def _is_full(folder: Path) -> bool:
    """Whether not even a small file can be written on the disk of a folder, be there a quota or no room."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
    except OSError as error:
        return error.errno in _FULL
    return False
