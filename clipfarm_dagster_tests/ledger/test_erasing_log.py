"""The log that machines share keeps no row of an erased video, whoever sends one, and whenever."""

from __future__ import annotations

import contextlib
import gzip
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipfarm_dagster.ledger.erasing import ErasingLedger
from clipfarm_dagster.ledger.journal import Journal
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import JournalKeys
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.ledger.tombstones import Tombstones
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.claims import claim, claims
from clipfarm_dagster_tests.support.killing import Killed, killing
from clipfarm_dagster_tests.support.traces import traces

KEYS = JournalKeys("clipfarm/state/video_embedding.sqlite", "clipfarm/state/video_embedding.journal/")
ERASED = "clipfarm/state/erased.json"
GONE, ITS_BYTES = "gone-from-here", "5ecre7f1ngerpr1nt"
OLD, NEW = "a" * 16, "b" * 16


@contextmanager
def machine(folder: Path, store: ObjectStore, *, old: bool = False) -> Iterator[Ledger]:
    """The ledger of one machine, opened as every machine does; an `old` one has never heard of erasing."""
    ledger = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=folder / "video_embedding.sqlite")
    try:
        ledger.tombstones = None if old else Tombstones(store, ERASED)
        ledger.follow_erasures()
        ledger.name_serving(OLD)
        ledger.journal = reader = Journal(ledger, store, KEYS, prove=lambda: None)
        reader.take_in()
        yield ledger
    finally:
        ledger.close()


def fill(ledger: Ledger) -> None:
    """Rows of two generations in the snapshot, the one to be erased among them."""
    for one in (ledger, ledger.of(NEW)):
        one.record([claim(f"v{i}", "their") for i in range(30)])
        one.record([claim(GONE, ITS_BYTES)])
    ledger.push()


def erase(ledger: Ledger, store: ObjectStore) -> None:
    Tombstones(store, ERASED).add([GONE])
    finish(ledger, store)


def finish(ledger: Ledger, store: ObjectStore) -> None:
    """What a machine does at each tick about its ledger."""
    unfinished = Tombstones(store, ERASED).read().unfinished
    ledger.clear_erased(everything=bool(unfinished))
    Tombstones(store, ERASED).finish(unfinished)


def left(store: ObjectStore, *homes: Path) -> list[str]:
    return traces([GONE, ITS_BYTES], store, *homes)


def neighbours(ledger: Ledger) -> list[tuple[LedgerRow, int | None]]:
    ids = [f"v{i}" for i in range(30)]
    rows = [*ledger.rows(ids).values(), *ledger.of(NEW).rows(ids).values()]
    assert len(rows) == 60
    return sorted(((row, row.row_version) for row in rows), key=str)


def test_no_machine_brings_it_back(store: ObjectStore, tmp_path: Path):
    """One erases; one was away and has its row; one has written to its row and not sent that."""
    one, away, busy = tmp_path / "one", tmp_path / "away", tmp_path / "busy"
    with machine(one, store) as ledger:
        fill(ledger)
        before = neighbours(ledger)
    with machine(away, store) as ledger, machine(busy, store) as writer:
        assert GONE in claims(ledger)
        writer.record([claim(GONE, ITS_BYTES, day=2), claim("busy", "one")])
        writer.of(NEW).record([claim(GONE, ITS_BYTES, day=2)])
    with machine(one, store) as ledger:
        ledger.record([claim(GONE, ITS_BYTES, day=3), claim("one", "one")])
        ledger.push()

        erase(ledger, store)

        assert neighbours(ledger) == before
        assert left(store, one) == []
    with machine(away, store) as ledger:
        assert GONE not in claims(ledger) | claims(ledger.of(NEW))
        ledger.record([claim("away", "one")])
        ledger.push()
        finish(ledger, store)
    with machine(busy, store) as ledger:
        assert GONE not in claims(ledger) | claims(ledger.of(NEW))
        ledger.push()
        finish(ledger, store)

    assert left(store, one, away, busy) == []
    with machine(tmp_path / "new", store) as ledger:
        assert neighbours(ledger) == before
        assert {"one", "away", "busy"} < claims(ledger).keys()


def test_a_run_that_has_its_ledger_open_sends_nothing_of_it(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "run", store) as run:
        fill(run)
        run.record([claim(GONE, ITS_BYTES, day=2), claim("other", "one")])
        with machine(tmp_path / "one", store) as ledger:
            erase(ledger, store)

        run.mark_overwriting([GONE, "other"])
        run.push()
        finish(run, store)

    assert left(store, tmp_path / "run", tmp_path / "one") == []
    with machine(tmp_path / "new", store) as ledger:
        assert claims(ledger)["other"] is None


