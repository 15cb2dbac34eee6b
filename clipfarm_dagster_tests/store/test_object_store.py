"""The store, over a folder and over a real S3 server."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipfarm_dagster.errors import (
    ObjectMissingError,
    PreconditionFailedError,
    StoreError,
    StoreUnavailableError,
)
from clipfarm_dagster.store import ObjectStore, StoredObject
from clipfarm_dagster_tests.support.s3_proxy import refuse, refuse_in_bulk, s3_proxy
from workbench.seaweedfs import S3Server

BIG = os.urandom(11 * 2**20)
"""More than two parts of a multi-part upload."""


def _listed(store: ObjectStore, prefix: str) -> dict[str, tuple[str, int]]:
    rows = store.list(prefix).to_pylist()
    return {row["key"]: (row["etag"], row["size"]) for row in rows}


class TestReadAndWrite:
    @pytest.mark.parametrize("data", [b"", b"one", BIG], ids=["empty", "small", "multi-part"])
    def test_every_call_gives_the_same_version(self, store: ObjectStore, data: bytes) -> None:
        etag = store.put("a/b/x.bin", data)
        stored, info = store.get("a/b/x.bin"), store.head("a/b/x.bin")
        assert stored.data == data
        assert stored.info == info
        assert info is not None
        assert (info.key, info.etag, info.size) == ("a/b/x.bin", etag, len(data))
        assert _listed(store, "a/") == {"a/b/x.bin": (etag, len(data))}
        assert etag
        assert not set(etag) & set('"/ ')
        assert info.last_modified.tzinfo is not None

    def test_new_content_gives_a_new_etag_even_at_once_and_of_the_same_size(self, store: ObjectStore) -> None:
        etags = [store.put("x", b"%03d" % number) for number in range(50)]
        assert all(before != after for before, after in itertools.pairwise(etags))

    def test_missing_object(self, store: ObjectStore) -> None:
        assert store.head("a/none.npy") is None
        with pytest.raises(ObjectMissingError, match=r"none\.npy") as caught:
            store.get("a/none.npy")
        assert store.url in str(caught.value)
        store.delete("a/none.npy")

    def test_delete(self, store: ObjectStore) -> None:
        store.put("a/x", b"1")
        store.delete("a/x")
        assert store.head("a/x") is None
        assert store.list("a").num_rows == 0

    def test_a_reader_never_sees_half_an_object(self, store: ObjectStore) -> None:
        versions = {bytes([fill]) * 300_000 for fill in range(5)}
        store.put("x", b"\0" * 300_000)
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                for data in versions:
                    store.put("x", data)

        with ThreadPoolExecutor(1) as executor:
            writing = executor.submit(write)
            try:
                for _ in range(100):
                    assert store.get("x").data in versions
            finally:
                stop.set()
            writing.result()

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            "a\nb",
            "a\0b",
            "a" * 1025,
        ],
    )
    def test_dangerous_keys_are_refused(self, store: ObjectStore, key: str, tmp_path: Path) -> None:
        for call in (store.head, store.get, store.delete):
            with pytest.raises(StoreError, match="refused"):
                call(key)
        with pytest.raises(StoreError, match="refused"):
            store.put(key, b"")
        with pytest.raises(StoreError, match="refused"):
            store.put_if_unchanged(key, b"", None)
        with pytest.raises(StoreError, match="refused"):
            store.download(key, tmp_path / "file")

    @pytest.mark.parametrize("key", ["a/..b", "a/b..c", "a/.hidden", "a b/é%20?#+&=.npy", "_-/x.y"])
    def test_unusual_keys_are_themselves(self, store: ObjectStore, key: str) -> None:
        etag = store.put(key, b"1")
        assert _listed(store, "") == {key: (etag, 1)}
        assert store.get(key).info.key == key

    def test_survives_pickling(self, store: ObjectStore) -> None:
        store.put("x", b"1")
        again = pickle.loads(pickle.dumps(store))
        assert again.url == store.url
        assert again.get("x").data == b"1"


class TestMany:
    def test_get_many_keeps_order_and_gives_missing_ones(self, store: ObjectStore) -> None:
        items = [(f"m/{number:03}", b"%d" % number) for number in range(100)]
        etags = store.put_many(items)
        keys = [key for key, _ in items]
        asked = [*reversed(keys), "m/none", *keys]
        answers = list(store.get_many(iter(asked), max_concurrency=8))
        assert [key for key, _ in answers] == asked
        expected = dict(zip(keys, zip(etags, (data for _, data in items), strict=True), strict=True))
        for key, answer in answers:
            if key == "m/none":
                assert isinstance(answer, ObjectMissingError)
                assert answer.key == key
            else:
                assert isinstance(answer, StoredObject)
                assert (answer.info.etag, answer.data) == expected[key]

    def test_get_many_takes_keys_only_as_it_goes(self, store: ObjectStore) -> None:
        taken = []

        def keys() -> Iterator[str]:
            for number in range(50):
                taken.append(number)
                yield f"m/{number}"

        answers = store.get_many(keys(), max_concurrency=4)
        next(answers)
        assert len(taken) <= 5
        answers.close()  # type: ignore[attr-defined]

    def test_one_bad_key_makes_put_many_fail(self, store: ObjectStore) -> None:
        with pytest.raises(StoreError, match="refused"):
            store.put_many([("a", b"1"), ("../b", b"2"), ("c", b"3")])

    def test_nothing_to_do(self, store: ObjectStore) -> None:
        assert store.put_many([]) == []
        assert list(store.get_many([], max_concurrency=2)) == []


class TestList:
    def test_schema_of_an_empty_listing(self, store: ObjectStore) -> None:
        for table in (store.list(), store.list("nothing/here/")):
            assert table.num_rows == 0
            assert [(field.name, str(field.type)) for field in table.schema] == [
                ("key", "string"),
                ("etag", "string"),
                ("size", "int64"),
            ]

    def test_is_recursive_and_keeps_to_the_folder(self, store: ObjectStore) -> None:
        store.put_many([(key, b"1") for key in ("p/a/1", "p/a/b/2", "p/ab/3", "q/4")])
        assert set(_listed(store, "p/a/")) == set(_listed(store, "p/a")) == {"p/a/1", "p/a/b/2"}
        assert set(_listed(store, "")) == {"p/a/1", "p/a/b/2", "p/ab/3", "q/4"}

    @pytest.mark.parametrize(
        "split_at",
        [
            ["l/a5"],
            ["l/a5", "l/a5", "l/a49", "l/a"],
            ["k", "l/", "l/zzz", "m"],
            [f"l/a{i}" for i in range(60)],
        ],
        ids=["inside", "twice and out of order", "outside", "at every key"],
    )
    def test_is_the_same_wherever_it_is_split(self, store: ObjectStore, split_at: list[str]) -> None:
        store.put_many([(f"l/a{i}", b"1") for i in range(60)] + [("k/before", b""), ("m/behind", b"")])
        whole, split = store.list("l"), store.list("l", split_at=split_at)
        assert whole.num_rows == split.num_rows == 60
        assert split.sort_by("key").equals(whole.sort_by("key"))

    def test_more_than_a_page(self, store: ObjectStore) -> None:
        etags = store.put_many([(f"p/{number}", b"%d" % number) for number in range(1050)])
        assert set(store.list("p")["etag"].to_pylist()) == set(etags)
        assert store.list("p").num_rows == 1050

    def test_does_not_leave_the_store(self, store: ObjectStore) -> None:
        with pytest.raises(StoreError, match="refused"):
            store.list("../")


class TestLargeObjects:
    def test_come_without_their_data(self, store: ObjectStore) -> None:
        etag = store.put("l/large", b"12345")
        store.put("l/small", b"1234")
        answers = dict(store.get_many(["l/large", "l/small", "l/none"], max_bytes=4))
        large, small = answers["l/large"], answers["l/small"]
        assert isinstance(large, StoredObject)
        assert (large.data, large.info.size, large.info.etag) == (b"", 5, etag)
        assert isinstance(small, StoredObject)
        assert small.data == b"1234"
        assert isinstance(answers["l/none"], ObjectMissingError)
        assert store.get("l/large").data == b"12345"


class TestConditionalWrites:
    def test_create_only(self, store: ObjectStore) -> None:
        etag = store.put_if_unchanged("s/x", b"1", None)
        assert etag == store.get("s/x").info.etag
        with pytest.raises(PreconditionFailedError, match="s/x"):
            store.put_if_unchanged("s/x", b"2", None)
        assert store.get("s/x").data == b"1"

    @pytest.mark.parametrize("data", [b"2", BIG], ids=["small", "large"])
    def test_update_only_from_the_version_started_from(self, store: ObjectStore, data: bytes) -> None:
        first = store.put("s/x", b"1")
        second = store.put_if_unchanged("s/x", data, first)
        assert store.get("s/x").info.etag == second
        with pytest.raises(PreconditionFailedError):
            store.put_if_unchanged("s/x", b"3", first)
        assert store.get("s/x").data == data
        assert store.put_if_unchanged("s/x", b"4", second) == store.get("s/x").info.etag

    def test_etag_of_a_multi_part_upload_and_of_the_listing_will_do(self, store: ObjectStore) -> None:
        store.put("s/x", BIG)
        etag = _listed(store, "s")["s/x"][0]
        store.put_if_unchanged("s/x", b"2", etag)
        assert store.get("s/x").data == b"2"

    def test_update_of_a_removed_object(self, store: ObjectStore) -> None:
        etag = store.put("s/x", b"1")
        store.delete("s/x")
        with pytest.raises(PreconditionFailedError):
            store.put_if_unchanged("s/x", b"2", etag)
        assert store.head("s/x") is None

    @pytest.mark.parametrize("exists", [False, True], ids=["create", "update"])
    def test_of_many_at_once_one_wins(self, store: ObjectStore, exists: bool) -> None:
        etag = store.put("s/x", b"first") if exists else None

        def write(number: int) -> str | None:
            try:
                return store.put_if_unchanged("s/x", b"%d" % number, etag)
            except PreconditionFailedError:
                return None

        with ThreadPoolExecutor(8) as executor:
            results = list(executor.map(write, range(8)))
        winners = [number for number, result in enumerate(results) if result is not None]
        assert len(winners) == 1
        assert store.get("s/x").data == b"%d" % winners[0]
        assert store.get("s/x").info.etag == results[winners[0]]

    def test_leaves_nothing_else_in_the_listing(self, store: ObjectStore) -> None:
        store.put_if_unchanged("s/x", b"2", store.put("s/x", b"1"))
        assert set(_listed(store, "")) == {"s/x"}


class TestFiles:
    @pytest.mark.parametrize("data", [b"", b"small", BIG], ids=["empty", "small", "multi-part"])
    def test_round_trip(self, store: ObjectStore, tmp_path: Path, data: bytes) -> None:
        target = tmp_path / "target"
        target.write_bytes(b"before")
        etag = store.put_stream("f/x", iter([data[:1], data[1:]]))
        info = store.download("f/x", target)
        assert target.read_bytes() == data
        assert (info.key, info.etag, info.size) == ("f/x", etag, len(data))
        assert info == store.head("f/x")

    def test_conditional(self, store: ObjectStore, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(BIG)
        first = store.put_file_if_unchanged("f/x", source, None)
        with pytest.raises(PreconditionFailedError):
            store.put_file_if_unchanged("f/x", source, None)
        source.write_bytes(b"second")
        second = store.put_file_if_unchanged("f/x", source, first)
        with pytest.raises(PreconditionFailedError):
            store.put_file_if_unchanged("f/x", source, first)
        assert store.get("f/x").data == b"second"
        assert store.get("f/x").info.etag == second

    def test_a_failed_download_leaves_the_file_alone(self, store: ObjectStore, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.write_bytes(b"before")
        with pytest.raises(ObjectMissingError):
            store.download("f/none", target)
        assert target.read_bytes() == b"before"
        assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []

    def test_upload_of_a_file_that_is_not_there(self, store: ObjectStore, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            store.put_file_if_unchanged("f/x", tmp_path / "nowhere", None)


class TestFolder:
    def test_is_created_and_named_absolutely(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        store = ObjectStore.open("some/store")
        assert store.url == str(tmp_path / "some" / "store")
        assert Path(store.url).is_dir()
        assert ObjectStore.open((tmp_path / "with space").as_uri()).url == str(tmp_path / "with space")

    def test_keys_are_paths(self, tmp_path: Path) -> None:
        store = ObjectStore.open(str(tmp_path))
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "a b.json").write_bytes(b"by hand")
        assert store.get("raw/a b.json").data == b"by hand"
        store.put("raw/c.json", b"1")
        assert (tmp_path / "raw" / "c.json").read_bytes() == b"1"

    def test_cannot_be_created(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreError, match="cannot create"):
            ObjectStore.open(str(tmp_path / "file" / "store"))

    def test_that_is_gone_is_no_empty_listing(self, tmp_path: Path) -> None:
        store = ObjectStore.open(str(tmp_path / "store"))
        Path(store.url).rmdir()
        with pytest.raises(StoreUnavailableError, match="gone"):
            store.list("a")

    def test_trouble_with_one_key_names_it(self, tmp_path: Path) -> None:
        store = ObjectStore.open(str(tmp_path))
        store.put("a/b", b"")
        with pytest.raises(StoreError, match=r"a/b/c.*Not a directory") as caught:
            store.put("a/b/c", b"")
        assert not isinstance(caught.value, StoreUnavailableError)
        assert "\n" not in str(caught.value)


class TestDeleteEach:
    def test_all_are_removed_and_nothing_else(self, store: ObjectStore) -> None:
        store.put_many([(f"a/{number}", b"1") for number in range(1005)])
        kept = store.put("a/kept", b"1")
        assert store.delete_each(f"a/{number}" for number in range(1005)) == {}
        assert _listed(store, "") == {"a/kept": (kept, 1)}

    def test_what_is_not_there_is_no_error(self, store: ObjectStore) -> None:
        assert store.delete_each([]) == {}
        store.put_many([("a/1", b""), ("a/2", b"")])
        assert store.delete_each(["a/0", "a/1", "a/1", "a/2", "a/3", "b/none"]) == {}
        assert store.list().num_rows == 0
        assert store.delete_each(["a/1", "a/2"]) == {}

    def test_a_dangerous_key_is_refused(self, store: ObjectStore) -> None:
        store.put("a/1", b"")
        with pytest.raises(StoreError, match=r"'\.\./x' is refused"):
            store.delete_each(["a/1", "../x"])
        assert store.head("a/1") is not None

    def test_trouble_with_one_key_is_told_and_the_others_go(self, s3_environment: S3Server) -> None:
        keys = [f"a/{number}" for number in range(20)]
        with s3_proxy(s3_environment) as proxy:
            store = ObjectStore.open(proxy.server.url, s3=proxy.server.options(give_up_seconds=3))
            kept = store.put("a/kept", b"1")
            store.put_many([(key, b"") for key in keys])
            proxy.break_("POST", "", refuse_in_bulk("a/7"))
            refused = store.delete_each(keys)
            assert list(refused) == ["a/7"]
            assert "AccessDenied" in str(refused["a/7"])
            assert _listed(store, "") == {"a/kept": (kept, 1)}
            proxy.break_("POST", "", refuse("AccessDenied"))
            proxy.break_("GET", "", refuse("AccessDenied"))
            with pytest.raises(StoreUnavailableError, match="AccessDenied"):
                store.delete_each(keys)
            proxy.mend()
            store.delete("a/kept")
