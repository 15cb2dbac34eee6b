"""Local copies of store objects: each version downloaded once, and files uploaded while they are written."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clipfarm_dagster.errors import StoreError
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.local_copies import LocalCopies

KEY = "clipfarm/fused/concat/fused_manifest.parquet"
PARTS = [os.urandom(size) for size in (1, 7 << 20, 0, 3, 9 << 20)]


@pytest.fixture
def copies(store: ObjectStore, tmp_path: Path) -> LocalCopies:
    return LocalCopies(store, tmp_path / "cache")


def write(path: Path) -> str:
    with path.open("wb", buffering=0) as file:
        for part in PARTS:
            file.write(part)
            time.sleep(0.05)
    return "written"


def test_a_version_is_downloaded_once(copies: LocalCopies) -> None:
    assert copies.get(KEY) is None
    copies.store.put(KEY, b"one")
    first = copies.get(KEY)
    assert first is not None
    assert first.path.read_bytes() == b"one"
    first.path.write_bytes(b"not downloaded again")
    assert copies.get(KEY) == first
    copies.store.put(KEY, b"two")
    second = copies.get(KEY)
    assert second is not None
    assert second.path.read_bytes() == b"two"


def test_a_file_is_uploaded_while_it_is_written(copies: LocalCopies) -> None:
    told, copy = copies.put(KEY, write)

    stored = copies.store.get(KEY)
    assert told == "written"
    assert stored.data == copy.path.read_bytes() == b"".join(PARTS)
    assert stored.info.etag == copy.etag
    assert copies.get(KEY) == copy


def test_a_small_file_too(copies: LocalCopies) -> None:
    _, copy = copies.put(KEY, lambda path: path.write_bytes(b"small"))
    assert copies.store.get(KEY).data == b"small"
    assert copies.get(KEY) == copy


def test_a_writer_that_fails_leaves_the_object_as_it_was(copies: LocalCopies) -> None:
    etag = copies.store.put(KEY, b"before")

    def fail(path: Path) -> None:
        write(path)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        copies.put(KEY, fail)

    assert copies.store.get(KEY).data == b"before"
    copy = copies.get(KEY)
    assert copy is not None
    assert copy.etag == etag
    assert copy.path.read_bytes() == b"before"


def test_a_store_that_refuses_is_told(copies: LocalCopies) -> None:
    with pytest.raises(StoreError, match="refused"):
        copies.put("../outside", write)
    assert list(copies.folder.iterdir()) == []