@pytest.mark.parametrize("late", [False, True], ids=["before it sends", "while it sends"])
def test_what_a_machine_had_yet_to_send_is_dropped(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
):
    one, run = tmp_path / "one", tmp_path / "run"
    put = ObjectStore.put
    segments: list[bytes] = []

    def erase_elsewhere() -> None:
        with machine(one, store) as other:
            erase(other, store)

    def putting(self: ObjectStore, key: str, data: bytes) -> str:
        segments.append(gzip.decompress(data))
        if late and len(segments) == 1:
            erase_elsewhere()
        return put(self, key, data)

    with machine(run, store) as ledger:
        fill(ledger)
        ledger.record([claim(GONE, ITS_BYTES, day=2), claim("other", "one")])
        monkeypatch.setattr(ObjectStore, "put", putting)
        if not late:
            erase_elsewhere()

        ledger.push()

        assert any(ITS_BYTES.encode() in segment for segment in segments) == late
        assert left(store, one) == []
        finish(ledger, store)
    assert left(store, run) == []
    with machine(tmp_path / "new", store) as ledger:
        assert claims(ledger)["other"] == "one"


def test_a_process_that_has_its_ledger_open_takes_in_no_row_of_it(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "open", store) as ledger, machine(tmp_path / "old", store, old=True) as old:
        with machine(tmp_path / "one", store) as other:
            fill(other)
            erase(other, store)
        old.record([claim(GONE, ITS_BYTES, day=2), claim("other", "one")])
        old.push()
        assert isinstance(ledger.journal, Journal)
        assert not Tombstones(store, ERASED).read().unfinished

        ledger.journal.take_in()

        assert {"other"} == claims(ledger).keys() - {f"v{i}" for i in range(30)}
        assert Tombstones(store, ERASED).read().unfinished, "vectors may be there too"
        finish(ledger, store)
        assert left(store, tmp_path / "open") == []


def test_what_an_old_machine_sends_afterwards_is_removed(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "old", store, old=True) as old:
        fill(old)
    with machine(tmp_path / "one", store) as ledger:
        erase(ledger, store)
    with machine(tmp_path / "old", store, old=True) as old:
        old.record([claim(GONE, ITS_BYTES, day=2), claim("other", "one")])
        old.push()
    assert left(store)

    with machine(tmp_path / "one", store) as ledger:  # which only looks
        assert claims(ledger)["other"] == "one"
        assert GONE not in claims(ledger)
    with machine(tmp_path / "one", store) as ledger:
        finish(ledger, store)

    assert left(store, tmp_path / "one") == []
    with machine(tmp_path / "new", store) as ledger:
        assert claims(ledger)["other"] == "one"
        finish(ledger, store)
    assert left(store, tmp_path / "new") == []


def test_the_snapshot_of_an_old_machine_is_made_anew(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "old", store, old=True) as old:
        fill(old)
        with machine(tmp_path / "one", store) as ledger:
            erase(ledger, store)
        old.record([claim(f"v{i}", "new") for i in range(20)])
        old.push()
    assert any(KEYS.snapshot in place for place in left(store))

    with machine(tmp_path / "new", store) as ledger:
        assert GONE not in claims(ledger) | claims(ledger.of(NEW))
        assert claims(ledger)["v7"] == "new"
        finish(ledger, store)

    assert left(store, tmp_path / "new") == []


def test_a_backup_of_ledger_and_log_is_cleared(store: ObjectStore, tmp_path: Path):
    """Both are as they were before the erasure, so that the one is what the other has taken in."""
    one, old = tmp_path / "one", tmp_path / "old"
    with machine(one, store) as ledger:
        fill(ledger)
    shutil.copytree(one, old)
    kept = {key: store.get(key).data for key in store.list()["key"].to_pylist()}
    with machine(one, store) as ledger:
        erase(ledger, store)
    for key, data in kept.items():
        store.put(key, data)
    assert left(store)

    for _ in range(2):  # ticks
        with machine(old, store) as ledger:
            finish(ledger, store)

    assert left(store, old) == []


def test_what_was_left_lying_about_goes_too(store: ObjectStore, tmp_path: Path):
    """Segments that no head names, copies of damaged parts, and copies that killed processes had in hand."""
    one, two = tmp_path / "one", tmp_path / "two"
    packed = gzip.compress(ITS_BYTES.encode())
    with machine(one, store) as ledger:
        fill(ledger)
        orphans = [f"{KEYS.folder}{number:012d}-0.jsonl.gz" for number in (1, 10_000)]
        damaged = f"{KEYS.folder}damaged/000000000001-0.jsonl.gz"
        for key in (*orphans, damaged):
            store.put(key, packed)
        with machine(two, store):
            pass
        for home, name in ((one, "video_embedding.sqlite.copy-abc"), (two, "tmpabc")):
            scratch = home / name
            scratch.mkdir()
            (scratch / "snapshot.sqlite").write_text(ITS_BYTES)

        erase(ledger, store)

        assert left(store, one) == []
        assert sorted(store.list(KEYS.folder)["key"].to_pylist()) == [KEYS.head]
    with machine(two, store) as ledger:
        finish(ledger, store)
    assert left(store, two) == []


