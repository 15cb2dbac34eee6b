"""One installation's corpus: what a plan and a run know of the same videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.ledger.verify import repair_vectors, verify_vectors
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata
from clipfarm_dagster_tests.support.s3_proxy import s3_proxy
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
def test_an_erased_video_is_no_longer_in_the_metadata_though_the_csv_has_it(corpus: Corpus):
    corpus.store.put(corpus.keys.metadata(), HEADER + b"a,2026-01-01,t,d,q\nb,2026-01-02,t,d,q\n")
    assert corpus.latest_rows().video_ids() == ["b", "a"]

    corpus.tombstones.add(["b"])

    latest = corpus.latest_rows()
    assert (latest.video_ids(), latest.erased) == (["a"], 1)
    assert corpus.rows(["b"]) == {}


@over_a_folder
@pytest.mark.parametrize("url", ["https://user:hunter2@host/x.csv", "file://host/x.csv", "gs://bucket/x.csv"])
def test_metadata_that_cannot_be_reached_is_refused_by_its_setting(corpus: Corpus, url: str):
    with pytest.raises(SettingsError, match="CLIPFARM_METADATA_URL") as caught:
        Corpus(load_settings(metadata_url=url), corpus.store).latest_rows()

    assert "s3://bucket/key.csv" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_stages_that_are_opened_together_ask_the_store_once_for_what_they_share(
    corpus: Corpus, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
):
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([LedgerRow(video_id="a", status=Status.SUCCESS, processed_at="2026")])
    contract_id = corpus.contract(Stage.TEXT).id
    corpus.serving.change(Stage.TEXT, lambda now: Serving(contract_id, "2026-01-01T00:00:00.000000Z"))
    with s3_proxy(s3_environment) as proxy, monkeypatch.context() as through_it:
        through_it.setenv("AWS_ENDPOINT_URL", proxy.server.endpoint_url)
        with Corpus.open(load_settings()).stages(list(Stage)) as stages:
            assert [one.serving is not None for one in stages.values()] == [False, False, True]

        shared = (corpus.keys.serving(), corpus.keys.corpus_id())
        assert [proxy.requests["GET", key] for key in shared] == [1, 1]


@over_a_folder
def test_another_process_may_write_the_first_row_while_a_ledger_is_opened(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
):
    open_ledger = Ledger.open

    def opened_late(*args: Any, **kwargs: Any) -> Ledger:
        monkeypatch.setattr(Ledger, "open", open_ledger)
        with corpus.ledger(Stage.TEXT) as other:
            other.record([LedgerRow(video_id="a", status=Status.SUCCESS, processed_at="2026")])
        return open_ledger(*args, **kwargs)

    monkeypatch.setattr(Ledger, "open", opened_late)

    with corpus.ledger(Stage.TEXT) as ledger:
        assert list(ledger.rows(["a"])) == ["a"]
