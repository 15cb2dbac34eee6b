"""The main job end to end: real clips in a store become vectors, ledger rows and green partitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.verify import verify_vectors
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.recording import DATA_VERSION_TAG
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.hashing import data_version
from clipfarm_dagster.vectors.npy import from_npy
from clipfarm_dagster_tests.support.postgres import new_database
from clipfarm_dagster_tests.support.raw import metadata_row, put_media, put_metadata, put_transcript

BROKEN = {"chunk_out_of_range", "result", "sample_audio_only", "truncated_half"}
"""Clips of the shared media that have no video that can be decoded."""


def ledger_rows(corpus: Corpus, stage: Stage) -> dict[str, LedgerRow]:
    with corpus.ledger(stage) as ledger:
        return {row["video_id"]: LedgerRow(**row) for row in ledger.columns().to_pylist()}


@pytest.fixture
def media(corpus: Corpus, shared_folder: Path) -> list[str]:
    """The real clips laid out, beside one video without any raw object and one id that is refused."""
    video_ids = list(put_media(corpus, shared_folder / "media"))
    put_metadata(corpus, [metadata_row(video_id) for video_id in [*video_ids, "absent", "../evil"]])
    return video_ids


def test_real_clips_become_vectors_and_each_bad_one_costs_itself_alone(
    corpus: Corpus, media: list[str], instance: dg.DagsterInstance
):
    answer = sync_corpus(corpus, instance, list(Stage), quiet=True).stages

    sound = set(media) - BROKEN
    for stage in Stage:
        good = sound if stage is Stage.VIDEO else set(media)
        rows = ledger_rows(corpus, stage)
        assert {i for i, row in rows.items() if row.status == Status.SUCCESS} == good
        assert rows["absent"].status == Status.MISSING_RAW_OBJECT
        assert "../evil" not in rows
        for video_id in good:
            row = rows[video_id]
            stored = corpus.store.get(corpus.keys.embedding(stage, video_id))
            vector = from_npy(stored.data, dimension=768)
            assert row.artifact_key == stored.info.key
            assert (row.embedding_dim, row.raw_etag) == (
                vector.size,
                corpus.store.get(corpus.keys.raw(stage, video_id)).info.etag,
            )
        materialized = instance.get_materialized_partitions(DEFAULT_NAMES.embedding(stage))
        assert set(materialized) == good
        assert answer[str(stage)]["success"] == answer[str(stage)]["model_calls"] == len(good)
        assert answer[str(stage)]["missing_raw_object"] == 1

    broken = {i: row for i, row in ledger_rows(corpus, Stage.VIDEO).items() if i in BROKEN}
    assert {row.status for row in broken.values()} == {Status.INVALID_RAW_OBJECT}
    assert "no video stream" in (broken["sample_audio_only"].error or "")
    assert all(row.error for row in broken.values())
    assert "29 of 30" in (ledger_rows(corpus, Stage.VIDEO)["sample_with_invalid_nalu"].note or "")
    assert set(instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)) == {*media, "absent"}

    again = sync_corpus(corpus, instance, list(Stage), quiet=True).stages
    assert {stage: entry["model_calls"] for stage, entry in again.items()} == {str(s): 0 for s in Stage}
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            assert all(
                finding.problem is None for finding in verify_vectors(ledger, corpus.store, corpus.keys)
            )


def test_a_materialization_carries_what_a_person_and_dagster_need(
    corpus: Corpus, shared_folder: Path, instance: dg.DagsterInstance
):
    put_metadata(corpus, [metadata_row("a")])
    put_transcript(corpus, "a", "hello")
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)

    row = ledger_rows(corpus, Stage.TEXT)["a"]
    [record] = instance.fetch_materializations(DEFAULT_NAMES.embedding(Stage.TEXT), limit=5).records
    event = record.asset_materialization
    assert event is not None
    assert event.tags is not None
    assert event.partition == "a"
    assert event.tags[DATA_VERSION_TAG] == data_version(row.source_hash or "", row.contract_id or "")
    metadata: dict[str, Any] = {name: value.value for name, value in event.metadata.items()}
    assert metadata["source_hash"] == row.source_hash
    assert metadata["contract"] == row.contract_id == corpus.contract(Stage.TEXT).id
    assert metadata["dimension"] == 768
    assert metadata["key"].endswith("clipfarm/embeddings/text/a.npy")
    assert metadata["seconds"] > 0
    assert "title of a [SEP] description [SEP] query" in metadata["preview"]
    assert "hello" in metadata["preview"]


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_ledger_in_postgresql_serves_a_second_machine_at_once(
    corpus: Corpus,
    instance: dg.DagsterInstance,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("CLIPFARM_STATE_URL", new_database(postgres_url))
    put_metadata(corpus, [metadata_row("a"), metadata_row("b")])
    for video_id in ("a", "b"):
        put_transcript(corpus, video_id, video_id)
    first = sync_corpus(Corpus.open(load_settings()), instance, [Stage.TEXT], quiet=True)

    elsewhere = Corpus.open(load_settings(home=tmp_path / "another machine"))
    second = sync_corpus(elsewhere, instance, [Stage.TEXT], quiet=True)

    assert first.stages["text"]["model_calls"] == 2
    assert second.stages["text"]["model_calls"] == 0
    assert elsewhere.store.head(corpus.keys.ledger_snapshot(Stage.TEXT)) is None


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_machine_that_knows_nothing_starts_from_the_snapshot(
    corpus: Corpus, instance: dg.DagsterInstance, tmp_path: Path
):
    put_metadata(corpus, [metadata_row("a")])
    put_transcript(corpus, "a", "a")
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)

    elsewhere = Corpus.open(load_settings(home=tmp_path / "another machine"))

    assert sync_corpus(elsewhere, instance, [Stage.TEXT], quiet=True).stages["text"]["model_calls"] == 0