def test_a_store_of_before_there_was_a_log_is_cleared(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "old", store, old=True) as old:
        fill(old)
    for key in store.list(KEYS.folder)["key"].to_pylist():
        store.delete(key)
    assert left(store)

    with machine(tmp_path / "one", store) as ledger:
        erase(ledger, store)

    assert left(store, tmp_path / "one") == []
    with machine(tmp_path / "new", store) as ledger:
        neighbours(ledger)


def test_a_log_that_there_is_none_of_stays_so(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as ledger:
        erase(ledger, store)

    assert store.list()["key"].to_pylist() == [ERASED]


STEPS: tuple[tuple[object, str], ...] = (
    (ObjectStore, "put_if_unchanged"),
    (ObjectStore, "put_file_if_unchanged"),
    (ObjectStore, "put"),
    (ObjectStore, "delete"),
    (Journal, "_finish"),
    (ErasingLedger, "_note"),
    (ErasingLedger, "_rewrite_file"),
    (Tombstones, "finish"),
)


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_wherever_it_is_broken_off_any_machine_finishes_it(store: ObjectStore, tmp_path: Path):
    """Kill between any two steps, of the erasing itself and of the sending that it does."""
    for at in range(1, 40):
        one = tmp_path / f"one-{at}"
        for key in store.list()["key"].to_pylist():
            store.delete(key)
        with machine(one, store) as ledger:
            fill(ledger)
            before = neighbours(ledger)
            ledger.record([claim(GONE, ITS_BYTES, day=2), claim("one", "one")])
            ledger.push()
            ledger.record([claim("two", "one")])
            with pytest.MonkeyPatch.context() as patch:
                steps = killing(patch, at, *STEPS)
                with contextlib.suppress(Killed):
                    erase(ledger, store)
        if not Tombstones(store, ERASED).read():
            continue  # it had not begun
        with machine(tmp_path / f"other-{at}" if at % 2 else one, store) as ledger:
            finish(ledger, store)
            assert neighbours(ledger) == before
        assert left(store) == []
        with machine(one, store) as ledger:
            ledger.push()
            finish(ledger, store)
            assert {"one", "two"} < claims(ledger).keys()
        assert left(store, one) == []
        if steps() < at:
            break
    assert 10 < at < 39


@pytest.mark.parametrize("rounds", [1, 3])
def test_machines_that_write_while_the_log_is_made_anew_lose_nothing(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
):
    one, two = tmp_path / "one", tmp_path / "two"
    with machine(one, store) as ledger, machine(two, store) as other:
        fill(ledger)
        put = ObjectStore.put_file_if_unchanged
        written: list[str] = []

        def late(self: ObjectStore, key: str, path: Path, etag: str | None) -> str:
            answer = put(self, key, path, etag)
            if len(written) < rounds:
                written.append(f"two-{len(written)}")
                other.record([claim(written[-1], "two")])
                assert other.journal is not None
                other.journal.send()
            return answer

        monkeypatch.setattr(ObjectStore, "put_file_if_unchanged", late)

        erase(ledger, store)
        finish(other, store)

        assert set(written) < claims(ledger).keys()
    assert left(store, one, two) == []
    with machine(tmp_path / "new", store) as ledger:
        assert set(written) < claims(ledger).keys()
        neighbours(ledger)


def test_a_snapshot_that_was_begun_before_is_not_finished_after(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another machine has copied its rows, and is held up until all is erased."""
    one, slow = tmp_path / "one", tmp_path / "slow"
    with machine(one, store) as ledger:
        fill(ledger)
    with machine(one, store) as ledger, machine(slow, store) as other:
        other.record([claim(f"v{i}", "new") for i in range(20)])
        put = ObjectStore.put_file_if_unchanged

        def late(self: ObjectStore, key: str, path: Path, etag: str | None) -> str:
            monkeypatch.setattr(ObjectStore, "put_file_if_unchanged", put)
            erase(ledger, store)
            return put(self, key, path, etag)

        monkeypatch.setattr(ObjectStore, "put_file_if_unchanged", late)
        other.push()

        assert left(store, one) == []
        finish(other, store)
        assert left(store, one, slow) == []
    with machine(tmp_path / "new", store) as ledger:
        assert claims(ledger)["v7"] == "new"


def test_what_comes_in_while_a_snapshot_is_finished_is_removed_too(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with machine(tmp_path / "old", store, old=True) as old:
        fill(old)
        with machine(tmp_path / "one", store) as ledger:
            listed: Callable[[Journal], list[str]] = Journal._listed

            def late(self: Journal) -> list[str]:
                monkeypatch.setattr(Journal, "_listed", listed)
                old.record([claim(GONE, ITS_BYTES, day=2), claim("other", "one")])
                assert old.journal is not None
                old.journal.send()
                return listed(self)

            monkeypatch.setattr(Journal, "_listed", late)
            erase(ledger, store)

            assert claims(ledger)["other"] == "one"
    assert left(store, tmp_path / "one") == []
