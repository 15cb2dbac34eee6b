"""Several generations in one ledger: each keeps its rows, whichever serves, on every machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from clipfarm_dagster.ledger.journal import Journal
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import JournalKeys
from clipfarm_dagster.ledger.schema import UNNAMED, LedgerRow
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.claims import claim, claims

KEYS = JournalKeys("clipfarm/state/video_embedding.sqlite", "clipfarm/state/video_embedding.journal/")
OLD, NEW = "a" * 16, "b" * 16


@contextmanager
def machine(folder: Path, store: ObjectStore, serving: str) -> Iterator[Ledger]:
    """The ledger of one machine that knows which generation serves."""
    ledger = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=folder / "video_embedding.sqlite")
    try:
        ledger.name_serving(serving)
        ledger.serve(serving)
        ledger.journal = journal = Journal(ledger, store, KEYS, prove=lambda: None)
        journal.take_in()
        yield ledger
    finally:
        ledger.close()


def test_generations_keep_their_rows_whichever_serves(ledger: Ledger):
    ledger.record([claim("a", "old")])
    ledger.name_serving(OLD)
    candidate = ledger.of(NEW)
    assert candidate.columns().num_rows == 0
    assert candidate.counts() == {}
    assert candidate.rows(["a"]) == {}
    assert ledger.generations() == [OLD]

    candidate.record([claim("a", "new"), claim("b", "new")])

    assert claims(ledger) == claims(ledger.of(OLD)) == {"a": "old"}
    assert claims(candidate) == {"a": "new", "b": "new"}
    assert ledger.generations() == [OLD, NEW]

    ledger.serve(NEW)

    assert ledger.serving() == NEW
    assert claims(ledger) == claims(candidate) == {"a": "new", "b": "new"}
    assert claims(ledger.of(OLD)) == {"a": "old"}
    ledger.serve(OLD)
    ledger.serve(OLD)
    assert claims(ledger) == {"a": "old"}


def test_what_is_written_during_a_cut_over_goes_to_its_own_generation(ledger: Ledger):
    """A run holds its ledger open while another process cuts over."""
    ledger.name_serving(OLD)
    run = ledger.of(OLD)
    run.record([claim("a", "old")])

    ledger.of(NEW).record([claim("a", "new")])
    ledger.serve(NEW)
    run.mark_overwriting(["a"])
    run.record([claim("c", "old")])

    assert claims(ledger) == {"a": "new"}
    assert claims(run) == {"a": None, "c": "old"}


def test_an_original_reader_finds_the_generation_that_serves(tmp_path: Path):
    path = tmp_path / "video_embedding.sqlite"
    with closing(Ledger.open(Stage.VIDEO, state_url="", sqlite_path=path)) as ledger:
        ledger.name_serving(OLD)
        ledger.record([claim("a", "old")])
        ledger.of(NEW).record([claim("b", "new")])
        ledger.serve(NEW)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT video_id FROM processed_items").fetchall() == [("b",)]


def test_a_ledger_of_before_there_were_generations_is_named_once(ledger: Ledger):
    ledger.record([claim("a", "old")])
    assert ledger.serving() == UNNAMED

    ledger.name_serving(OLD)
    ledger.name_serving(NEW)

    assert ledger.serving() == OLD
    assert claims(ledger.of(OLD)) == {"a": "old"}
    assert ledger.generations() == [OLD]


def test_a_ledger_that_stood_still_through_a_cut_over_keeps_its_rows(ledger: Ledger):
    """Its rows were never named, and by the time that it is opened another generation serves."""
    ledger.record([claim("a", "old")])
    ledger.name_serving(OLD)

    ledger.serve(NEW)

    assert claims(ledger) == {}
    assert claims(ledger.of(OLD)) == {"a": "old"}


def test_a_generation_is_dropped_and_may_begin_again(ledger: Ledger):
    ledger.name_serving(OLD)
    ledger.record([claim("a", "old")])
    candidate = ledger.of(NEW)
    candidate.record([claim("a", "new")])

    ledger.drop(NEW)

    assert ledger.generations() == [OLD]
    assert candidate.columns().num_rows == 0
    with pytest.raises(ValueError, match="serves"):
        ledger.drop(OLD)
    candidate.record([claim("b", "new")])
    assert claims(candidate) == {"b": "new"}
    assert claims(ledger) == {"a": "old"}


def test_generations_of_a_large_ledger_are_read_apart(ledger: Ledger):
    ledger.name_serving(OLD)
    ledger.of(NEW).record([LedgerRow(video_id=f"v{i}", note="x" * 50) for i in range(25_000)])
    ledger.record([claim("a", "old")])

    assert ledger.columns(["video_id"]).num_rows == 1
    assert ledger.of(NEW).columns(["video_id", "seconds"]).num_rows == 25_000


# several machines


def test_machines_share_all_generations(store: ObjectStore, tmp_path: Path):
    with machine(tmp_path / "one", store, OLD) as one:
        one.record([claim("a", "old")])
        one.of(NEW).record([claim("a", "new")])
        one.push()
        one.of(NEW).record([claim("b", "new")])
        one.push()
    with machine(tmp_path / "two", store, OLD) as two:
        assert claims(two) == {"a": "old"}
        assert claims(two.of(NEW)) == {"a": "new", "b": "new"}


def test_the_log_does_not_care_who_serves(store: ObjectStore, tmp_path: Path):
    """One machine has cut over, and writes; the other has not, or just does."""
    with machine(tmp_path / "one", store, OLD) as one, machine(tmp_path / "two", store, OLD) as two:
        one.record([claim("a", "old")])
        one.of(NEW).record([claim("a", "new")])
        one.push()
        one.serve(NEW)
        one.record([claim("b", "new")])
        one.of(OLD).record([claim("c", "old")])
        two.of(OLD).record([claim("d", "old")])
        one.push()
        two.push()
    for name in ("one", "two", "three"):
        with machine(tmp_path / name, store, NEW) as ledger:
            assert claims(ledger) == {"a": "new", "b": "new"}
            assert claims(ledger.of(OLD)) == {"a": "old", "c": "old", "d": "old"}


def test_writers_of_one_generation_find_each_other_while_another_is_written(
    store: ObjectStore, tmp_path: Path
):
    with machine(tmp_path / "one", store, OLD) as one, machine(tmp_path / "two", store, OLD) as two:
        one.of(NEW).record([claim("a", "one")])
        two.of(NEW).record([claim("a", "two")])
        two.record([claim("a", "old")])
        one.push()
        two.push()
    with machine(tmp_path / "three", store, OLD) as three:
        assert claims(three) == {"a": "old"}
        assert claims(three.of(NEW)) == {"a": None}


def test_a_dropped_generation_is_gone_from_every_machine(store: ObjectStore, tmp_path: Path):
    for name in ("one", "two", "three"):
        with machine(tmp_path / name, store, OLD) as ledger:
            ledger.of(NEW).record([claim(name, "new")])
            ledger.record([claim(f"many-{name}-{i}", "old") for i in range(50)])
            ledger.push()
    with machine(tmp_path / "one", store, OLD) as one:
        one.drop(NEW)
        assert one.push()
        assert not one.push()
    with machine(tmp_path / "two", store, OLD) as two:  # by the log
        assert claims(two.of(NEW)) == {}
        assert len(claims(two)) == 150
        two.of(NEW).record([claim("again", "new")])
        two.record([claim(f"more-{i}", "old") for i in range(100)])
        two.push()
    with machine(tmp_path / "three", store, OLD) as three:  # by a snapshot made since
        assert claims(three.of(NEW)) == {"again": "new"}
        assert len(claims(three)) == 250
    with machine(tmp_path / "four", store, OLD) as four:
        assert claims(four.of(NEW)) == {"again": "new"}


def test_rows_of_a_version_without_generations_are_those_of_the_one_that_serves(
    store: ObjectStore, tmp_path: Path
):
    """Machines are brought up to date one after the other."""
    before = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=tmp_path / "before" / "ledger.sqlite")
    with closing(before):
        before.journal = Journal(before, store, KEYS, prove=lambda: None)
        before.record([claim(f"many-{i}", "old") for i in range(50)])
        before.push()
        before.record([claim("a", "old")])
        before.push()
    with machine(tmp_path / "now", store, OLD) as now:
        assert len(claims(now)) == 51
        assert now.generations() == [OLD]
