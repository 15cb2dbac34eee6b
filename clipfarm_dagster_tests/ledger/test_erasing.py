"""Ledgers forget erased videos, down to the bytes of their files, and never take them again."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from clipfarm_dagster.errors import ErasureError, LedgerError
from clipfarm_dagster.ledger import erasing
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import SERVING_ITEMS, LedgerRow, items_table
from clipfarm_dagster.ledger.tombstones import Tombstones
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster_tests.support.claims import claim, claims
from clipfarm_dagster_tests.support.killing import Killed, killing

NEW = "b" * 16
GONE, ITS_BYTES = "gone-from-here", "5ecre7f1ngerpr1nt"
NEIGHBOURS = [f"{GONE}-{n}" for n in range(300)]
"""Their ids begin with that of the erased one."""


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(str(tmp_path / "store"))


def tombstones(store: ObjectStore) -> Tombstones:
    """As another process has them."""
    return Tombstones(store, Keys().erased())


@pytest.fixture
def filled(ledger: Ledger, store: ObjectStore) -> Ledger:
    """A ledger of two generations that knows an erased-to-be video and its neighbours."""
    ledger.tombstones = tombstones(store)
    for one in (ledger, ledger.of(NEW)):
        one.record([claim(video_id, "their") for video_id in NEIGHBOURS])
        one.record([claim(GONE, ITS_BYTES)])
    return ledger


def neighbours(ledger: Ledger) -> list[LedgerRow]:
    rows = [ledger.rows(NEIGHBOURS), ledger.of(NEW).rows(NEIGHBOURS)]
    assert [set(of) for of in rows] == [set(NEIGHBOURS)] * 2
    return [of[video_id] for of in rows for video_id in NEIGHBOURS]


def versions(rows: list[LedgerRow]) -> list[int | None]:
    return [row.row_version for row in rows]


def files_hold(ledger: Ledger, needle: str) -> bool:
    """Whether the database's files have some bytes, other than as the beginning of a neighbour's id."""
    data = b"".join(path.read_bytes() for path in _files(ledger))
    for neighbour in reversed(NEIGHBOURS):
        data = data.replace(neighbour.encode(), b"")
    return needle.encode() in data


def _files(ledger: Ledger) -> Iterator[Path]:
    if ledger.sqlite_path is not None:
        yield from ledger.sqlite_path.parent.glob(f"{ledger.sqlite_path.name}*")
        return
    with ledger._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CHECKPOINT"))
        folder = Path(connection.execute(text("SHOW data_directory")).scalar_one())
        paths = connection.execute(
            text(
                "SELECT pg_relation_filepath(c.oid) FROM pg_class c WHERE relkind IN ('r', 'i')"
                " AND relnamespace = 'clipfarm_video'::regnamespace"
            )
        ).scalars()
        yield from (folder / path for path in paths)


def test_rows_of_all_generations_go_and_neighbours_stay_as_they_are(filled: Ledger, store: ObjectStore):
    before = neighbours(filled)
    assert files_hold(filled, ITS_BYTES)
    tombstones(store).add([GONE])

    filled.clear_erased()

    assert filled.rows([GONE]) == filled.of(NEW).rows([GONE]) == {}
    assert neighbours(filled) == before
    assert versions(neighbours(filled)) == versions(before)
    assert not files_hold(filled, ITS_BYTES)
    assert not files_hold(filled, GONE)
    if filled.sqlite_path is None:
        with filled._engine.connect() as connection:
            statistics = str(connection.execute(text("SELECT * FROM pg_stats")).fetchall())
        assert GONE not in statistics.replace(f"{GONE}-", "")


def test_a_row_that_came_past_the_tombstones_goes_with_the_next_erasure(filled: Ledger, store: ObjectStore):
    """As an earlier version writes it, which knows of none."""
    tombstones(store).add([GONE])
    filled.clear_erased(everything=True)
    with filled._writing_engine.begin() as connection:
        table = items_table(filled._schema, SERVING_ITEMS)
        connection.execute(table.insert().values(video_id=GONE, error=ITS_BYTES, retry_count=0))
    assert set(filled.rows([GONE])) == {GONE}

    filled.clear_erased(everything=True)

    assert filled.rows([GONE]) == {}
    assert not files_hold(filled, ITS_BYTES)


def test_no_process_writes_a_row_of_an_erased_video_any_more(filled: Ledger, store: ObjectStore):
    """A run has its rows in hand, and its ledger open, while another process erases."""
    candidate, row = filled.of(NEW), filled.rows([GONE])[GONE]
    tombstones(store).add([GONE])

    assert filled.record([claim(GONE, "late"), claim("other", "one")]) == {GONE}
    assert candidate.record([claim(GONE, "late")]) == {GONE}
    assert candidate.replace([(row, row)]) == []
    assert set(filled.mark_overwriting([GONE, "other"])) == {"other"}
    assert filled.erased([GONE, "other"]) == {GONE}

    assert GONE not in claims(filled) | claims(candidate)
    assert claims(filled)["other"] is None


def test_a_writer_that_asked_too_early_is_stopped_by_the_ledger(
    filled: Ledger, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    """Another process erases between the asking and the writing."""
    other = Ledger(Stage.VIDEO, filled._url)
    follow = Ledger.follow_erasures

    def too_early(self: Ledger, *args: object) -> object:
        monkeypatch.setattr(Ledger, "follow_erasures", follow)
        answer = follow(self)
        other.tombstones = tombstones(store)
        other.tombstones.add([GONE])
        other.follow_erasures()
        return answer

    monkeypatch.setattr(Ledger, "follow_erasures", too_early)
    with closing(other):
        assert filled.record([claim(GONE, "late")]) == {GONE}

    assert GONE not in claims(filled)


def test_a_list_that_was_read_a_moment_ago_is_read_again(filled: Ledger, store: ObjectStore):
    read_before = filled.follow_erasures()
    tombstones(store).add([GONE])
    with closing(Ledger(Stage.VIDEO, filled._url)) as other:
        other.tombstones = tombstones(store)
        other.follow_erasures()

    filled._followed = None
    assert GONE in filled.follow_erasures(read_before)


def test_a_ledger_that_knows_more_than_the_store_says_so(filled: Ledger, store: ObjectStore):
    tombstones(store).add([GONE])
    filled.follow_erasures()
    store.delete(Keys().erased())

    with pytest.raises(LedgerError, match="no longer lists; restore that object"):
        filled.record([claim(GONE, "back")])
    tombstones(store).add(["another"])
    with pytest.raises(LedgerError, match="no longer lists; restore that object"):
        filled.record([claim(GONE, "back")])

    assert GONE not in claims(filled)


def test_wherever_it_is_broken_off_it_is_finished_by_repeating(
    filled: Ledger, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    before = neighbours(filled)
    names = ("_insert", "_held", "_note", "_rewrite_file", "_rewrite_tables", "_what_remains")
    for at in range(1, 20):
        gone = f"gone-at-{at}"
        filled.record([claim(gone, f"{ITS_BYTES}-{at}")])
        tombstones(store).add([gone])
        with monkeypatch.context() as patch:
            steps = killing(patch, at, *((erasing.ErasingLedger, name) for name in names))
            with contextlib.suppress(Killed):
                filled.clear_erased()
        filled._followed = None  # as of another process
        assert filled.record([claim(gone, "late")]) == {gone}
        filled.clear_erased()
        assert gone not in claims(filled)
        assert not files_hold(filled, f"{ITS_BYTES}-{at}")
        if steps() < at:
            break
    assert 6 < at < 19
    assert neighbours(filled) == before


def test_an_sqlite_file_in_use_is_told_and_cleared_later(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(erasing, "_WAIT_SECONDS", 0.1)
    path = tmp_path / "video_embedding.sqlite"
    with closing(Ledger.open(Stage.VIDEO, state_url="", sqlite_path=path)) as ledger:
        ledger.tombstones = tombstones(store)
        ledger.record([claim(GONE, ITS_BYTES)])
        tombstones(store).add([GONE])
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM processed_items").fetchall()

            with pytest.raises(ErasureError, match="No row is left; repeat"):
                ledger.clear_erased()

            assert claims(ledger) == {}
        ledger.clear_erased()

        assert not files_hold(ledger, ITS_BYTES)


def test_nothing_is_written_anew_where_nothing_is_left(
    filled: Ledger, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    filled.clear_erased(everything=True)
    tombstones(store).add([GONE])
    filled.clear_erased()
    version = filled.version()

    monkeypatch.setattr(erasing.ErasingLedger, "_rewrite_file", None)
    monkeypatch.setattr(erasing.ErasingLedger, "_rewrite_tables", None)
    filled.clear_erased()

    assert filled.version() == version
