"""Search and duplicates, exact and by index."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from clipfarm_dagster.errors import ManifestError, VideoNotFoundError
from clipfarm_dagster.explore import search
from clipfarm_dagster.explore.search import near_duplicates, nearest, vector_of
from clipfarm_dagster.manifests.refresh import fused_file, refresh_manifest
from clipfarm_dagster.manifests.vectors import modality_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.manifests.test_fusion import refresh
from clipfarm_dagster_tests.support.corpora import embed, embed_all, move_aside, open_corpus

IDS = [f"v{number:03d}" for number in range(300)]


@pytest.fixture(params=["exact", "index"])
def vectors(tmp_path, request, monkeypatch):
    """A file of 300 vectors, and the vectors by id."""
    if request.param == "index":
        monkeypatch.setattr(search, "INDEX_FROM", 100)
    corpus = open_corpus(tmp_path)
    made = embed(corpus, Stage.TEXT, IDS, dimension=32)
    file = modality_vectors(corpus, Stage.TEXT).file
    return file, made


def test_the_nearest_come_first_with_their_cosine(vectors):
    file, made = vectors
    query = made["v007"]

    found = nearest(file, query, 5)

    scores = {video_id: float(vector @ query) for video_id, vector in made.items()}
    best = sorted(scores, key=lambda video_id: -scores[video_id])[:5]
    assert [match.video_id for match in found] == best
    assert [match.score for match in found] == pytest.approx([scores[i] for i in best], abs=2e-3)
    assert found[0].video_id == "v007"


def test_the_video_that_is_asked_with_is_left_out(vectors):
    file, made = vectors

    found = nearest(file, vector_of(file, "v007"), 5, without="v007")

    assert len(found) == 5
    assert "v007" not in {match.video_id for match in found}
    assert found == nearest(file, made["v007"], 6)[1:]


def test_whoever_writes_a_vector_over_and_is_killed_keeps_nobody_from_searching(tmp_path, monkeypatch):
    monkeypatch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0.1)
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.TEXT, IDS[:9], dimension=32)
    with corpus.stage(Stage.TEXT) as opened:
        refresh_manifest(opened)
    before = search.search(corpus, like="v001", top=8)
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.mark_overwriting(["v001", "v005"])

    assert search.search(corpus, like="v001", top=8) == before

    corpus.store.delete(corpus.keys.embedding(Stage.TEXT, "v005"))
    shutil.rmtree(corpus.settings.home_files.vectors(Stage.TEXT, corpus.contract(Stage.TEXT).id).parent)
    found = modality_vectors(corpus, Stage.TEXT)
    assert [dropped.video_id for dropped in found.fusion.dropped] == ["v005"]
    assert found.fusion.rows == 8


def test_top_may_exceed_what_there_is(vectors):
    file, made = vectors

    assert len(nearest(file, made["v000"], 1000)) == 300


def test_duplicates_are_the_pairs_above_the_threshold(vectors):
    file, made = vectors
    matrix = np.stack([made[i] for i in IDS])
    scores = np.triu(matrix @ matrix.T, 1)
    expected = {(IDS[i], IDS[j]) for i, j in zip(*np.nonzero(scores >= 0.6), strict=True)}
    assert len(expected) > 3

    pairs, count = near_duplicates(file, 0.6, limit=1000)

    close = {(IDS[i], IDS[j]) for i, j in zip(*np.nonzero(np.abs(scores - 0.6) < 2e-3), strict=True)}
    assert {(pair.first, pair.second) for pair in pairs} ^ expected <= close  # the index rounds
    assert count == len(pairs)
    assert [pair.score for pair in pairs] == sorted((pair.score for pair in pairs), reverse=True)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_low_threshold_pairs_each_video_once_with_each_other(vectors, threshold):
    file, made = vectors
    matrix = np.stack([made[i] for i in IDS])
    scores = (matrix @ matrix.T)[np.triu_indices(len(IDS), 1)]

    pairs, count = near_duplicates(file, threshold, limit=10**6, exact=True)

    found = [(pair.first, pair.second) for pair in pairs]
    assert all(first < second for first, second in found)
    assert count == len(set(found)) == len(found) == (scores >= threshold).sum()


def test_only_the_nearest_pairs_are_listed_but_all_counted(vectors):
    file, _ = vectors
    pairs, count = near_duplicates(file, 0.3, limit=3)
    every, _ = near_duplicates(file, 0.3, limit=10**6)

    assert len(pairs) == 3
    assert count == len(every) > 3
    assert pairs == every[:3]


def test_an_index_is_built_anew_when_vectors_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "INDEX_FROM", 100)
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.TEXT, IDS, dimension=32)
    file = modality_vectors(corpus, Stage.TEXT).file
    nearest(file, vector_of(file, "v000"), 3)
    [first] = (file.path.parent / "indexes").iterdir()
    made = embed(corpus, Stage.TEXT, ["a-new-one"], dimension=32)
    file = modality_vectors(corpus, Stage.TEXT).file

    found = nearest(file, made["a-new-one"], 3)

    assert found[0].video_id == "a-new-one"
    [second] = (file.path.parent / "indexes").iterdir()
    assert second != first
    assert nearest(file, made["a-new-one"], 3) == found  # from the file
    exact = nearest(file, made["a-new-one"], 3, exact=True)
    assert [match.video_id for match in exact] == [match.video_id for match in found]


def test_an_index_stays_where_vectors_only_moved_to_other_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "INDEX_FROM", 100)
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS, dimension=32)
    refresh(corpus)
    files = [modality_vectors(corpus, Stage.TEXT).file, fused_file(corpus, "concat")]
    found = [nearest(file, vector_of(file, "v007"), 3) for file in files]
    indexes = sorted((files[0].path.parent / "indexes").iterdir())
    move_aside(corpus)
    refresh(corpus)

    moved = [modality_vectors(corpus, Stage.TEXT).file, fused_file(corpus, "concat")]

    assert [nearest(file, vector_of(file, "v007"), 3) for file in moved] == found
    assert sorted((files[0].path.parent / "indexes").iterdir()) == indexes
    assert len(indexes) == 2


def test_an_index_of_a_vector_whose_hash_is_not_known_stays_only_with_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "INDEX_FROM", 100)
    corpus = open_corpus(tmp_path)
    embed(corpus, Stage.TEXT, IDS, dimension=32)
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([replace(ledger.rows(["v003"])["v003"], artifact_sha256=None)])
    file = modality_vectors(corpus, Stage.TEXT).file
    nearest(file, vector_of(file, "v003"), 3)
    made = embed(corpus, Stage.TEXT, ["v003"], version="2", dimension=32)
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([replace(ledger.rows(["v003"])["v003"], artifact_sha256=None)])
    file = modality_vectors(corpus, Stage.TEXT).file

    assert nearest(file, made["v003"], 1)[0].score == pytest.approx(1, abs=2e-3)
    assert len(list((file.path.parent / "indexes").iterdir())) == 1


def test_nothing_is_found_among_nothing(tmp_path):
    with pytest.raises(ManifestError, match=r"there are no text vectors of contract .*clipfarm sync"):
        modality_vectors(open_corpus(tmp_path), Stage.TEXT)


def test_a_video_without_a_vector_is_named(vectors):
    with pytest.raises(VideoNotFoundError, match="'nobody'"):
        vector_of(vectors[0], "nobody")


def test_a_query_of_another_dimension_is_refused(vectors):
    with pytest.raises(ManifestError, match=r"query has 8 numbers.*text.* 32.*`clipfarm verify --repair`"):
        nearest(vectors[0], np.ones(8, dtype=np.float32), 1)
