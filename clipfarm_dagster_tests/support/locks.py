"""Another process that holds the write lock of a ledger."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.stages import Stage

_HOLD = """
import select, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
select.select([sys.stdin], [], [], 20)
"""
"""Ends after 20 seconds, so that whoever waits for the lock fails and does not hang."""


@contextmanager
def write_lock_held(corpus: Corpus, stage: Stage) -> Iterator[Callable[[], bool]]:
    """Hold the write lock of a stage's SQLite ledger while the block runs; yields whether it still is."""
    path = corpus.settings.home / "state" / f"{stage}_embedding.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield lambda: holder.poll() is None
        holder.kill()
