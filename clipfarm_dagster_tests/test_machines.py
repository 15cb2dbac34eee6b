"""Histories of two machines over one store that once ended with a wrong vector, or with fewer of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import time_machine

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import LedgerError, ManifestError, StoreError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.verify import retry_failures
from clipfarm_dagster.manifests.refresh import refresh_manifest
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.vectors.npy import from_npy
from clipfarm_dagster_tests.support.hashing_encoder import vector_of
from clipfarm_dagster_tests.support.machines import (
    embed_texts,
    open_corpus,
    put_texts,
    put_transcript,
    sync_texts,
)
from clipfarm_dagster_tests.support.postgres import new_database
from clipfarm_dagster_tests.support.stages import opened

IDS = [f"v{n}" for n in range(8)]


def titled(title: str, ids: Sequence[str] = IDS) -> dict[str, tuple[str, str, str]]:
    return dict.fromkeys(ids, (title, "description", "query"))


@pytest.fixture
def one(store: ObjectStore, tmp_path: Path) -> Corpus:
    """The first machine, over a store with the metadata and transcripts of some videos."""
    corpus = open_corpus(tmp_path / "one", store)
    put_texts(corpus, titled("one"), minute=1)
    for video_id in IDS:
        put_transcript(corpus, video_id, f"{video_id}:0")
    return corpus


@pytest.fixture
def two(store: ObjectStore, tmp_path: Path) -> Corpus:
    """A second machine."""
    return open_corpus(tmp_path / "two", store)


def check_vectors(corpus: Corpus, title: str) -> None:
    """All vectors are those of this title, under the corpus's contract."""
    contract_id = corpus.contract(Stage.TEXT).id
    for video_id in IDS:
        stored = from_npy(corpus.store.get(corpus.keys.embedding(Stage.TEXT, video_id)).data)
        expected = vector_of((f"{video_id}:0", title, "description", "query"), contract_id)
        assert np.array_equal(stored, expected), video_id


class Gone(BaseException):
    """The machine is no more."""


