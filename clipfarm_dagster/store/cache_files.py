"""Files that were computed once and are kept on this machine, each with a checksum of its bytes in its name.

Readers of such files (DuckDB, USearch) trust what they are given: a damaged file is a raw error of theirs, an
answer that is wrong, or the end of the process. A file whose bytes are not those that were written is removed
here, and so is made anew like one that was never there.
"""

from __future__ import annotations

import glob
import os
import zlib
from pathlib import Path

_PART_BYTES = 8 << 20

_found_whole: dict[Path, tuple[int, int, int]] = {}
"""Files that this process has found whole, and their state then: large ones are looked at often."""


def keep(part: Path, folder: Path, stem: str, suffix: str) -> Path:
    """Move a finished file to its place in `folder`, `<stem>.<checksum><suffix>`, and give that."""
    place = folder / f"{stem}.{_checksum(part)}{suffix}"
    part.replace(place)
    return place


def find(folder: Path, stem: str, suffix: str) -> Path | None:
    """The file that was kept under `stem`, marked as used now; None if there is none that is whole."""
    for place in folder.glob(f"{glob.escape(stem)}.{'[0-9a-f]' * 8}{suffix}"):
        try:
            if _is_whole(place, suffix):
                os.utime(place)
                _found_whole[place] = _state(place)
                return place
            place.unlink()
        except FileNotFoundError:  # another process has just replaced it
            continue
    return None


def stem_of(place: Path, suffix: str) -> str:
    """The stem that a file was kept under."""
    return place.name.removesuffix(suffix).rpartition(".")[0]


def _is_whole(place: Path, suffix: str) -> bool:
    if _found_whole.get(place) == _state(place):
        return True
    return _checksum(place) == place.name.removesuffix(suffix).rpartition(".")[2]


def _state(place: Path) -> tuple[int, int, int]:
    status = place.stat()
    return status.st_ino, status.st_size, status.st_ctime_ns


def _checksum(file: Path) -> str:
    """CRC-32 of a file's bytes: against damage, not malice, and quick enough for gigabytes."""
    checksum = 0
    with file.open("rb") as opened:
        while part := opened.read(_PART_BYTES):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"
