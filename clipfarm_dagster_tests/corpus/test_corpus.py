"""One installation's corpus: what a plan and a run know of the same videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.verify import repair_vectors, verify_vectors
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata
from clipfarm_dagster_tests.support.stages import opened
from workbench.seaweedfs import S3Server

over_a_folder = pytest.mark.parametrize("store", ["folder"], indirect=True)


@over_a_folder
@pytest.mark.parametrize("column", ["video_id", "captured_at", "title"])
def test_a_run_hashes_what_its_plan_hashed(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, column: str):
    monkeypatch.setenv("CLIPFARM_AUDIO_SOURCE_COLUMNS", column)
    corpus = Corpus.open(load_settings())
    put_metadata(corpus, [metadata_row("a"), metadata_row("b", captured_at="2026-01-02")])

    with corpus.ledger(Stage.AUDIO) as ledger:
        planned = opened(corpus, ledger).plan(corpus.latest_rows()).missing.to_pylist()
        items = opened(corpus, ledger).work_items(["a", "b"], corpus.latest_rows())

    assert {row["video_id"]: row["metadata_hash"] for row in planned} == {
        item.video_id: item.metadata_hash for item in items
    }
    assert len({item.metadata_hash for item in items}) == 2


@over_a_folder
def test_a_refused_id_in_a_ledger_is_a_finding_and_no_work(corpus: Corpus):
    success = LedgerRow(video_id="good", status=Status.SUCCESS, vector_source_hash="h", processed_at="2026")
    bad = replace(success, video_id="../evil")
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([bad, success])

        found = list(verify_vectors(ledger, corpus.store, corpus.keys))
        repaired = repair_vectors(ledger, found)

        assert {(one.video_id, one.key, one.problem) for one in found} == {
            ("../evil", "", "its video_id is refused"),
            ("good", corpus.keys.embedding(Stage.TEXT, "good"), "there is no such object"),
        }
        assert repaired == ["good"]
        assert ledger.rows(["../evil"]) == {"../evil": bad}


HEADER = b"video_id,captured_at,title,description,query\n"


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_metadata_on_s3_is_read_with_the_stores_own_options(
    corpus: Corpus, seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch
):
    corpus.store.put("elsewhere/sheet.csv", HEADER + b"a,2026-01-01,t,d,q\n")
    settings = load_settings(metadata_url=f"{corpus.store.url}/elsewhere/sheet.csv")
    store = ObjectStore.open(corpus.store.url, s3=seaweedfs.options())

    with monkeypatch.context() as bare:
        for name in seaweedfs.environment:
            bare.delenv(name)
        assert Corpus(settings, store).latest_rows().video_ids() == ["a"]


@over_a_folder
@pytest.mark.parametrize("url", ["{}/a b.csv", "file://{}/a%20b.csv", "file://localhost{}/a%20b.csv"])
def test_metadata_in_a_file_is_found_by_path_and_by_url(corpus: Corpus, tmp_path: Path, url: str):
    (tmp_path / "a b.csv").write_bytes(HEADER + b"a,2026-01-01,t,d,q\n")

    settings = load_settings(metadata_url=url.format(tmp_path))

    assert Corpus(settings, corpus.store).latest_rows().video_ids() == ["a"]


@over_a_folder
@pytest.mark.parametrize("url", ["https://user:hunter2@host/x.csv", "file://host/x.csv", "gs://bucket/x.csv"])
def test_metadata_that_cannot_be_reached_is_refused_by_its_setting(corpus: Corpus, url: str):
    with pytest.raises(SettingsError, match="CLIPFARM_METADATA_URL") as caught:
        Corpus(load_settings(metadata_url=url), corpus.store).latest_rows()

    assert "s3://bucket/key.csv" in str(caught.value)
    assert "hunter2" not in str(caught.value)