def test_what_a_lost_machine_was_overwriting_is_work_for_every_other(
    one: Corpus, two: Corpus, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It put vectors of another contract, and vanished with its home before it told anyone."""
    sync_texts(one)
    sync_texts(two)
    other_model = open_corpus(tmp_path / "one", store, contract=1)

    def vanish(ledger: Ledger, rows: Sequence[LedgerRow]) -> None:
        raise Gone

    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "record", vanish)
        with pytest.raises(Gone):
            sync_texts(other_model)
    shutil.rmtree(tmp_path / "one")

    assert sorted(sync_texts(two)) == IDS
    check_vectors(two, "one")
    assert sync_texts(open_corpus(tmp_path / "three", store)).total() == 0


@pytest.mark.parametrize("hours", [-1, 0, 1], ids=["clock an hour behind", "same clock", "an hour ahead"])
def test_machines_in_turns_know_of_each_other_whatever_their_clocks_say(one: Corpus, two: Corpus, hours: int):
    sync_texts(one)
    sync_texts(two)
    put_texts(one, titled("two"), minute=2)
    with time_machine.travel(datetime.now() + timedelta(hours=hours), tick=True):
        assert sync_texts(one).total() == len(IDS)
    put_texts(one, titled("one"), minute=3)

    assert sorted(sync_texts(two)) == IDS

    check_vectors(two, "one")
    assert sync_texts(one).total() == 0
    check_vectors(one, "one")


@pytest.mark.parametrize("hours", [-1, 0, 1], ids=["clock an hour behind", "same clock", "an hour ahead"])
def test_machines_that_embed_the_same_at_once_leave_no_wrong_vector(
    one: Corpus, two: Corpus, hours: int, store: ObjectStore, tmp_path: Path
):
    """Each has planned before the other recorded; they have read different versions of the CSV."""
    sync_texts(one)
    sync_texts(two)
    with one.ledger(Stage.TEXT) as ledger_one, two.ledger(Stage.TEXT) as ledger_two:
        put_texts(one, titled("two"), minute=2)
        with time_machine.travel(datetime.now() + timedelta(hours=hours), tick=True):
            embed_texts(one, ledger_one)
        put_texts(two, titled("three"), minute=3)
        embed_texts(two, ledger_two)
        ledger_two.push()
        ledger_one.push()

    put_texts(one, titled("two"), minute=4)
    sync_texts(one)
    check_vectors(one, "two")
    assert sync_texts(two).total() == 0
    assert sync_texts(open_corpus(tmp_path / "three", store)).total() == 0


def test_a_machine_that_was_away_makes_a_whole_manifest_and_repeats_no_old_failure(
    one: Corpus, two: Corpus, store: ObjectStore
):
    store.put(one.keys.raw(Stage.TEXT, "v0"), b"{}")
    put_texts(one, titled("one", ["v0", "v1"]), minute=2)
    sync_texts(two)  # one success and one failure
    put_texts(one, titled("one"), minute=3)
    put_transcript(one, "v0", "v0:0")
    sync_texts(one)

    with two.ledger(Stage.TEXT) as ledger:
        assert retry_failures(ledger) == []
        ledger.push()
        refreshed = refresh_manifest(opened(two, ledger))

    assert refreshed.manifest.table.num_rows == len(IDS)
    with one.ledger(Stage.TEXT) as ledger:
        assert {row.status for row in ledger.rows(IDS).values()} == {Status.SUCCESS}


def test_a_manifest_holds_what_all_machines_know_whatever_one_had_not_told_when_it_was_killed(
    one: Corpus, two: Corpus, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0.1)
    sync_texts(one)
    with one.ledger(Stage.TEXT) as ledger:
        ledger.journal = None  # killed between its own ledger and the store's log
        ledger.mark_overwriting(IDS[:1])

    with one.ledger(Stage.TEXT) as ledger, pytest.raises(ManifestError, match=f"such as {IDS[0]}"):
        refresh_manifest(opened(one, ledger))

    with two.ledger(Stage.TEXT) as ledger:
        assert sorted(i for i, row in ledger.rows(IDS).items() if row.vector_source_hash) == IDS[1:]
    assert sync_texts(two) == {IDS[0]: 1}
    with one.ledger(Stage.TEXT) as ledger:
        assert refresh_manifest(opened(one, ledger)).manifest.table["video_id"].to_pylist() == IDS


@pytest.mark.parametrize("setting", ["store", "prefix"])
def test_a_home_that_is_pointed_at_another_store_or_prefix_is_refused(
    one: Corpus, store: ObjectStore, tmp_path: Path, setting: str
):
    sync_texts(one)
    elsewhere = store if setting == "prefix" else ObjectStore.open(str(tmp_path / "elsewhere"))
    prefix = "other" if setting == "prefix" else "clipfarm"
    other = open_corpus(tmp_path / "one", elsewhere, prefix=prefix)
    put_texts(other, titled("one"), minute=1)

    with pytest.raises(LedgerError, match=r"belongs to a corpus other than.*CLIPFARM_HOME"):
        sync_texts(other)

    assert elsewhere.list(f"{prefix}/embeddings").num_rows == 0
    assert elsewhere.list(f"{prefix}/state").num_rows == 0
    assert sync_texts(one).total() == 0
    (tmp_path / "one" / "state" / "text_embedding.sqlite").unlink()
    assert sync_texts(one).total() == 0, "the way out: the ledger is restored from its own store"


def test_a_ledger_in_postgresql_belongs_to_one_store(tmp_path: Path, postgres_url: str):
    url = new_database(postgres_url)
    stores = [ObjectStore.open(str(tmp_path / name)) for name in ("right", "wrong")]
    right, wrong = (open_corpus(tmp_path / "home", store, state_url=url) for store in stores)
    for corpus in (right, wrong):
        put_texts(corpus, titled("one"), minute=1)
        for video_id in IDS:
            put_transcript(corpus, video_id, f"{video_id}:0")
    assert sync_texts(right).total() == len(IDS)

    with pytest.raises(LedgerError, match=r"belongs to a corpus other than.*another database"):
        sync_texts(wrong)


def test_nothing_is_written_where_there_is_nothing_to_do(store: ObjectStore, tmp_path: Path):
    corpus = open_corpus(tmp_path / "home", store)
    put_texts(corpus, {}, minute=1)
    before = store.list()["key"].to_pylist()
    with corpus.ledger(Stage.TEXT) as ledger:
        opened(corpus, ledger).plan(corpus.latest_rows())
        ledger.push()
    assert store.list()["key"].to_pylist() == before


def test_a_damaged_snapshot_beside_a_good_ledger_ends_nothing_and_what_is_not_proved_is_work(
    one: Corpus, two: Corpus, store: ObjectStore
):
    sync_texts(one)
    put_texts(one, titled("two"), minute=2)
    sync_texts(two)  # the first machine has not seen these vectors
    store.put(one.keys.ledger_snapshot(Stage.TEXT), b"cut off")
    for key in store.list(one.keys.ledger_journal_folder(Stage.TEXT))["key"].to_pylist():
        store.delete(key)
    put_texts(one, titled("one"), minute=3)

    assert sorted(sync_texts(one)) == IDS

    check_vectors(one, "one")
    assert sync_texts(two).total() == 0


def test_a_store_that_is_away_is_told_before_anything_is_planned(tmp_path: Path):
    corpus = open_corpus(tmp_path / "home", ObjectStore.open(str(tmp_path / "store")))
    put_texts(corpus, titled("one"), minute=1)
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreError, match=str(tmp_path)), corpus.ledger(Stage.TEXT):
        pass


def test_the_id_of_a_corpus_that_cannot_be_read_is_named(one: Corpus, store: ObjectStore):
    sync_texts(one)
    store.put(one.keys.corpus_id(), json.dumps(["?"]).encode())
    with pytest.raises(LedgerError, match=r"corpus\.json.*ledger_corpus"):
        sync_texts(one)
