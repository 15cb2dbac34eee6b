"""The ledger's log in the store: machines never lose each other's rows, whatever their clocks say."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.journal import Journal
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import JournalKeys
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.claims import claim, claims

KEYS = JournalKeys("clipfarm/state/video_embedding.sqlite", "clipfarm/state/video_embedding.journal/")


@contextmanager
def machine(
    folder: Path, store: ObjectStore, prove: Callable[[Ledger], object] = lambda ledger: None
) -> Iterator[Ledger]:
    """The ledger of one machine, brought up to date first as every machine does."""
    ledger = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=folder / "video_embedding.sqlite")
    try:
        ledger.journal = journal = Journal(ledger, store, KEYS, prove=lambda: prove(ledger))
        journal.take_in()
        yield ledger
    finally:
        ledger.close()


def row(video_id: str, day: int, note: str = "") -> LedgerRow:
    return LedgerRow(video_id=video_id, processed_at=f"2026-01-{day:02d}T00:00:00.000000Z", note=note)


def segments(store: ObjectStore) -> list[str]:
    return sorted(key for key in store.list(KEYS.folder)["key"].to_pylist() if key != KEYS.head)


def fill(ledger: Ledger, rows: int = 100) -> None:
    """So many rows that single ones are appended to the log, and no snapshot is made for them."""
    ledger.record([claim(f"many-{i}", "one") for i in range(rows)])
    ledger.push()


def test_a_machine_without_a_ledger_starts_from_the_store(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as ledger:
        ledger.record([row("a", 1), row("b", 2)])
        assert ledger.push()

    with machine(tmp_path / "two", store) as ledger:
        assert ledger.rows(["a", "b"]) == {"a": row("a", 1), "b": row("b", 2)}


def test_an_empty_store_is_an_empty_ledger_and_nothing_is_written_there(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path, store) as ledger:
        assert not ledger.push()
        assert ledger.columns().num_rows == 0
    assert store.list().num_rows == 0


def test_an_unchanged_ledger_is_not_sent_again(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path, store) as ledger:
        ledger.record([row("a", 1)])
        assert ledger.push()
        before = store.list().to_pylist()
        assert not ledger.push()
        assert store.list().to_pylist() == before
        ledger.record([row("a", 2)])
        assert ledger.push()


def test_a_row_that_is_recorded_late_is_sent(store: ObjectStore, tmp_path: Path):
    """Its `processed_at` is when its item was done, which others recorded since may be later than."""
    with machine(tmp_path / "one", store) as ledger:
        ledger.record([row("late", 1), row("early", 12)])
        ledger.push()
        ledger.record([row("late", 10, "done")])
        assert ledger.push()

    with machine(tmp_path / "two", store) as other:
        assert other.rows(["late"])["late"].note == "done"


def test_what_others_added_is_there_when_a_ledger_is_opened_again(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one:
        fill(one)
    with machine(tmp_path / "two", store) as two:
        two.record([claim("new", "one")])
        two.push()
    with machine(tmp_path / "one", store) as one:
        assert claims(one)["new"] == "one"
        before = one.version()
    with machine(tmp_path / "one", store) as one:
        assert one.version() == before, "nothing came in, so nothing is to be looked at again"


def test_few_rows_cost_a_small_segment_and_many_a_new_snapshot(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as ledger:
        fill(ledger, 1000)
        snapshot = store.head(KEYS.snapshot)
        assert snapshot is not None
        for i in range(10):
            ledger.record([claim(f"many-{i}", "two")])
            ledger.push()
        assert store.head(KEYS.snapshot) == snapshot
        assert len(segments(store)) == 10
        sizes = store.list(KEYS.folder)["size"].to_pylist()
        assert sum(sizes) < snapshot.size / 10

        ledger.record([claim(f"many-{i}", "two") for i in range(10, 110)])
        ledger.push()
        assert store.head(KEYS.snapshot) != snapshot
        assert segments(store) == []
    with machine(tmp_path / "two", store) as other:
        assert Counter(claims(other).values()) == {"one": 890, "two": 110}


def test_machines_that_write_different_rows_keep_all_of_them(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one, machine(tmp_path / "two", store) as two:
        for i in range(6):
            one.record([claim(f"one-{i}", "one")])
            two.record([claim(f"two-{i}", "two")])
            for ledger in (one, two) if i % 2 else (two, one):
                ledger.push()

    with machine(tmp_path / "three", store) as three:
        expected = {f"{name}-{i}": name for i in range(6) for name in ("one", "two")}
        assert claims(three) == expected


@pytest.mark.parametrize("days", [(1, 9), (9, 1)], ids=["later clock last", "later clock first"])
@pytest.mark.parametrize("rows", [0, 100], ids=["snapshots", "segments"])
def test_where_both_wrote_the_vector_is_forgotten_whatever_the_clocks_say(
    store: ObjectStore, tmp_path: Path, days: tuple[int, int], rows: int
):
    with machine(tmp_path / "one", store) as one:
        if rows:
            fill(one, rows)
        one.record([claim("both", "old"), claim("alike", "old")])
        one.push()
    with machine(tmp_path / "one", store) as one, machine(tmp_path / "two", store) as two:
        for ledger, name, day in ((one, "one", days[0]), (two, "two", days[1])):
            before = ledger.rows(["both", "alike"])
            ledger.record(
                [
                    replace(claim("both", name, day), row_version=before["both"].row_version),
                    replace(claim("alike", "new", day), row_version=before["alike"].row_version),
                ]
            )
            ledger.push()

    for name in ("one", "two", "three"):
        with machine(tmp_path / name, store) as ledger:
            assert claims(ledger)["both"] is None
            assert claims(ledger)["alike"] == "new", "the same vector on both sides is no conflict"
            assert ledger.rows(["both"])["both"].status == Status.SUCCESS


def test_a_success_is_kept_rather_than_the_failure_of_a_machine_that_did_not_know_of_it(
    store: ObjectStore, tmp_path: Path
):
    failed = replace(row("a", 9), status=Status.QUARANTINED)
    with machine(tmp_path / "one", store) as one, machine(tmp_path / "two", store) as two:
        one.record([claim("a", "one")])
        one.push()
        two.record([failed])
        two.push()
        assert two.rows(["a"])["a"].status == Status.SUCCESS
        assert claims(two) == {"a": None}


def test_a_row_that_is_written_from_an_old_reading_is_merged_within_a_ledger_too(tmp_path: Path):
    with closing(Ledger.open(Stage.VIDEO, state_url="", sqlite_path=tmp_path / "x.sqlite")) as ledger:
        ledger.record([claim("a", "one")])
        old = ledger.rows(["a"])["a"]
        ledger.record([replace(claim("a", "two"), row_version=old.row_version)])
        assert claims(ledger) == {"a": "two"}
        ledger.record([replace(claim("a", "three"), row_version=old.row_version)])
        assert claims(ledger) == {"a": None}


def test_a_mark_is_in_the_store_before_anything_is_overwritten(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one:
        fill(one)
        one.record([claim("a", "one")])
        one.push()
        one.mark_overwriting(["a", "never seen"])
    # the machine and its home are gone
    with machine(tmp_path / "two", store) as two:
        assert claims(two)["a"] is None
        assert two.rows(["never seen"]) == {"never seen": LedgerRow(video_id="never seen")}


def test_rows_that_the_log_has_already_are_not_in_conflict_with_themselves(
    store: ObjectStore, tmp_path: Path
):
    """The machine dies between the put of the head and its own note of it."""
    with machine(tmp_path / "one", store) as one:
        fill(one)
        path = one.sqlite_path
        assert path is not None
        one.record([claim("a", "one")])
        with closing(sqlite3.connect(path)) as connection:
            before = [
                connection.execute(f"SELECT * FROM {t}").fetchall() for t in ("journal_position", "unsent")
            ]
        one.push()
        with closing(sqlite3.connect(path)) as connection:
            for table, found in zip(("journal_position", "unsent"), before, strict=True):
                connection.execute(f"DELETE FROM {table}")
                places = ", ".join("?" * len(found[0]))
                connection.executemany(f"INSERT INTO {table} VALUES ({places})", found)
            connection.commit()
    with machine(tmp_path / "one", store) as one:
        assert claims(one)["a"] == "one"
        assert not one.push()


def test_a_segment_that_never_came_into_the_log_counts_for_nothing_and_is_cleared_away(
    store: ObjectStore, tmp_path: Path
):
    with machine(tmp_path / "one", store) as one:
        fill(one)
        store.put(f"{KEYS.folder}{2:012d}-dead.jsonl.gz", b"of a machine that died before it put the head")
        one.record([claim("a", "one")])
        one.push()
        assert len(segments(store)) == 2
        fill(one, 101)
        assert segments(store) == []


def test_a_snapshot_of_before_the_log_is_taken_in(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one:
        one.record([claim("a", "one")])
        one.push()
    for key in (KEYS.head, *segments(store)):
        store.delete(key)
    with machine(tmp_path / "two", store) as two:
        assert claims(two) == {"a": "one"}
        two.record([claim("b", "two")])
        two.push()
    with machine(tmp_path / "three", store) as three:
        assert claims(three) == {"a": "one", "b": "two"}


# what is damaged or gone


@pytest.mark.parametrize("part", ["snapshot", "head", "segment"])
@pytest.mark.parametrize("gone", [False, True], ids=["damaged", "gone"])
def test_a_machine_with_a_good_ledger_begins_a_damaged_log_anew_with_what_it_can_prove(
    store: ObjectStore, tmp_path: Path, part: str, gone: bool
):
    def prove(ledger: Ledger) -> None:
        found = ledger.rows(["overwritten"])
        ledger.replace([(row, replace(row, vector_source_hash=None)) for row in found.values()])

    with machine(tmp_path / "one", store) as one:
        fill(one)
        one.record([claim("overwritten", "one")])
        one.push()
    with machine(tmp_path / "two", store) as two:
        two.record([claim("overwritten", "two")])
        two.push()
        if part == "snapshot":
            fill(two, 99)  # so that the first machine has to read it
    key = {"snapshot": KEYS.snapshot, "head": KEYS.head}.get(part) or segments(store)[-1]
    store.put(key, b"not what it was")
    if gone:
        store.delete(key)

    with machine(tmp_path / "one", store, prove) as one:
        one.record([claim("later", "one")])
        assert one.push()
    for name in ("one", "three", "two"):
        with machine(tmp_path / name, store) as ledger:
            found = claims(ledger)
            assert len(found) == 102, name
            assert found["later"] == "one"
            assert found["overwritten"] is None
    if not gone:
        aside = f"{KEYS.folder}damaged/{key.rpartition('/')[2]}"
        assert store.get(aside).data == b"not what it was"


def test_a_store_that_went_back_to_an_earlier_log_forgets_what_differs(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one:
        fill(one)
        backup = [(key, store.get(key).data) for key in store.list()["key"].to_pylist()]
        one.record([claim("many-1", "two"), claim("new", "one")])
        one.push()
    for key in store.list()["key"].to_pylist():
        store.delete(key)
    for key, data in backup:
        store.put(key, data)
    with machine(tmp_path / "one", store) as one:
        assert claims(one)["many-1"] is None
        assert claims(one)["many-2"] == "one"
        one.push()
    with machine(tmp_path / "two", store) as two:
        assert claims(two)["many-1"] is None


@pytest.mark.parametrize("what", ["text", "view", "virtual table"])
def test_what_is_no_ledger_is_not_restored_and_left(store: ObjectStore, tmp_path: Path, what: str):
    if what == "text":
        store.put(KEYS.snapshot, b"not a database")
    else:
        made = tmp_path / "made.sqlite"
        with closing(sqlite3.connect(made)) as connection:
            connection.execute(
                "CREATE VIEW processed_items AS SELECT 'a' AS video_id, load_extension('x') AS note"
                if what == "view"
                else "CREATE VIRTUAL TABLE processed_items USING fts5(video_id)"
            )
        store.put(KEYS.snapshot, made.read_bytes())
    before = store.get(KEYS.snapshot)

    with pytest.raises(LedgerError, match="not a ledger snapshot"), machine(tmp_path, store):
        pass

    assert store.get(KEYS.snapshot) == before


def test_nothing_but_rows_comes_with_a_snapshot(store: ObjectStore, tmp_path: Path):
    """A trigger in a snapshot once emptied the ledger of each machine that was restored from it."""
    with machine(tmp_path / "one", store) as one:
        one.record([claim("a", "one")])
        one.push()
    made = tmp_path / "made.sqlite"
    store.download(KEYS.snapshot, made)
    with closing(sqlite3.connect(made)) as connection:
        connection.execute(
            "CREATE TRIGGER boom AFTER INSERT ON processed_items BEGIN DELETE FROM processed_items; END"
        )
        connection.execute("CREATE TABLE more AS SELECT 1")
        connection.commit()
    store.put(KEYS.snapshot, made.read_bytes())

    with machine(tmp_path / "two", store) as two:
        two.record([claim("b", "two")])
        assert claims(two) == {"a": "one", "b": "two"}
        assert two.sqlite_path is not None
        with closing(sqlite3.connect(two.sqlite_path)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert not names & {"boom", "more"}


@pytest.mark.parametrize("in_segment", [False, True])
def test_a_column_of_a_newer_version_is_kept(store: ObjectStore, tmp_path: Path, in_segment: bool):
    with machine(tmp_path / "newer", store) as newer:
        fill(newer)
        assert newer.sqlite_path is not None
        with closing(sqlite3.connect(newer.sqlite_path)) as connection:
            connection.execute("ALTER TABLE processed_items ADD COLUMN colour TEXT")
            connection.execute("UPDATE processed_items SET colour = 'blue'")
            connection.commit()
        newer.record([claim("a", "one")] if in_segment else [claim(f"many-{i}", "two") for i in range(50)])
        newer.push()
    with machine(tmp_path / "older", store) as older:
        older.record([claim("b", "two")])
        older.push()
        assert older.sqlite_path is not None
        with closing(sqlite3.connect(older.sqlite_path)) as connection:
            names = [name for _, name, *_ in connection.execute("PRAGMA table_info(processed_items)")]
            (blue,) = connection.execute("SELECT count(colour) FROM processed_items").fetchone()
    assert "colour" in names
    assert blue == (0 if in_segment else 100)


def test_a_segment_is_lines_of_json_that_anyone_can_read(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store) as one:
        fill(one)
        one.record([claim("a", "one")])
        one.push()
    (key,) = segments(store)
    contracts, told = (json.loads(x) for x in gzip.decompress(store.get(key).data).decode().splitlines())
    assert contracts == {}
    assert told["video_id"] == "a"


_PUSH_WITHOUT_SPACE = """
import resource, signal, sys
from pathlib import Path
from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.journal import Journal
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import JournalKeys
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
ledger = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=Path(sys.argv[1]))
journal = Journal(ledger, ObjectStore.open(sys.argv[2]), JournalKeys("key", "journal/"), prove=lambda: None)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
try:
    journal.push()
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
    assert "needs space" in told
    with machine(tmp_path, store) as ledger:
        assert ledger.push()
        assert ledger.columns(["video_id"]).num_rows == 1000
