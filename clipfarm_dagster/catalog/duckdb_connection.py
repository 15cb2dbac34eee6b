"""The in-memory DuckDB connection that the catalogue computes with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

MAX_THREADS = 4


@contextmanager
def duckdb_connection(memory_limit: str = "640MB") -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection of its own: UTC, no extension is ever downloaded, and what exceeds `memory_limit`
    spills into a temporary folder that goes with the connection."""
    import duckdb

    # A container's CPUs, where the system tells them, may be fewer than the machine's.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="clipfarm-duckdb-") as spill:
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": str(min(MAX_THREADS, cpus)),
            "memory_limit": memory_limit,
            "temp_directory": spill,
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        connection = duckdb.connect(":memory:", config=config)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()
