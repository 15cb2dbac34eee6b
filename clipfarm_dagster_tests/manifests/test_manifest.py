"""The manifest of a modality: which rows, which types, written whole."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from threading import Timer

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfarm_dagster.errors import InvalidVideoIdError, ManifestError
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.ledger.verify import repair_vectors, verify_vectors
from clipfarm_dagster.manifests.manifest import Manifest, read_manifest, write_manifest
from clipfarm_dagster.manifests.refresh import current_manifest, refresh_manifest, stored_manifest
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.local_copies import LocalCopies, LocalFile
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster_tests.support.corpora import embed, etag_of, open_corpus
from clipfarm_dagster_tests.support.stages import opened

IDS = ["b", "a", "_x", "Z-1"]
ORDER = ["Z-1", "_x", "a", "b"]


def _refresh(corpus, stage=Stage.VIDEO):
    with corpus.ledger(stage) as ledger:
        refreshed = refresh_manifest(opened(corpus, ledger))
    return refreshed.manifest


def _written(corpus):
    with corpus.ledger(Stage.VIDEO) as ledger:
        return refresh_manifest(opened(corpus, ledger)).written


def _change_row(corpus, name, **columns):
    with corpus.ledger(Stage.VIDEO) as ledger:
        ledger.record([replace(ledger.rows([name])[name], row_version=None, **columns)])


def test_rows_are_those_of_the_ledger_in_order_with_the_contract_in_the_file(tmp_path, store):
    corpus = open_corpus(tmp_path, store)
    at = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    embed(corpus, Stage.VIDEO, IDS, at=at)

    _refresh(corpus)

    path = tmp_path / "copy"
    corpus.store.download("clipfarm/manifests/video.parquet", path)
    table, contract = pq.read_table(path), corpus.contract(Stage.VIDEO)
    assert table["video_id"].to_pylist() == ORDER
    assert table["embedding_key"].to_pylist() == [f"clipfarm/embeddings/video/{i}.npy" for i in ORDER]
    row = table.to_pylist()[0]
    assert row["captured_at"] == datetime(2026, 1, 31, 8, tzinfo=UTC)
    assert row["processed_at"] == at
    assert (row["modality"], row["status"], row["embedding_dim"]) == ("video", "success", 8)
    assert (row["model_name"], row["model_version"]) == (contract.model_name, contract.model_revision)
    assert table.schema.metadata[b"clipfarm.contract_id"].decode() == contract.id
    assert Contract.from_json(table.schema.metadata[b"clipfarm.contract"].decode()) == contract


def test_what_there_is_to_know_of_a_vector_stands_in_its_row(tmp_path):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    _change_row(corpus, ORDER[1], note="3 of 16 frames damaged")

    assert _refresh(corpus).table["note"].to_pylist()[:3] == [None, "3 of 16 frames damaged", None]


@pytest.mark.parametrize(
    "columns",
    [
        {"status": str(Status.FAIL)},
        {"vector_source_hash": "another input"},
        {"vector_contract_id": "another contract"},
    ],
)
def test_only_successes_whose_vector_is_known_to_be_theirs_are_in_it(tmp_path, columns):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    _change_row(corpus, "a", **columns)

    manifest = _refresh(corpus)

    assert manifest.table["video_id"].to_pylist() == ["Z-1", "_x", "b"]


def test_a_manifest_waits_for_a_vector_that_is_being_written_over(tmp_path):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    with corpus.ledger(Stage.VIDEO) as ledger:
        (row,) = ledger.rows(["a"]).values()
        ledger.mark_overwriting(["a"])
        recorded = Timer(0.5, lambda: ledger.record([replace(row, row_version=None)]))
        recorded.start()

        manifest = _refresh(corpus)

        recorded.join()
    assert manifest.table["video_id"].to_pylist() == ORDER


def test_a_manifest_never_gives_way_to_one_with_fewer_rows_than_there_are_successes(tmp_path, monkeypatch):
    monkeypatch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0.1)
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    _refresh(corpus)
    before = corpus.store.get(corpus.keys.manifest(Stage.VIDEO))
    _change_row(corpus, "a", vector_source_hash=None, vector_contract_id=None)

    with pytest.raises(ManifestError, match=r"1 video vectors .* such as a; .*clipfarm sync"):
        _refresh(corpus)

    assert corpus.store.get(corpus.keys.manifest(Stage.VIDEO)) == before


def test_another_contract_begins_the_manifest_anew(tmp_path):
    embed(open_corpus(tmp_path), Stage.VIDEO, IDS)
    changed = open_corpus(tmp_path, video={"pooling": "mean"})
    embed(changed, Stage.VIDEO, ["a"])

    manifest = _refresh(changed)

    assert manifest.table["video_id"].to_pylist() == ["a"]
    assert manifest.contract == changed.contract(Stage.VIDEO)


def test_it_is_written_only_when_something_changed(tmp_path, store):
    corpus = open_corpus(tmp_path, store)
    embed(corpus, Stage.VIDEO, IDS)
    assert _written(corpus)
    etag = etag_of(corpus.store, corpus.keys.manifest(Stage.VIDEO))

    assert not _written(corpus)
    assert etag_of(corpus.store, corpus.keys.manifest(Stage.VIDEO)) == etag

    embed(corpus, Stage.VIDEO, ["c"])
    assert _written(corpus)
    assert stored_manifest(corpus, Stage.VIDEO)[0].table.num_rows == 5


def test_an_empty_ledger_gives_an_empty_manifest_of_the_same_types(tmp_path):
    corpus = open_corpus(tmp_path)
    empty = _refresh(corpus)
    embed(corpus, Stage.VIDEO, IDS)
    full = _refresh(corpus)

    assert empty.table.num_rows == 0
    assert empty.dimension is None
    assert empty.table.schema.equals(full.table.schema)


def test_a_damaged_manifest_in_the_store_is_named_and_replaced(tmp_path):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    corpus.store.put(corpus.keys.manifest(Stage.VIDEO), b"PAR1 but not for long")

    key = corpus.keys.manifest(Stage.VIDEO)
    with pytest.raises(ManifestError, match=f"'{key}' cannot be read .*materialize it anew"):
        stored_manifest(corpus, Stage.VIDEO)
    assert _written(corpus)
    assert stored_manifest(corpus, Stage.VIDEO)[0].table.num_rows == 4


def test_a_manifest_that_is_not_there_says_what_to_materialize(tmp_path):
    with pytest.raises(ManifestError, match="materialize `audio_manifest`"):
        stored_manifest(open_corpus(tmp_path), Stage.AUDIO)


def test_vectors_of_several_dimensions_are_named_and_can_be_mended(tmp_path):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, ["a", "b", "c", "d"], dimension=8)
    embed(corpus, Stage.VIDEO, ["e"], dimension=16)
    manifest, wrong = _refresh(corpus), corpus.keys.embedding(Stage.VIDEO, "e")

    with pytest.raises(
        ManifestError,
        match=rf"4 have 8, such as .*/a.npy, .*; 1 have 16, such as {wrong}\. Delete .*--repair",
    ):
        _ = manifest.dimension

    corpus.store.delete(wrong)
    with corpus.ledger(Stage.VIDEO) as ledger:
        assert repair_vectors(ledger, verify_vectors(ledger, corpus.store, corpus.keys)) == ["e"]
    embed(corpus, Stage.VIDEO, ["e"], dimension=8)
    assert _refresh(corpus).dimension == 8


def test_another_table_is_no_manifest(tmp_path):
    pq.write_table(pa.table({"video_id": ["a"]}), tmp_path / "file")

    with pytest.raises(ManifestError, match="that file is not a manifest of this version; replace it"):
        read_manifest(LocalFile(tmp_path / "file", "that file", "replace it"))


def test_an_id_that_may_not_become_a_key_is_refused_by_name(tmp_path):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    _change_row(corpus, "a", video_id="../../etc")

    with corpus.ledger(Stage.VIDEO) as ledger, pytest.raises(InvalidVideoIdError, match=r"\.\./\.\./etc"):
        current_manifest(opened(corpus, ledger))


def test_old_versions_of_a_copy_do_not_pile_up(tmp_path):
    corpus = open_corpus(tmp_path)
    for number in range(6):
        embed(corpus, Stage.VIDEO, [f"v{number}"])
        _refresh(corpus)

    assert len(list((tmp_path / "cache" / "manifests").iterdir())) == 2


@pytest.fixture
def manifest_file(tmp_path):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    manifest = _refresh(corpus)
    path = tmp_path / "video.parquet"
    assert isinstance(manifest, Manifest)
    corpus.store.download(corpus.keys.manifest(Stage.VIDEO), path)
    return path


def test_pyarrow_reads_the_types(manifest_file):
    types = {field.name: str(field.type) for field in pq.read_schema(manifest_file)}

    texts = ["video_id", "source_hash", "modality", "embedding_key", "model_name", "model_version"]
    texts += ["preprocess_version", "status", "artifact_sha256", "note"]
    moments = dict.fromkeys(["captured_at", "processed_at"], "timestamp[us, tz=UTC]")
    assert types == {**dict.fromkeys(texts, "string"), **moments, "embedding_dim": "int32"}


def test_pandas_reads_the_types(manifest_file):
    frame = pd.read_parquet(manifest_file)

    assert frame["video_id"].tolist() == ORDER
    assert str(frame["processed_at"].dtype) == "datetime64[us, UTC]"
    assert frame["embedding_dim"].dtype == "int32"


def test_polars_reads_the_types(manifest_file):
    frame = pl.read_parquet(manifest_file)

    assert frame["video_id"].to_list() == ORDER
    assert frame.schema["processed_at"] == pl.Datetime("us", "UTC")
    assert frame.schema["embedding_dim"] == pl.Int32


def test_duckdb_reads_the_types_and_the_contract(manifest_file):
    with duckdb.connect() as connection:
        rows = connection.read_parquet(str(manifest_file))
        types = dict(zip(rows.columns, map(str, rows.types), strict=True))
        [(contract,)] = connection.execute(
            "SELECT decode(value) FROM parquet_kv_metadata(?) WHERE decode(key) = 'clipfarm.contract'",
            [str(manifest_file)],
        ).fetchall()
        ids = [video_id for (video_id,) in rows.project("video_id").fetchall()]

    assert ids == ORDER
    assert types["processed_at"] == "TIMESTAMP WITH TIME ZONE"
    assert types["embedding_dim"] == "INTEGER"
    assert json.loads(contract)["stage"] == "video"


def test_a_writer_that_starts_from_another_folder_of_copies_sees_what_stands(tmp_path):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    manifest = _refresh(corpus)

    elsewhere = LocalCopies(corpus.store, tmp_path / "elsewhere")
    _, written = write_manifest(manifest, elsewhere, corpus.keys.manifest(Stage.VIDEO))
    assert not written
