"""When a generation serves by itself, and what it says is missing before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.maintenance.audit import Audit, Finding
from clipfarm_dagster.maintenance.migration import cut_over
from clipfarm_dagster.maintenance.readiness import (
    Readiness,
    cut_over_when_ready,
    readiness,
    ready_to_cut_over,
)
from clipfarm_dagster.planning.coverage import Cover, Coverage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster_tests.support.generations import IDS, TEXT, Two, embed, texts
from clipfarm_dagster_tests.support.machines import open_corpus, put_texts

OLD, NEW = "a" * 16, "b" * 16
WELL = {name: Finding(0, "well") for name in Audit}


def decided(counts: Mapping[str, int], serving: Serving | None = None, automatic: bool = True) -> Readiness:
    return ready_to_cut_over(
        NEW,
        Coverage({Cover(name): count for name, count in counts.items()}),
        WELL,
        serving=serving or Serving(OLD, "2026-01-01T00:00:00.000000Z"),
        automatic=automatic,
    )


@pytest.mark.parametrize(
    "counts",
    [
        {"done": 1},
        {"done": 1000, "outdated": 10},
        {"done": 5, "failed": 2, "missing_raw_object": 1},
        {"done": 1000, "failed": 10},
        {"done": 1, "orphaned": 1000},
    ],
)
def test_it_is_ready_once_it_has_what_is_served(counts: dict[str, int]):
    assert decided(counts).ready


@pytest.mark.parametrize(
    ("counts", "missing"),
    [
        ({}, "no vectors"),
        ({"failed": 2}, "no vectors"),
        ({"done": 1000, "to_do": 1}, "1 of 1,001 served videos are still to be embedded"),
        ({"done": 7, "to_do": 1, "waiting": 2}, "3 of 10 .* 2 of them once their next attempt is due"),
        ({"done": 98, "outdated": 1}, "1 of 99 served videos have changed"),
        ({"done": 5, "failed": 3, "missing_raw_object": 1}, "4 of 9 .* 3 fail .* 1 have no raw object"),
        ({"done": 1000, "failed": 11}, "11 of 1,011"),
    ],
)
def test_it_says_what_is_missing(counts: dict[str, int], missing: str):
    found = decided(counts)

    assert not found.ready
    assert not found.held
    assert len(found.missing) == 1
    assert re.search(missing, found.missing[0])


@pytest.mark.parametrize("name", [Audit.UNIT_NORM, Audit.FINITE, Audit.DIMENSION])
def test_vectors_that_are_wrong_do_not_serve(name: Audit):
    checks = {**WELL, name: Finding(2, "2 vectors are wrong")}
    serving = Serving(OLD, "2026-01-01T00:00:00.000000Z")

    found = ready_to_cut_over(NEW, Coverage({Cover.DONE: 9}), checks, serving=serving, automatic=True)

    assert found.missing == (f"{name}: 2 vectors are wrong",)


@pytest.mark.parametrize(
    ("changes", "automatic", "held"),
    [
        ({}, False, "CLIPFARM_CUT_OVER is manual"),
        ({"rolled_back": NEW}, True, "a person went back from it"),
        ({"following": NEW}, True, "is under way"),
    ],
)
def test_it_can_be_held_back(changes: dict[str, Any], automatic: bool, held: str):
    serving = replace(Serving(OLD, "2026-01-01T00:00:00.000000Z"), **changes)

    found = decided({"done": 8}, serving, automatic)

    assert not found.ready
    assert not found.missing
    assert held in " ".join(found.held)


# over a store


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(str(tmp_path / "store"))


@pytest.fixture
def two(store: ObjectStore, tmp_path: Path) -> Two:
    return Two(open_corpus(tmp_path / "home", store), open_corpus(tmp_path / "home", store, contract=1))


def set_row(corpus: Corpus, contract_id: str, video_id: str, **changes: Any) -> LedgerRow:
    """Change a row as an attempt would have left it."""
    with corpus.stage(TEXT, contract_id) as opened:
        row = replace(opened.ledger.rows([video_id])[video_id], **changes)
        opened.ledger.record([row])
        opened.ledger.push()
    return row


def test_the_wanted_generation_serves_once_it_is_whole(two: Two):
    assert cut_over_when_ready(two.corpus, TEXT) is None  # it wants what serves

    found = cut_over_when_ready(two.other, TEXT)

    assert found is not None
    assert found.coverage.counts == {Cover.DONE: 8}
    two.is_settled(two.new, aside=two.old)
    assert cut_over_when_ready(two.other, TEXT) is None


def test_it_waits_for_each_video_that_is_served(two: Two):
    put_texts(two.corpus, {**texts(), "new": ("t", "d", "q")}, minute=1)
    two.corpus.store.put(two.corpus.keys.raw(TEXT, "new"), b'{"transcript": "words"}')
    with two.corpus.stage(TEXT) as opened:
        embed(opened, two.corpus, ["new"])

    found = cut_over_when_ready(two.other, TEXT)

    assert found is not None
    assert found.coverage.examples == {Cover.TO_DO: ("new",)}
    assert two.corpus.serving.read()[TEXT].contract_id == two.old
    with two.corpus.stage(TEXT) as opened:
        embed(opened.under(two.other.contract(TEXT)), two.corpus, ["new"])
    found = cut_over_when_ready(two.other, TEXT)
    assert found is not None
    assert found.ready
    assert two.corpus.serving.read()[TEXT].contract_id == two.new


def test_it_waits_for_another_attempt_and_not_for_one_that_is_given_up(two: Two):
    later = timestamp(datetime.now(UTC) + timedelta(hours=1))
    no_vector = {"vector_source_hash": None, "vector_contract_id": None}
    set_row(two.corpus, two.new, "v1", status="fail", next_attempt_at=later, **no_vector)
    found = cut_over_when_ready(two.other, TEXT)
    assert found is not None
    assert found.coverage.counts == {Cover.DONE: 7, Cover.WAITING: 1}
    assert two.corpus.serving.read()[TEXT].contract_id == two.old

    set_row(two.corpus, two.new, "v1", status="quarantined", next_attempt_at=None)
    found = cut_over_when_ready(two.other, TEXT)

    assert found is not None
    assert found.coverage.counts == {Cover.DONE: 7, Cover.FAILED: 1}
    assert two.corpus.serving.read()[TEXT].contract_id == two.new


def test_a_broken_vector_keeps_it_from_serving(two: Two):
    set_row(two.corpus, two.new, "v1", vector_norm=2.0)

    found = cut_over_when_ready(two.other, TEXT)

    assert found is not None
    assert [text.partition(":")[0] for text in found.missing] == ["unit_norm"]
    assert two.corpus.serving.read()[TEXT].contract_id == two.old


def test_by_setting_only_a_person_lets_it_serve(two: Two, store: ObjectStore, tmp_path: Path):
    other = open_corpus(tmp_path / "home", store, contract=1, cut_over="manual")

    found = cut_over_when_ready(other, TEXT)

    assert found is not None
    assert not found.missing
    assert two.corpus.serving.read()[TEXT].contract_id == two.old


def test_it_does_not_serve_again_by_itself_after_a_person_went_back(two: Two):
    cut_over_when_ready(two.other, TEXT)
    cut_over(two.corpus, TEXT, two.old, going_back=True)

    found = cut_over_when_ready(two.other, TEXT)

    assert found is not None
    assert found.held == ("a person went back from it",)
    assert two.corpus.serving.read()[TEXT].contract_id == two.old


def test_a_cut_over_that_was_broken_off_is_finished(two: Two):
    following = two.new
    two.corpus.serving.change(TEXT, lambda now: now and replace(now, following=following))

    assert cut_over_when_ready(two.other, TEXT) is None

    two.is_settled(two.new, aside=two.old)


def test_where_nothing_serves_yet_there_is_nothing_to_wait_for(store: ObjectStore, tmp_path: Path):
    corpus = open_corpus(tmp_path / "home", store)
    put_texts(corpus, texts(), minute=0)

    assert readiness(corpus, TEXT) is None
    assert cut_over_when_ready(corpus, TEXT) is None


def test_a_generation_can_be_named(two: Two):
    found = readiness(two.corpus, TEXT, two.new)

    assert found is not None
    assert (found.contract_id, found.coverage.served) == (two.new, len(IDS))
    assert readiness(two.corpus, TEXT, two.old) is None
