"""Reads a ledger into Arrow through ADBC, as a stream; an SQLite file in a process of its own.

ADBC brings its own copy of SQLite. Two copies in one process break each other: closing a file in one drops
the locks that the other holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2.1), after which a
WAL can be deleted under a writer. A process of its own has locks of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clipfarm_dagster.errors import LedgerError

if TYPE_CHECKING:
    import pyarrow as pa

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
    import pyarrow as pa

    command = [sys.executable, "-m", __name__, str(path), query]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            pipesize=_PIPE_BYTES,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            with pa.ipc.open_stream(child.stdout) as reader:
                yield reader
                for _ in reader:  # a reader that stops early would look like a child that failed
                    pass
            code = child.wait()
        except Exception as error:
            # a stream that broke off, or the caller's own trouble
            if _exit_code(child) not in (None, 0):
                raise _failure(path, errors) from error
            raise
        finally:
            child.kill()
        if code != 0:
            raise _failure(path, errors)


@contextmanager
def stream_postgresql(
    conninfo: str, query: str, schema: pa.Schema, failure: Callable[[Exception], LedgerError]
) -> Iterator[pa.RecordBatchReader]:
    """The rows of `query`, of the columns and types of `schema`, batch by batch, while the block runs.

    Raises:
        LedgerError: what `failure` makes of the database's error. This may come at the end of the block, so
            use nothing of what was read before the block is left.
    """
    import adbc_driver_postgresql.dbapi
    import pyarrow as pa

    broken: list[Exception] = []

    def batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        try:
            yield from reader.cast(schema)
        except Exception as error:
            broken.append(error)
            raise

    try:
        with adbc_driver_postgresql.dbapi.connect(conninfo) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            yield pa.RecordBatchReader.from_batches(schema, batches(cursor.fetch_record_batch()))
    except adbc_driver_postgresql.dbapi.Error as error:
        raise failure(error) from None
    except Exception:
        # a stream that broke off, or the caller's own trouble
        if broken:
            raise failure(broken[0]) from None
        raise


def _exit_code(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(timeout=_LAST_WORDS_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _failure(path: Path, errors: BinaryIO) -> LedgerError:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines() or ["the reader was ended"]
    return LedgerError(f"cannot read the ledger at {path}: {lines[-1]}")


def _main(path: str, query: str, sink: BinaryIO) -> None:
    # not adbc_driver_sqlite.dbapi, which imports pandas and polars: half a second for nothing
    import adbc_driver_sqlite
    import pyarrow as pa
    from adbc_driver_manager import AdbcConnection, AdbcStatement

    with (
        adbc_driver_sqlite.connect(path) as database,
        AdbcConnection(database) as connection,
        AdbcStatement(connection) as statement,
    ):
        statement.set_options(**{"adbc.sqlite.query.batch_rows": _BATCH_ROWS})
        statement.set_sql_query(query)
        stream, _ = statement.execute_query()
        reader = pa.RecordBatchReader.from_stream(stream)
        skipped = False
        with pa.ipc.new_stream(sink, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch if skipped else batch.slice(1))
                skipped = skipped or batch.num_rows > 0


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.stdout.buffer)
