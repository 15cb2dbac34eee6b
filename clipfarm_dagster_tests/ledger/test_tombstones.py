"""Which videos are erased: known by keyed hashes, in one object that any machine may change."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import pytest

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.tombstones import Tombstones
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys

KEY = Keys().erased()


@pytest.fixture
def tombstones(store: ObjectStore) -> Tombstones:
    return Tombstones(store, KEY)


def test_nothing_is_erased_and_nothing_written_at_first(tombstones: Tombstones, store: ObjectStore):
    erased = tombstones.read()

    assert not erased
    assert "a" not in erased
    assert erased.among(["a", "b"]) == set()
    assert erased.version == ""
    assert tombstones.add([]) == tombstones.finish({}) == erased
    assert store.list().num_rows == 0
    with pytest.raises(ValueError, match="before a first video is erased"):
        erased.tombstone("a")


def test_an_erased_video_is_known_by_every_machine_and_named_nowhere(
    tombstones: Tombstones, store: ObjectStore
):
    added = tombstones.add(["a.secret-id", "b.secret-id"])

    erased = Tombstones(store, KEY).read()
    assert erased == added == tombstones.read()
    assert "a.secret-id" in erased
    assert erased.among(["a.secret-id", "other", "b.secret-id"]) == {"a.secret-id", "b.secret-id"}
    names = [erased.tombstone(video_id) for video_id in ("a.secret-id", "b.secret-id", "other")]
    assert len(set(names)) == 3
    assert all(re.fullmatch("erased-[0-9a-f]{16}", name) for name in names)
    assert set(erased.erasures) == set(names[:2])
    data = store.get(KEY).data
    assert b"secret" not in data
    assert hashlib.sha256(b"a.secret-id").hexdigest()[:16].encode() not in data, "a hash without a key"
    assert repr(erased.key) not in repr(erased)


def test_each_corpus_has_a_key_of_its_own_which_stays(store: ObjectStore):
    one, two = Tombstones(store, KEY), Tombstones(store, Keys("other").erased())
    first = one.add(["a"])

    assert one.add(["b"]).tombstone("a") == first.tombstone("a")
    assert two.add(["a"]).tombstone("a") != first.tombstone("a")


def test_machines_that_erase_at_the_same_time_lose_nothing(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    """The second one comes between the first one's reading and its writing, even of the very first key."""
    one, two = Tombstones(store, KEY), Tombstones(store, KEY)
    put = ObjectStore.put_if_unchanged

    def late(self: ObjectStore, key: str, data: bytes, etag: str | None) -> str:
        monkeypatch.setattr(ObjectStore, "put_if_unchanged", put)
        two.add(["b"])
        return put(self, key, data, etag)

    monkeypatch.setattr(ObjectStore, "put_if_unchanged", late)
    one.add(["a"])

    assert one.read() == two.read()
    assert one.read().among(["a", "b", "c"]) == {"a", "b"}


def test_an_erasure_is_finished_unless_it_was_taken_up_again(tombstones: Tombstones, store: ObjectStore):
    erased = tombstones.add(["a", "b"])
    seen = erased.unfinished
    assert set(seen) == {erased.tombstone("a"), erased.tombstone("b")}
    Tombstones(store, KEY).add(["b"], raw=True)

    after = tombstones.finish(seen)

    assert set(after.unfinished) == {erased.tombstone("b")}
    assert after.unfinished[erased.tombstone("b")].raw
    done = after.erasures[erased.tombstone("a")]
    assert replace(done, finished=None) == seen[erased.tombstone("a")]
    assert done.finished is not None
    assert done.finished >= done.since
    again = tombstones.add(["a"])
    assert again.erasures[erased.tombstone("a")] == seen[erased.tombstone("a")]
    assert "a" in tombstones.finish(again.unfinished), "a finished erasure still holds"


def test_only_further_tombstones_change_the_version(tombstones: Tombstones):
    first = tombstones.add(["a"])
    assert first.version
    assert tombstones.finish(first.unfinished).version == first.version
    assert tombstones.add(["b"]).version != first.version


def test_what_is_not_changed_is_neither_read_nor_written_again(
    tombstones: Tombstones, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    erased = tombstones.add(["a"])
    before = store.head(KEY)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "get", None)
        assert tombstones.read() is erased
        assert tombstones.add(["a"]) is erased
    assert store.head(KEY) == before


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"erased": {}}', '{"key": "00", "erased": {}}', '{"key": "' + "0" * 64 + '", "erased": [1]}'],
)
def test_a_damaged_object_is_named_and_never_taken_for_none(
    tombstones: Tombstones, store: ObjectStore, content: str
):
    store.put(KEY, content.encode())

    with pytest.raises(LedgerError, match=re.escape(KEY)):
        tombstones.read()
    with pytest.raises(LedgerError, match="restore it"):
        tombstones.add(["a"])
    assert store.get(KEY).data == content.encode()


def test_fields_of_a_later_version_do_no_harm(tombstones: Tombstones, store: ObjectStore):
    erased = tombstones.add(["a"])
    told = json.loads(store.get(KEY).data)
    told["erased"][erased.tombstone("a")]["later"] = 1
    store.put(KEY, json.dumps(told).encode())

    assert tombstones.read() == erased
