"""The ledger's snapshot in the store: two machines never lose each other's rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.ledger.snapshot import push_snapshot, restore_snapshot
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore

KEY = "clipfarm/state/video_embedding.sqlite"


@contextmanager
def machine(folder: Path, store: ObjectStore) -> Iterator[Ledger]:
    """The ledger of one machine, restored first as every machine does."""
    path = folder / "video_embedding.sqlite"
    restore_snapshot(path, store, KEY)
    ledger = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=path)
    try:
        yield ledger
    finally:
        ledger.close()


def row(video_id: str, day: int, note: str = "") -> LedgerRow:
    return LedgerRow(video_id=video_id, processed_at=f"2026-01-{day:02d}T00:00:00.000000Z", note=note)


def test_a_machine_without_a_ledger_starts_from_the_snapshot(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as ledger:
        ledger.record([row("a", 1), row("b", 2)])
        assert push_snapshot(ledger, store, KEY)

    with machine(tmp_path / "two", store) as ledger:
        assert ledger.rows(["a", "b"]) == {"a": row("a", 1), "b": row("b", 2)}


def test_nothing_is_restored_over_a_ledger_or_from_an_empty_store(store: ObjectStore, tmp_path: Path):
    path = tmp_path / "video_embedding.sqlite"
    assert not restore_snapshot(path, store, KEY)
    assert not path.exists()

    with machine(tmp_path, store) as ledger:
        ledger.record([row("a", 1)])
        push_snapshot(ledger, store, KEY)
        ledger.record([row("b", 2)])
    assert not restore_snapshot(path, store, KEY)
    with machine(tmp_path, store) as ledger:
        assert set(ledger.rows(["a", "b"])) == {"a", "b"}


def test_an_unchanged_ledger_is_not_uploaded_again(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path, store) as ledger:
        ledger.record([row("a", 1)])
        assert push_snapshot(ledger, store, KEY)
        before = store.head(KEY)
        assert not push_snapshot(ledger, store, KEY)
        assert store.head(KEY) == before
        ledger.record([row("a", 2)])
        assert push_snapshot(ledger, store, KEY)


def test_a_row_that_is_recorded_late_is_uploaded(store: ObjectStore, tmp_path: Path):
    """Its `processed_at` is when its item was done, which others recorded since may be later than."""
    with machine(tmp_path / "one", store) as ledger:
        ledger.record([row("late", 1), row("early", 12)])
        push_snapshot(ledger, store, KEY)
        ledger.record([row("late", 10, "done")])
        assert push_snapshot(ledger, store, KEY)

    with machine(tmp_path / "two", store) as other:
        assert other.rows(["late"])["late"].note == "done"


def test_machines_have_the_same_version_only_with_the_same_rows(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one:
        one.record([row("a", 1)])
        push_snapshot(one, store, KEY)
        with machine(tmp_path / "two", store) as two:
            assert one.version() == two.version()
            one.record([row("b", 2)])
            two.record([row("c", 2)])
            before = two.version()
            assert one.version() != before
            push_snapshot(one, store, KEY)
            push_snapshot(two, store, KEY)
            assert set(two.rows("abc")) == set("abc")
            assert len({before, one.version(), two.version()}) == 3


def test_two_machines_merge_row_by_row_and_the_newer_wins(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one, machine(tmp_path / "two", store) as two:
        one.record([row("only one", 1), row("both", 5, "newer"), row("also both", 1, "older")])
        two.record([row("only two", 1), row("both", 3, "older"), row("also both", 9, "newer")])
        push_snapshot(one, store, KEY)
        push_snapshot(two, store, KEY)
        push_snapshot(one, store, KEY)
        one.record([row("later", 10)])
        push_snapshot(one, store, KEY)

    with machine(tmp_path / "three", store) as three:
        notes = {
            i: r.note for i, r in three.rows(["only one", "only two", "both", "also both", "later"]).items()
        }
    assert notes == {"only one": "", "only two": "", "both": "newer", "also both": "newer", "later": ""}


def test_many_rounds_of_two_machines_lose_no_row(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one, machine(tmp_path / "two", store) as two:
        for i in range(6):
            one.record([row(f"one-{i}", i + 1)])
            two.record([row(f"two-{i}", i + 1)])
            for ledger in (one, two) if i % 2 else (two, one):
                push_snapshot(ledger, store, KEY)

    with machine(tmp_path / "three", store) as three:
        assert three.columns(["video_id"]).num_rows == 12


def test_a_snapshot_that_was_deleted_is_written_again(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path, store) as ledger:
        ledger.record([row("a", 1)])
        push_snapshot(ledger, store, KEY)
        store.delete(KEY)
        ledger.record([row("b", 2)])
        push_snapshot(ledger, store, KEY)

    with machine(tmp_path / "two", store) as other:
        assert set(other.rows(["a", "b"])) == {"a", "b"}


def test_a_snapshot_that_is_no_database_is_refused_and_left(store: ObjectStore, tmp_path: Path):
    store.put(KEY, b"not a database")

    with pytest.raises(LedgerError, match="no ledger snapshot"):
        restore_snapshot(tmp_path / "video_embedding.sqlite", store, KEY)

    assert not (tmp_path / "video_embedding.sqlite").exists()
    assert store.get(KEY).data == b"not a database"


_PUSH_WITHOUT_SPACE = """
import resource, signal, sys
from pathlib import Path
from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.snapshot import push_snapshot
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
ledger = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
try:
    push_snapshot(ledger, ObjectStore.open(sys.argv[2]), "key")
except LedgerError as error:
    print(error)
"""


def test_a_ledger_without_space_for_its_copy_is_told_and_left(tmp_path: Path):
    store = ObjectStore.open(str(tmp_path / "store"))
    with machine(tmp_path, store) as ledger:
        ledger.record([row(f"v{i}", 1, "x" * 1000) for i in range(1000)])
        path = str(ledger.sqlite_path)

    told = subprocess.run(
        [sys.executable, "-c", _PUSH_WITHOUT_SPACE, path, store.url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert told.startswith("cannot snapshot the ledger at ")
    assert path in told
    with machine(tmp_path, store) as ledger:
        assert push_snapshot(ledger, store, KEY)
        assert ledger.columns(["video_id"]).num_rows == 1000
