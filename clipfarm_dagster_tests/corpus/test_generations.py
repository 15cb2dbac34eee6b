"""What serves: said by the first write, followed by whoever opens the corpus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import UNNAMED, Status
from clipfarm_dagster.manifests.refresh import refresh_manifest
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.corpora import open_corpus
from clipfarm_dagster_tests.support.generations import IDS, TEXT, embed, texts
from clipfarm_dagster_tests.support.machines import put_texts, put_transcript

OTHER_MODEL: dict[str, Any] = {"text": {"model": "somebody/other", "revision": "e" * 40}}


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    corpus = open_corpus(tmp_path)
    put_texts(corpus, texts(), minute=0)
    for video_id in IDS:
        put_transcript(corpus, video_id, f"words of {video_id}")
    return corpus


@pytest.fixture
def changed(corpus: Corpus) -> Corpus:
    """The same corpus, its settings asking for another model."""
    return open_corpus(corpus.settings.home, **OTHER_MODEL)


def old_ledger(corpus: Corpus) -> Ledger:
    """The ledger as an earlier version opens it, which knew nothing of what serves."""
    return Ledger.open(TEXT, state_url="", sqlite_path=corpus.settings.home_files.ledger(TEXT))


def test_the_first_write_says_what_serves(corpus: Corpus):
    with corpus.stage(TEXT) as opened:
        assert opened.serves
        assert opened.candidate() is None
        assert corpus.serving.read() == {}
        embed(opened, corpus)
    serving = corpus.serving.read()[TEXT]
    assert serving.contract_id == corpus.contract(TEXT).id
    assert serving.before is None
    with corpus.ledger(TEXT) as ledger:
        assert ledger.serving() == corpus.contract(TEXT).id
        assert ledger.counts() == {Status.SUCCESS: len(IDS)}


def test_reading_says_nothing(corpus: Corpus):
    corpus.plans([TEXT])
    assert corpus.serving.read() == {}


def test_another_model_serves_at_once_while_there_is_no_vector(corpus: Corpus, changed: Corpus):
    corpus.store.put(corpus.keys.raw(TEXT, IDS[0]), b"no json")
    with corpus.stage(TEXT) as opened:
        embed(opened, corpus, IDS[:1])
        assert opened.ledger.counts() == {Status.INVALID_RAW_OBJECT: 1}
    assert corpus.serving.read()[TEXT].contract_id == corpus.contract(TEXT).id

    with changed.stage(TEXT) as opened:
        assert opened.contract.id == changed.contract(TEXT).id
        assert opened.serves
        assert opened.candidate() is None
        embed(opened, changed)
        assert opened.serves
    assert changed.serving.read()[TEXT].contract_id == changed.contract(TEXT).id
    with changed.ledger(TEXT) as ledger:
        assert ledger.serving() == changed.contract(TEXT).id
    row = ledger_row(changed, IDS[1])
    assert row.artifact_key == changed.keys.embedding(TEXT, IDS[1])


def test_another_model_is_a_candidate_once_there_are_vectors(corpus: Corpus, changed: Corpus):
    with corpus.stage(TEXT) as opened:
        embed(opened, corpus)
    with changed.stage(TEXT) as opened:
        assert opened.contract.id == corpus.contract(TEXT).id
        candidate = opened.candidate()
        assert candidate is not None
        assert not candidate.serves
        embed(candidate, changed)
        assert opened.ledger.counts() == candidate.ledger.counts() == {Status.SUCCESS: len(IDS)}
        keys = {row.artifact_key for row in candidate.ledger.rows(IDS).values()}
    assert keys == {changed.keys.generation(TEXT, changed.contract(TEXT).id, i) for i in IDS}


@pytest.mark.parametrize("first", ["serving", "candidate"])
def test_vectors_of_before_serve_under_the_contract_of_most(corpus: Corpus, changed: Corpus, first: str):
    old = old_ledger(corpus)
    with corpus.stage(TEXT) as opened:
        embed(opened, corpus)
    corpus.store.delete_each([corpus.keys.serving()])
    _forget_names(old)
    assert old.serving() == UNNAMED

    with changed.stage(TEXT) as opened:
        assert opened.contract.id == corpus.contract(TEXT).id
        candidate = opened.candidate()
        assert candidate is not None
        embed(opened if first == "serving" else candidate, changed)
        embed(candidate if first == "serving" else opened, changed)
        assert corpus.serving.read()[TEXT].contract_id == corpus.contract(TEXT).id
        assert opened.ledger.counts() == candidate.ledger.counts() == {Status.SUCCESS: len(IDS)}
    old.close()


def test_a_change_of_models_that_had_begun_in_place_goes_on_there(corpus: Corpus, changed: Corpus):
    old = old_ledger(corpus)
    with corpus.stage(TEXT) as opened:
        embed(opened, corpus)
    with changed.stage(TEXT) as opened:
        candidate = opened.candidate()
        assert candidate is not None
        embed(candidate, changed, IDS[:2])
        rows = candidate.ledger.rows(IDS[:2]).values()
        opened.ledger.record(
            [replace(row, row_version=None) for row in rows]
        )  # as an earlier version replaced them in place
        opened.ledger.drop(candidate.contract.id)
    corpus.store.delete_each([corpus.keys.serving()])
    _forget_names(old)

    with changed.stage(TEXT) as opened:
        assert opened.contract.id == changed.contract(TEXT).id
        assert opened.candidate() is None
        assert opened.plan(changed.latest_rows()).reasons == {"contract_changed": len(IDS) - 2}
        embed(opened, changed)
        assert opened.ledger.serving() == changed.contract(TEXT).id
        assert opened.ledger.counts() == {Status.SUCCESS: len(IDS)}
    old.close()


def test_two_machines_with_other_settings_agree_on_what_serves(corpus: Corpus, changed: Corpus, tmp_path):
    elsewhere = open_corpus(tmp_path / "elsewhere", corpus.store, **OTHER_MODEL)
    with corpus.stage(TEXT) as here, elsewhere.stage(TEXT) as there:
        assert here.serves
        assert there.serves
        embed(here, corpus, IDS[:4])
        embed(there, elsewhere, IDS[4:])
    assert corpus.serving.read()[TEXT].contract_id == corpus.contract(TEXT).id
    with elsewhere.stage(TEXT) as opened:
        assert opened.contract.id == corpus.contract(TEXT).id
        candidate = opened.candidate()
        assert candidate is not None
        assert candidate.ledger.counts() == {Status.SUCCESS: 4}
        assert opened.ledger.counts() == {Status.SUCCESS: 4}
        keys = [row.artifact_key for row in candidate.ledger.rows(IDS[4:]).values()]
    assert all(
        key is not None and key.startswith(corpus.keys.generation_folder(TEXT, candidate.contract.id))
        for key in keys
    )


def ledger_row(corpus: Corpus, video_id: str):
    with corpus.ledger(Stage.TEXT) as ledger:
        return ledger.rows([video_id])[video_id]


def _forget_names(ledger: Ledger) -> None:
    """Make a ledger one of before generations had names."""
    from sqlalchemy import text

    with ledger._engine.begin() as connection:
        connection.execute(
            text("UPDATE generations SET contract_id = '' WHERE table_name = 'processed_items'")
        )
        connection.execute(text("DELETE FROM generations WHERE contract_id <> ''"))


def test_a_removed_video_whose_vector_was_lost_keeps_no_manifest_from_being_made(corpus: Corpus, monkeypatch):
    """As after a process that was killed while it wrote the vector over."""
    monkeypatch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0)
    with corpus.stage(TEXT) as opened:
        embed(opened, corpus)
        opened.ledger.mark_overwriting(["v3"])
    put_texts(corpus, {video_id: told for video_id, told in texts().items() if video_id != "v3"}, minute=1)

    with corpus.stage(TEXT) as opened:
        plan = opened.plan(corpus.latest_rows())
        assert (plan.delta, plan.gone["video_id"].to_pylist()) == (0, ["v3"])
        assert opened.plan(corpus.latest_rows(), in_flight=["v3"]).gone.num_rows == 0
        opened.record_settled(plan)
        assert "v3" not in refresh_manifest(opened).manifest.table["video_id"].to_pylist()
        assert opened.plan(corpus.latest_rows()).gone.num_rows == 0

    put_texts(corpus, texts(), minute=2)
    with corpus.stage(TEXT) as opened:
        assert opened.plan(corpus.latest_rows()).work["video_id"].to_pylist() == ["v3"]
