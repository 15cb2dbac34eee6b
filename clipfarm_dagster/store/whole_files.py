"""Local files that are there whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH_PREFIX = ".clipfarm-"
"""Begins the names of the folders in which files lie until they are whole."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path of the same name to write to. If the block ends well, that file takes the place of `path`;
    if it raises, what was there stays.

    Raises:
        OSError: the folder cannot be created or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=SCRATCH_PREFIX) as scratch:
        part = Path(scratch) / path.name
        yield part
        part.replace(path)
