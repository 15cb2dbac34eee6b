"""Reads a ledger into Arrow through ADBC, as a stream, in a process of its own.

ADBC brings its own copy of SQLite. Two copies in one process break each other: closing a file in one drops
the locks that the other holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2.1), after which a
WAL can be deleted under a writer. A process of its own has locks of its own.
"""

from __future__ import annotations

import io
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.patience import wait_for
from clipfarm_dagster.ledger.postgres import LOCK_SECONDS, no_answer, silence_seconds, with_limits

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import URL

_BATCH_ROWS = 8192
_PIPE_BYTES = 1 << 20
"""Linux gives 64 KiB by default, and half of the time goes into waiting for each other."""
_LAST_WORDS_SECONDS = 5.0


@contextmanager
def stream_sqlite(path: Path, query: str) -> Iterator[pa.RecordBatchReader]:
    """The rows of `query` over the SQLite file `path` but the first, batch by batch, while the block runs.

    ADBC guesses a column's type from its first rows, which may all be null: let the first row be one of the
    right types, which is left out.

    Raises:
        LedgerError: the file cannot be read to its end. This may come at the end of the block, so use
            nothing of what was read before the block is left.
    """

    with _child_rows(["sqlite", str(path), query], "", lambda cause: _unreadable(path, cause)) as reader:
        yield reader


@contextmanager
def stream_postgresql(
    url: URL, query: str, schema: pa.Schema, failure: Callable[[Exception], LedgerError]
) -> Iterator[pa.RecordBatchReader]:
    """The rows of `query`, of the columns and types of `schema`, batch by batch, while the block runs.

    In a process of its own too, so that a server that says nothing any more can be given up.

    Raises:
        LedgerError: what `failure` makes of the database's error. This may come at the end of the block, so
            use nothing of what was read before the block is left.
    """
    import psycopg2.extensions

    arguments = with_limits(url).get_dialect()().create_connect_args(with_limits(url))[1]
    conninfo = psycopg2.extensions.make_dsn(**arguments)  # the same as libpq is told through SQLAlchemy
    told = json.dumps([conninfo, LOCK_SECONDS])  # not among the arguments, which all may see
    with _child_rows(
        ["postgresql", query], told, lambda cause: failure(Exception(cause)), silence_seconds(url)
    ) as reader:
        yield reader.cast(schema)


@contextmanager
def _child_rows(
    arguments: Sequence[str], told: str, failure: Callable[[str], LedgerError], silence: float = math.inf
) -> Iterator[pa.RecordBatchReader]:
    """The rows that a process of this module writes; `told` is its standard input. After `silence` seconds
    without a byte it is given up."""
    import pyarrow as pa

    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pipesize=_PIPE_BYTES,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        source = _Patient(child.stdout.fileno(), silence)
        try:
            child.stdin.write(told.encode())
            child.stdin.close()
            with pa.ipc.open_stream(io.BufferedReader(source, _PIPE_BYTES)) as reader:
                yield reader
                for _ in reader:  # a reader that stops early would look like a child that failed
                    pass
            code = child.wait()
        except Exception as error:
            # a stream that broke off, or the caller's own trouble
            if source.gave_up:
                raise failure(no_answer(silence)) from None
            if _exit_code(child) not in (None, 0):
                raise failure(_last_words(errors)) from error
            raise
        finally:
            child.kill()
        if code != 0:
            raise failure(_last_words(errors))


class _Patient(io.RawIOBase):
    """Reads a pipe, and ends where nothing has come for too long."""

    def __init__(self, fd: int, silence: float) -> None:
        self._fd, self._silence = fd, silence
        self.gave_up = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not wait_for(self._fd, select.POLLIN, time.monotonic() + self._silence):
            self.gave_up = True
            raise TimeoutError(no_answer(self._silence))
        return os.readv(self._fd, [buffer])


def _exit_code(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(timeout=_LAST_WORDS_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _last_words(errors: BinaryIO) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "the reader was ended"


def _unreadable(path: Path, cause: str) -> LedgerError:
    return LedgerError(f"cannot read the ledger at {path}: {cause}")


def _main_sqlite(path: str, query: str, sink: BinaryIO) -> None:
    # not adbc_driver_sqlite.dbapi, which imports pandas and polars: half a second for nothing
    import adbc_driver_sqlite
    from adbc_driver_manager import AdbcConnection, AdbcStatement

    with (
        adbc_driver_sqlite.connect(path) as database,
        AdbcConnection(database) as connection,
        AdbcStatement(connection) as statement,
    ):
        statement.set_options(**{"adbc.sqlite.query.batch_rows": _BATCH_ROWS})
        statement.set_sql_query(query)
        _write(statement, sink, skipped=1)


def _main_postgresql(query: str, source: BinaryIO, sink: BinaryIO) -> None:
    import adbc_driver_postgresql
    from adbc_driver_manager import AdbcConnection, AdbcStatement

    conninfo, lock_seconds = json.load(source)
    with adbc_driver_postgresql.connect(conninfo) as database, AdbcConnection(database) as connection:
        with AdbcStatement(connection) as statement:
            # rows come as fast as they are taken, so that a statement may last; silence is looked for outside
            statement.set_sql_query(f"SET lock_timeout = '{int(lock_seconds)}s'")
            statement.execute_update()
        with AdbcStatement(connection) as statement:
            statement.set_sql_query(query)
            _write(statement, sink, skipped=0)


def _write(statement: Any, sink: BinaryIO, *, skipped: int) -> None:
    """Write a statement's rows but the first `skipped`."""
    import pyarrow as pa

    stream, _ = statement.execute_query()
    reader = pa.RecordBatchReader.from_stream(stream)
    with pa.ipc.new_stream(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch.slice(skipped))
            skipped = max(0, skipped - batch.num_rows)


if __name__ == "__main__":
    if sys.argv[1] == "sqlite":
        _main_sqlite(sys.argv[2], sys.argv[3], sys.stdout.buffer)
    else:
        _main_postgresql(sys.argv[2], sys.stdin.buffer, sys.stdout.buffer)
