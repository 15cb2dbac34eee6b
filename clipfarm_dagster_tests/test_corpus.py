"""One installation's corpus: what a plan and a run know of the same videos."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.raw import metadata_row, put_metadata

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


@pytest.mark.parametrize("column", ["video_id", "captured_at", "title"])
def test_a_run_hashes_what_its_plan_hashed(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, column: str):
    monkeypatch.setenv("CLIPFARM_AUDIO_SOURCE_COLUMNS", column)
    corpus = Corpus.open(load_settings())
    put_metadata(corpus, [metadata_row("a"), metadata_row("b", captured_at="2026-01-02")])

    with corpus.ledger(Stage.AUDIO) as ledger:
        planned = corpus.plan(Stage.AUDIO, corpus.latest_rows(), ledger).missing.to_pylist()
        items = corpus.work_items(Stage.AUDIO, ["a", "b"], ledger)

    assert {row["video_id"]: row["metadata_hash"] for row in planned} == {
        item.video_id: item.metadata_hash for item in items
    }
    assert len({item.metadata_hash for item in items}) == 2


def test_a_refused_id_in_a_ledger_is_a_finding_and_no_work(corpus: Corpus):
    success = LedgerRow(video_id="good", status=Status.SUCCESS, vector_source_hash="h", processed_at="2026")
    bad = replace(success, video_id="../evil")
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([bad, success])

        found = list(corpus.verify(ledger))
        repaired = corpus.repair(ledger, found)

        assert {(one.video_id, one.key, one.problem) for one in found} == {
            ("../evil", "", "its video_id is refused"),
            ("good", corpus.keys.embedding(Stage.TEXT, "good"), "there is no such object"),
        }
        assert repaired == ["good"]
        assert ledger.rows(["../evil"]) == {"../evil": bad}
