"""Files that are kept with a checksum in their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipfarm_dagster.store import cache_files


def kept(folder: Path, data: bytes, stem: str = "made.of-this") -> Path:
    part = folder / "part"
    part.write_bytes(data)
    return cache_files.keep(part, folder, stem, ".bin")


def test_a_file_is_found_by_its_stem(tmp_path: Path):
    place = kept(tmp_path, b"some bytes")
    kept(tmp_path, b"others", stem="made.of-that")

    assert cache_files.find(tmp_path, "made.of-this", ".bin") == place
    assert cache_files.stem_of(place, ".bin") == "made.of-this"
    assert cache_files.find(tmp_path, "made", ".bin") is None
    assert cache_files.find(tmp_path / "nowhere", "made.of-this", ".bin") is None


@pytest.mark.parametrize("damage", [b"", b"some byte", b"some bytez", b"some bytes!"])
@pytest.mark.parametrize("known", [False, True])
def test_a_damaged_file_is_removed_and_not_found(tmp_path: Path, damage: bytes, known: bool):
    place = kept(tmp_path, b"some bytes")
    if known:
        assert cache_files.find(tmp_path, "made.of-this", ".bin") == place
    times = place.stat()
    place.write_bytes(damage)
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert cache_files.find(tmp_path, "made.of-this", ".bin") is None
    assert not place.exists()


def test_a_file_that_is_found_is_marked_as_used(tmp_path: Path):
    place = kept(tmp_path, b"some bytes")
    for _ in range(2):
        os.utime(place, (0, 0))
        assert cache_files.find(tmp_path, "made.of-this", ".bin") == place
        assert place.stat().st_mtime > 0
