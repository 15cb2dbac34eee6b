"""Reads an SQLite file into Arrow through ADBC, in a process of its own.

ADBC brings its own copy of SQLite. Two copies in one process break each other: closing a file in one drops
the locks that the other holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2.1), after which a
WAL can be deleted under a writer. A process of its own has locks of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.errors import LedgerError

if TYPE_CHECKING:
    import pyarrow as pa


def read_sqlite(path: Path, query: str) -> pa.Table:
    """The rows of `query` over the SQLite file `path`, memory-mapped from a file that is already deleted.

    Raises:
        LedgerError: the file cannot be read.
    """
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix="clipfarm-") as folder:
        output = Path(folder) / "rows.arrow"
        command = [sys.executable, "-m", __name__, str(path), str(output)]
        done = subprocess.run(command, input=query.encode(), capture_output=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise LedgerError(f"cannot read the ledger at {path}: {lines[-1]}")
        with pa.memory_map(str(output)) as source:
            return pa.ipc.open_file(source).read_all()


def _main(path: str, output: str, query: str) -> None:
    import adbc_driver_sqlite.dbapi
    import pyarrow as pa

    with adbc_driver_sqlite.dbapi.connect(path) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        reader = cursor.fetch_record_batch()
        with pa.OSFile(output, "wb") as sink, pa.ipc.new_file(sink, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.stdin.read())
