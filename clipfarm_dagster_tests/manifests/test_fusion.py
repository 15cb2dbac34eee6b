"""Fused vectors: right ones, of one generation, read again only where an input changed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfarm_dagster.errors import FusionError, ManifestError, SettingsError, StoreError
from clipfarm_dagster.manifests import fusion as fusion_module
from clipfarm_dagster.manifests.refresh import fused_file, refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import STRATEGIES, Mean, make_strategy, parse_weights
from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors
from clipfarm_dagster.manifests.vectors import modality_vectors
from clipfarm_dagster.planning.delta import Reason
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import to_npy
from clipfarm_dagster_tests.support.corpora import (
    embed,
    embed_all,
    etag_of,
    move_aside,
    open_corpus,
    write_metadata,
)
from clipfarm_dagster_tests.support.stages import opened

IDS = [f"v{number:02d}" for number in range(12)]


def refresh(corpus, strategy="concat"):
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(opened(corpus, ledger))
    return refresh_fused(corpus, make_strategy(strategy, corpus.settings.fusion_weights)).fusion


def fused_vectors(corpus, strategy="concat"):
    """Vector by id, as the store has them now."""
    found: dict[str, np.ndarray] = {}
    for ids, vectors in iter_vectors(fused_file(corpus, strategy)):
        found.update(zip(ids, vectors, strict=True))
    return found


def _unit(vector):
    wide = np.asarray(vector, dtype=np.float64)
    return wide / np.linalg.norm(wide)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("concat", lambda v, a, t: np.concatenate([v, a, t])),
        ("mean", lambda v, a, t: v + a + t),
        ("weighted", lambda v, a, t: np.concatenate([2 * v, 0.5 * a, t])),
    ],
)
def test_each_strategy_gives_its_vector_of_unit_norm(tmp_path, store, strategy, expected):
    corpus = open_corpus(tmp_path, store, fusion_weights="video=2,audio=0.5")
    made = embed_all(corpus, IDS)

    result = refresh(corpus, strategy)

    fused = fused_vectors(corpus, strategy)
    assert list(fused) == IDS
    assert (result.rows, result.objects_read, result.dropped) == (12, 36, [])
    for video_id, vector in fused.items():
        inputs = [made[stage][video_id] for stage in Stage]
        np.testing.assert_allclose(vector, _unit(expected(*inputs)), atol=1e-6)
        assert abs(np.linalg.norm(vector.astype(np.float64)) - 1) < 1e-6


def test_a_weight_of_zero_leaves_a_modality_out(tmp_path):
    corpus = open_corpus(tmp_path, fusion_weights="audio=0")
    made = {stage: embed(corpus, stage, IDS) for stage in (Stage.VIDEO, Stage.TEXT)}

    refresh(corpus, "weighted")

    both = np.concatenate([made[Stage.VIDEO]["v00"], made[Stage.TEXT]["v00"]])
    np.testing.assert_allclose(fused_vectors(corpus, "weighted")["v00"], _unit(both), atol=1e-6)


def test_rows_say_what_they_are_made_of(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus)

    table = pq.read_table(fused_file(corpus, "concat").path)

    row = table.drop_columns("fused_vector").to_pylist()[3]
    with corpus.ledger(Stage.AUDIO) as ledger:
        known = ledger.rows(["v03"])["v03"]
    assert row["video_id"] == "v03"
    assert row["fused_dim"] == 24
    assert row["audio_embedding_key"] == "clipfarm/embeddings/audio/v03.npy"
    assert row["audio_source_hash"] == known.source_hash
    assert row["audio_contract_id"] == corpus.contract(Stage.AUDIO).id
    assert row["audio_artifact_sha256"] == known.artifact_sha256
    assert {name.partition("_")[0] for name in row} == {"video", "audio", "text", "captured", "fused"}
    assert json.loads(table.schema.metadata[b"clipfarm.strategy"])["name"] == "concat"


def test_only_videos_with_every_modality_are_in_it(tmp_path):
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.VIDEO, IDS)
    embed(corpus, Stage.AUDIO, IDS[2:])
    embed(corpus, Stage.TEXT, IDS[:-3])

    refresh(corpus)

    assert list(fused_vectors(corpus)) == IDS[2:-3]


def test_only_what_changed_is_read_again(tmp_path, store):
    corpus = open_corpus(tmp_path, store)
    embed_all(corpus, IDS)
    refresh(corpus)
    before = fused_vectors(corpus)
    remade = embed(corpus, Stage.TEXT, ["v05"], version="2")
    embed_all(corpus, ["a-new-one"])

    result = refresh(corpus)

    after = fused_vectors(corpus)
    assert (result.rows, result.reused, result.objects_read) == (13, 11, 6)
    assert list(after) == ["a-new-one", *IDS]
    assert all((after[i] == before[i]).all() for i in IDS if i != "v05")
    assert not np.allclose(after["v05"], before["v05"])
    np.testing.assert_allclose(after["v05"][16:] * np.sqrt(3), remade["v05"], atol=1e-6)


def test_vectors_that_only_moved_to_other_keys_are_not_read(tmp_path, store):
    corpus = open_corpus(tmp_path, store)
    embed_all(corpus, IDS)
    refresh(corpus)
    modality_vectors(corpus, Stage.TEXT)
    before = fused_vectors(corpus)
    move_aside(corpus)

    result = refresh(corpus)
    alone = modality_vectors(corpus, Stage.TEXT)

    assert (result.changed, result.reused, result.objects_read) == (True, 12, 0)
    assert (alone.fusion.reused, alone.fusion.objects_read) == (12, 0)
    folder = corpus.keys.generation_folder(Stage.TEXT, corpus.contract(Stage.TEXT).id)
    for file in (fused_file(corpus, "concat"), alone.file):
        keys = pq.read_table(file.path, columns=["text_embedding_key"])["text_embedding_key"].to_pylist()
        assert keys == [f"{folder}{video_id}.npy" for video_id in IDS]
    after = fused_vectors(corpus)
    assert all((after[i] == before[i]).all() for i in IDS)


def test_a_vector_whose_hash_is_not_known_is_read_at_its_new_key(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    with corpus.ledger(Stage.AUDIO) as ledger:
        ledger.record([replace(ledger.rows(["v03"])["v03"], artifact_sha256=None)])
    refresh(corpus)
    assert refresh(corpus).objects_read == 0
    move_aside(corpus)

    result = refresh(corpus)

    assert (result.reused, result.objects_read) == (11, 3)


def test_updating_gives_the_same_file_as_building(tmp_path, monkeypatch):
    monkeypatch.setattr(fusion_module, "CHUNK", 16)  # rows of an update lie in other row groups than before
    ids = [f"v{number:03d}" for number in range(100)]
    corpus = open_corpus(tmp_path)
    embed_all(corpus, ids[:90])
    refresh(corpus)
    rng = np.random.default_rng(1)
    for number in range(6):
        some = sorted(rng.choice(ids, 7, replace=False).tolist())
        embed_all(corpus, some, version=f"2.{number}")
        with corpus.ledger(Stage.AUDIO) as ledger:
            ledger.record([replace(ledger.rows(some[:1])[some[0]], status="fail")])
        refresh(corpus)
    updated = pq.read_table(fused_file(corpus, "concat").path)

    corpus.store.delete(corpus.keys.fused_manifest("concat"))
    rebuilt = refresh(corpus)

    assert rebuilt.reused == 0
    assert pq.read_table(fused_file(corpus, "concat").path).equals(updated)


def test_nothing_changed_writes_and_reads_nothing(tmp_path, store):
    corpus = open_corpus(tmp_path, store)
    embed_all(corpus, IDS)
    refresh(corpus)
    etag = etag_of(corpus.store, corpus.keys.fused_manifest("concat"))

    result = refresh(corpus)

    assert (result.changed, result.rows, result.objects_read) == (False, 12, 0)
    assert etag_of(corpus.store, corpus.keys.fused_manifest("concat")) == etag


def test_rows_of_videos_that_are_done_no_more_go_away(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus)
    with corpus.ledger(Stage.VIDEO) as ledger:
        ledger.record([replace(ledger.rows(["v00"])["v00"], status="fail")])

    result = refresh(corpus)

    assert (result.changed, result.rows, result.objects_read) == (True, 11, 0)
    assert list(fused_vectors(corpus)) == IDS[1:]


def test_other_weights_make_all_rows_anew(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus, "weighted")

    result = refresh(open_corpus(tmp_path, fusion_weights="video=3"), "weighted")

    assert (result.reused, result.objects_read) == (0, 36)


def test_another_contract_never_mixes_with_the_old_one(tmp_path):
    embed_all(open_corpus(tmp_path), IDS)
    refresh(open_corpus(tmp_path))
    changed = open_corpus(tmp_path, video={"pooling": "mean"})
    embed(changed, Stage.VIDEO, IDS[:4])

    refresh(changed)

    table = pq.read_table(fused_file(changed, "concat").path)
    assert table["video_id"].to_pylist() == IDS[:4]
    assert set(table["video_contract_id"].to_pylist()) == {changed.contract(Stage.VIDEO).id}


def test_missing_and_wrong_objects_drop_their_row_and_become_work(tmp_path, store, monkeypatch):
    corpus = open_corpus(tmp_path, store)
    made = embed_all(corpus, IDS)
    write_metadata(corpus, IDS)
    corpus.store.delete("clipfarm/embeddings/video/v01.npy")
    corpus.store.put("clipfarm/embeddings/audio/v02.npy", b"cut off")
    corpus.store.put("clipfarm/embeddings/text/v03.npy", to_npy(made[Stage.TEXT]["v04"]))
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(opened(corpus, ledger))
            before = ledger.version()

    result = refresh_fused(corpus, make_strategy("concat", "")).fusion

    assert list(fused_vectors(corpus)) == [i for i in IDS if i not in ("v01", "v02", "v03")]
    found = {(lost.stage, lost.video_id): lost.problem for lost in result.dropped}
    assert "not a readable .npy file of 7 bytes" in found.pop((Stage.AUDIO, "v02"))
    assert found == {
        (Stage.VIDEO, "v01"): "there is no such object",
        (Stage.TEXT, "v03"): "another vector than the one that was recorded",
    }
    with corpus.ledger(Stage.TEXT) as ledger:
        assert ledger.version() != before  # the sensor notices
        row = ledger.rows(["v03"])["v03"]
        assert (row.status, row.vector_source_hash, row.vector_contract_id) == ("success", None, None)
        assert "another vector" in (row.note or "")
    assert _lost_by_the_delta(corpus) == {(lost.stage, lost.video_id) for lost in result.dropped}

    monkeypatch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0.1)
    for stage, lost in ((Stage.VIDEO, "v01"), (Stage.AUDIO, "v02"), (Stage.TEXT, "v03")):
        manifest = corpus.store.get(corpus.keys.manifest(stage)).data
        named = rf"1 {stage} .* such as {lost}"
        with corpus.ledger(stage) as ledger, pytest.raises(ManifestError, match=named):
            refresh_manifest(opened(corpus, ledger))
        assert corpus.store.get(corpus.keys.manifest(stage)).data == manifest


def _lost_by_the_delta(corpus):
    """What the delta calls lost, where metadata and raw objects are as they were when the rows were made."""
    found = set()
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            rows = ledger.columns(["video_id", "metadata_hash", "raw_etag"]).to_pylist()
            keys = [corpus.keys.raw(stage, row["video_id"]) for row in rows]
            listing = pa.table({"key": keys, "etag": [row["raw_etag"] for row in rows]})
            latest = corpus.latest_rows()
            hashed = {row["video_id"]: row["metadata_hash"] for row in rows}
            table = pq.read_table(latest.path)
            index = table.column_names.index(f"{stage}_metadata_hash")
            column = pa.array([hashed[i] for i in table["video_id"].to_pylist()])
            path = latest.path.with_name(f"test-{stage}.parquet")
            pq.write_table(table.set_column(index, f"{stage}_metadata_hash", column), path)
            plan = opened(corpus, ledger).plan_from(replace(latest, path=path), listing)
            assert set(plan.reasons) == {str(Reason.ARTIFACT_LOST)}
            found |= {(stage, row["video_id"]) for row in plan.work.to_pylist()}
    return found


def test_a_vector_that_a_run_is_replacing_is_left_out_but_not_called_lost(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(opened(corpus, ledger))
    remade = embed(corpus, Stage.VIDEO, ["v06"], version="2")  # after the manifest was made

    result = refresh_fused(corpus, make_strategy("concat", "")).fusion

    assert [lost.video_id for lost in result.dropped] == ["v06"]
    with corpus.ledger(Stage.VIDEO) as ledger:
        row = ledger.rows(["v06"])["v06"]
    assert row.vector_contract_id == corpus.contract(Stage.VIDEO).id
    refresh(corpus)
    np.testing.assert_allclose(fused_vectors(corpus)["v06"][:8] * np.sqrt(3), remade["v06"], atol=1e-6)


def test_vectors_that_cancel_each_other_out_have_no_mean(tmp_path):
    corpus = open_corpus(tmp_path, fusion_weights="text=0")
    strategy = Mean(stages=(Stage.VIDEO, Stage.AUDIO))
    embed_all(corpus, IDS)
    made = embed(corpus, Stage.VIDEO, ["v00"])
    with corpus.ledger(Stage.AUDIO) as ledger:
        row = ledger.rows(["v00"])["v00"]
        ledger.record([replace(row, artifact_sha256=None)])
    corpus.store.put(corpus.keys.embedding(Stage.AUDIO, "v00"), to_npy(-made["v00"]))
    refresh(corpus)

    result = refresh_fused(corpus, strategy).fusion

    assert [(lost.stage, lost.video_id, lost.problem) for lost in result.dropped] == [
        (None, "v00", "its vectors cancel each other out")
    ]
    assert list(fused_vectors(corpus, "mean")) == IDS[1:]


def test_mean_of_unequal_dimensions_is_a_clear_error(tmp_path):
    corpus = open_corpus(tmp_path)
    for stage, dimension in zip(Stage, (8, 8, 6), strict=True):
        embed(corpus, stage, IDS, dimension=dimension)

    with pytest.raises(FusionError, match=r"equal dimension.*video 8, audio 8, text 6"):
        refresh(corpus, "mean")
    assert refresh(corpus, "weighted").rows == 12


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_video(tmp_path, count):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS[:count])

    result = refresh(corpus)

    assert result.rows == count
    assert list(fused_vectors(corpus)) == IDS[:count]
    assert not refresh(corpus).changed
    embed_all(corpus, IDS)
    assert refresh(corpus).rows == 12


@pytest.mark.parametrize(
    "text", ["video", "film=1", "audio=much", "text=-1", "text=nan", "video=0,audio=0,text=0"]
)
def test_unusable_weights_are_refused(text):
    with pytest.raises(SettingsError, match="CLIPFARM_FUSION_WEIGHTS"):
        parse_weights(text)


def test_vectors_of_one_modality_are_read_once(tmp_path):
    corpus = open_corpus(tmp_path)
    made = embed(corpus, Stage.AUDIO, IDS)
    first = modality_vectors(corpus, Stage.AUDIO).fusion
    embed(corpus, Stage.AUDIO, ["v99"])
    corpus.store.delete("clipfarm/embeddings/audio/v99.npy")

    again = modality_vectors(corpus, Stage.AUDIO)
    file, second = again.file, again.fusion

    assert (first.objects_read, second.objects_read) == (12, 1)
    assert [lost.video_id for lost in second.dropped] == ["v99"]
    assert count_vectors(file) == (12, 8)
    [(ids, vectors)] = iter_vectors(file)
    np.testing.assert_array_equal(vectors, np.stack([made[i] for i in ids]))


def test_an_object_that_cannot_be_read_is_an_error_and_no_loss(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(opened(corpus, ledger))
    path = tmp_path / "store" / "clipfarm" / "embeddings" / "video" / "v00.npy"
    path.unlink()
    path.symlink_to(path)

    with pytest.raises(StoreError, match="v00"):
        refresh_fused(corpus, make_strategy("concat", ""))
    with corpus.ledger(Stage.VIDEO) as ledger:
        assert ledger.rows(["v00"])["v00"].vector_contract_id is not None


def test_another_time_of_capture_changes_the_row_without_reading_vectors(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus)
    with corpus.ledger(Stage.TEXT) as ledger:
        row = ledger.rows(["v00"])["v00"]
        ledger.record([replace(row, captured_at="2026-03-01T00:00:00.000000Z")])

    result = refresh(corpus)

    assert (result.changed, result.objects_read) == (True, 0)
    table = pq.read_table(fused_file(corpus, "concat").path, columns=["captured_at"])
    assert table["captured_at"][0].as_py().month == 3


def test_strategies_are_named_as_they_are_registered():
    assert [make_strategy(name, "").name for name in STRATEGIES] == list(STRATEGIES)
