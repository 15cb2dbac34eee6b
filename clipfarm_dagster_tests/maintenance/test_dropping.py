"""A generation that is dropped is gone on every machine, wherever dropping it was broken off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.errors import MigrationError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.serving import ServingRecord
from clipfarm_dagster.maintenance.dropping import Dropped, drop_generation
from clipfarm_dagster.maintenance.migration import cut_over
from clipfarm_dagster.manifests.refresh import refresh_manifest
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.generations import IDS, TEXT, Two, embed, texts
from clipfarm_dagster_tests.support.killing import Killed, killing
from clipfarm_dagster_tests.support.machines import open_corpus, put_texts


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(str(tmp_path / "store"))


@pytest.fixture
def two(store: ObjectStore, tmp_path: Path) -> Two:
    """The other generation serves; that of before is kept."""
    two = Two(open_corpus(tmp_path / "home", store), open_corpus(tmp_path / "home", store, contract=1))
    cut_over(two.corpus, TEXT, two.new)
    return two


def is_gone(two: Two, store: ObjectStore, *homes: Path) -> None:
    """Nothing is left of the generation of before, on any machine; the one that serves is whole."""
    assert store.list(two.corpus.keys.generations_folder(TEXT)).num_rows == 0
    for home in homes:
        machine = open_corpus(home, store, contract=1)
        with machine.stage(TEXT) as opened:
            assert opened.ledger.generations() == [two.new]
            assert opened.ledger.of(two.old).columns().num_rows == 0
            assert opened.plan(machine.latest_rows()).delta == 0
            refresh_manifest(opened)
    assert two.published() == two.new


def test_rows_and_vectors_of_it_are_removed_on_every_machine(two: Two, store: ObjectStore, tmp_path: Path):
    with open_corpus(tmp_path / "elsewhere", store, contract=1).stage(TEXT) as elsewhere:
        assert elsewhere.ledger.of(two.old).counts() == {"success": 8}
    size = sum(store.list(two.corpus.keys.generation_folder(TEXT, two.old))["size"].to_pylist())

    assert drop_generation(two.other, TEXT, two.old) == Dropped(rows=8, vectors=8, bytes=size)

    serving = two.corpus.serving.read()[TEXT]
    assert (serving.contract_id, serving.before, serving.dropped) == (two.new, None, (two.old,))
    is_gone(two, store, *(tmp_path / name for name in ("home", "elsewhere", "anew")))
    with pytest.raises(MigrationError, match="there are no text vectors"):
        cut_over(two.other, TEXT, two.old, going_back=True)
    assert drop_generation(two.other, TEXT, two.old) == Dropped(0, 0, 0)


def test_wherever_it_is_broken_off_another_machine_finishes_it(two: Two, store: ObjectStore, tmp_path: Path):
    at = 0
    while True:
        at += 1
        with pytest.MonkeyPatch.context() as patch:
            steps = killing(
                patch,
                at,
                (ServingRecord, "change"),
                (Ledger, "drop"),
                (Ledger, "push"),
                (ObjectStore, "delete_each"),
            )
            try:
                drop_generation(open_corpus(tmp_path / f"home{at}", store, contract=1), TEXT, two.old)
            except Killed:
                pass
            else:
                assert steps() < at
                break
        assert two.published() == two.new
        if at == 3:  # between the rows and the vectors: whoever looks sees no rows of it
            with two.other.stage(TEXT) as opened:
                assert opened.ledger.generations() == [two.new]
        if at % 2:
            continue
        drop_generation(open_corpus(tmp_path / "other machine", store, contract=1), TEXT, two.old)
        is_gone(two, store, tmp_path / "home", tmp_path / "other machine", tmp_path / f"home{at}")
    assert at > 4
    is_gone(two, store, tmp_path / "home", tmp_path / "other machine", tmp_path / "anew")


def test_a_machine_that_has_rows_to_send_does_not_bring_it_back(two: Two, store: ObjectStore, tmp_path: Path):
    """It embedded under the old contract while it could not send, and the log was tidied meanwhile."""
    put_texts(two.corpus, texts("another title"), minute=1)
    offline = open_corpus(tmp_path / "offline", store)
    with offline.stage(TEXT, two.old) as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "push", lambda ledger: False)
        embed(run, offline, IDS[:3])
    with offline.stage(TEXT, two.old) as opened, pytest.MonkeyPatch.context() as patch:
        drop_generation(two.other, TEXT, two.old)
        with two.other.stage(TEXT) as serving:
            embed(serving, two.other)
        opened.ledger.push()

    is_gone(two, store, tmp_path / "home", tmp_path / "offline", tmp_path / "anew")


def test_a_run_that_still_writes_it_is_stopped(two: Two, store: ObjectStore, tmp_path: Path):
    put_texts(two.corpus, texts("another title"), minute=1)
    with two.corpus.stage(TEXT, two.old) as run:
        drop_generation(two.other, TEXT, two.old)

        with pytest.raises(MigrationError, match=f"generation {two.old} of text vectors was dropped"):
            embed(run, two.corpus)

    with two.other.stage(TEXT) as serving:
        embed(serving, two.other)
    assert store.list(two.corpus.keys.generations_folder(TEXT)).num_rows == 0


def test_what_is_wanted_again_can_be_filled_again(two: Two):
    drop_generation(two.other, TEXT, two.old)

    two.corpus.serving.want_again(TEXT, two.old)

    with two.corpus.stage(TEXT) as opened:
        embed(opened.under(two.corpus.contract(TEXT)), two.corpus)
    cut_over(two.corpus, TEXT, two.old)
    two.is_settled(two.old, aside=two.new)


@pytest.mark.parametrize(
    ("changes", "wanted", "problem"),
    [
        ({}, "old", "the settings ask for generation"),
        ({"contract_id": "old"}, "new", "serves the text vectors"),
        ({"following": "old"}, "new", "a cut-over of the text vectors is under way"),
        ({"settled": False}, "new", "a cut-over of the text vectors is under way"),
    ],
)
def test_what_is_needed_is_not_dropped(two: Two, changes: dict[str, Any], wanted: str, problem: str):
    named: Any = {name: two.old if value == "old" else value for name, value in changes.items()}
    two.corpus.serving.change(TEXT, lambda now: now and replace(now, **named))
    before = two.corpus.store.list()

    with pytest.raises(MigrationError, match=f"{problem}.*nothing was removed"):
        drop_generation(two.corpus if wanted == "old" else two.other, TEXT, two.old)

    assert two.corpus.store.list() == before
