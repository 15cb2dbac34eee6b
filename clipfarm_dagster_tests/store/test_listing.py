"""Listings past keys that nothing can be done with, in a bucket and in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from clipfarm_dagster.errors import StoreError, StoreUnavailableError
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.listing import skipped_keys
from clipfarm_dagster_tests.support.s3_proxy import Answer, S3Proxy, refuse, s3_proxy
from workbench.seaweedfs import S3Server

GOOD = ["raw/text/a.json", "raw/text/b c.json", "raw/text/sub/d.json", "raw/text/é%41.json"]


def listed(store: ObjectStore, folder: str = "raw/text/") -> dict[str, tuple[str, int]]:
    rows = store.list(folder).to_pylist()
    return {row["key"]: (row["etag"], row["size"]) for row in rows}


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    store = ObjectStore.open(str(tmp_path / "store"))
    store.put_many([(key, key.encode()) for key in GOOD])
    return store


def _odd_name(name: bytes) -> Callable[[Path], None]:
    def make(text: Path) -> None:
        Path(os.fsdecode(os.fsencode(text) + b"/" + name)).write_bytes(b"1")

    return make


def _odd_folder(text: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(text) + b"/\xff"))
    odd.mkdir()
    (odd / "x.json").write_bytes(b"1")


ODD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "newline": (_odd_name(b"a\nb.json"), "raw/text/a\nb.json"),
    "delete-character": (_odd_name(b"a\x7f.json"), "raw/text/a\x7f.json"),
    "no-utf-8": (_odd_name(b"\xff\xfe.json"), r"raw/text/\xff\xfe.json"),
    "link-loop": (lambda text: (text / "loop").symlink_to("."), "raw/text/loop"),
    "link-to-itself": (lambda text: (text / "loop.json").symlink_to("loop.json"), "raw/text/loop.json"),
    "folder-of-no-utf-8": (_odd_folder, r"raw/text/\xff"),
}


class TestFolder:
    @pytest.mark.parametrize(("make", "key"), ODD_FILES.values(), ids=ODD_FILES)
    def test_an_odd_file_is_skipped_and_named(
        self, folder: ObjectStore, make: Callable[[Path], None], key: str
    ) -> None:
        whole = listed(folder)
        make(Path(folder.url) / "raw" / "text")

        table = folder.list("raw/text/")

        assert listed(folder) == whole, "the same keys, ETags and sizes as obstore tells"
        assert {name: folder.get(name).info.etag for name in GOOD} == {k: e for k, (e, _) in whole.items()}
        skipped = skipped_keys(table)
        assert (skipped.count, skipped.examples) == (1, [key])

    def test_beside_an_odd_file_the_listing_is_as_obstores(self, folder: ObjectStore) -> None:
        text = Path(folder.url) / "raw" / "text"
        (text / "left#12").write_bytes(b"obstore's own, of an upload under way")
        (text / "nowhere").symlink_to("not-there")
        (text / "linked").symlink_to(text / "sub")
        os.mkfifo(text / "pipe")
        (text / "empty").mkdir()
        whole = listed(folder)
        (text / "odd\n.json").write_bytes(b"1")

        assert listed(folder) == whole
        assert "raw/text/linked/d.json" in whole
        assert listed(folder, "not/there") == {}
        assert listed(folder, "").keys() == whole.keys()

    def test_many_are_counted_and_some_are_named(self, folder: ObjectStore) -> None:
        for number in range(30):
            (Path(folder.url) / "raw" / "text" / f"{number}\n.json").write_bytes(b"1")
        skipped = skipped_keys(folder.list())
        assert (skipped.count, len(skipped.examples)) == (30, 10)

    def test_nothing_is_skipped_of_a_folder_without_odd_files(self, folder: ObjectStore) -> None:
        assert skipped_keys(folder.list()).count == 0


class OddKeys:
    """Puts objects into the listings that a server gives, as if it held them; pages stay in order."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys
        """Key by the key that it comes before."""

    def __call__(self, answer: Answer) -> Answer:
        body = answer.body.decode()
        encoded = "<EncodingType>url</EncodingType>" in body
        for before, key in self.keys.items():
            there = f"<Contents><Key>{before}</Key>"
            text = (
                "".join(f"%{byte:02X}" for byte in key.encode(errors="surrogateescape"))
                if encoded
                else escape(key, ENTITIES)
            )
            entry = f"<Contents><Key>{text}</Key><ETag>&#34;e&#34;</ETag><Size>1</Size>"
            entry += "<StorageClass>STANDARD</StorageClass>"
            entry += "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            body = body.replace(there, entry + there)
        return Answer(answer.status, answer.headers, body.encode(errors="surrogateescape"))


ENTITIES = {chr(code): f"&#{code};" for code in (*range(1, 32), 127)}


@pytest.fixture(scope="module")
def filled(seaweedfs: S3Server) -> Iterator[S3Server]:
    """A bucket of 2,500 objects: three answers of a listing."""
    store = ObjectStore.open(seaweedfs.url, s3=seaweedfs.options())
    store.put_many([(f"raw/text/{number:04}.json", b"%d" % number) for number in range(2500)])
    yield seaweedfs
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store.delete, store.list()["key"].to_pylist()))


class TestBucket:
    @pytest.fixture
    def proxy(self, filled: S3Server) -> Iterator[S3Proxy]:
        with s3_proxy(filled) as running:
            yield running

    @pytest.fixture
    def bucket(self, proxy: S3Proxy) -> ObjectStore:
        return ObjectStore.open(proxy.server.url, s3=proxy.server.options(give_up_seconds=10))

    @pytest.mark.parametrize(
        "odd",
        [
            "raw/text/0100//x.json",
            "raw/text/0100/./x.json",
            "raw/text/0100/../x.json",
            "raw/text/0100\n.json",
            "raw/text/0100\x01.json",
            "raw/text/0100\x7f.json",
            "raw/text/0100\udcff.json",
        ],
    )
    def test_an_odd_key_is_skipped_and_named(self, bucket: ObjectStore, proxy: S3Proxy, odd: str) -> None:
        whole = listed(bucket)
        proxy.break_("LIST", "raw/text/", OddKeys({"raw/text/0101.json": odd}))

        table = bucket.list("raw/text/")

        assert table.num_rows == len(whole) == 2500
        assert listed(bucket) == whole
        skipped = skipped_keys(table)
        assert (skipped.count, skipped.examples) == (1, [odd.replace("\udcff", "\ufffd")])

    def test_only_pages_with_odd_keys_are_listed_another_way(
        self, bucket: ObjectStore, proxy: S3Proxy
    ) -> None:
        odd = {"raw/text/0101.json": "raw/text/0100//x", "raw/text/2400.json": "raw/text/2399/./y"}
        proxy.break_("LIST", "raw/text/", OddKeys(odd))
        before = proxy.requests["LIST", "raw/text/"]

        skipped = skipped_keys(bucket.list("raw/text/"))

        assert (skipped.count, skipped.examples) == (2, list(odd.values()))
        assert proxy.requests["LIST", "raw/text/"] - before <= 6

    def test_it_is_counted_once_wherever_the_listing_is_split(
        self, bucket: ObjectStore, proxy: S3Proxy
    ) -> None:
        proxy.break_("LIST", "raw/text/", OddKeys({"raw/text/0101.json": "raw/text/0100//x"}))
        for split_at in (["raw/text/0050.json"], ["raw/text/0100.json", "raw/text/0101.json"], ["a", "z"]):
            table = bucket.list("raw/text/", split_at=split_at)
            assert (table.num_rows, skipped_keys(table).count) == (2500, 1)

    def test_empty_folders_of_consoles_are_nothing_odd(self, bucket: ObjectStore, proxy: S3Proxy) -> None:
        odd = {"raw/text/0000.json": "raw/text/", "raw/text/0101.json": "raw/text/0100//x"}
        proxy.break_("LIST", "raw/text/", OddKeys(odd))
        assert skipped_keys(bucket.list("raw/text/")).examples == ["raw/text/0100//x"]

    def test_a_listing_that_is_refused_is_the_stores_trouble(
        self, bucket: ObjectStore, proxy: S3Proxy
    ) -> None:
        proxy.break_("LIST", "raw/text/", refuse("AccessDenied"))
        with pytest.raises(StoreUnavailableError, match="AccessDenied"):
            bucket.list("raw/text/")

    def test_objects_under_odd_keys_are_never_asked_for(self, bucket: ObjectStore) -> None:
        with pytest.raises(StoreError, match="refused"):
            bucket.get("raw/text/0100//x.json")
