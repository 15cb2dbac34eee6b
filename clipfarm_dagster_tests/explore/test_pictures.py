"""Planes through vectors, and the picture of a manifest at every size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from clipfarm_dagster.explore.overviews import fused_overview, manifest_overview
from clipfarm_dagster.explore.pictures import Overview, overview_picture
from clipfarm_dagster.explore.projection import Plane
from clipfarm_dagster.manifests.refresh import refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.corpora import embed, embed_all, open_corpus, write_metadata
from clipfarm_dagster_tests.support.stages import opened

IDS = [f"v{number:02d}" for number in range(12)]


@pytest.mark.parametrize("shape", [(200, 8), (8, 200)])
def test_the_plane_is_that_of_the_singular_value_decomposition(shape):
    vectors = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    places = Plane.fit(vectors).project(vectors)

    centred = vectors - vectors.mean(axis=0)
    _, values, _ = np.linalg.svd(centred.astype(np.float64))
    np.testing.assert_allclose(np.linalg.norm(places, axis=0), values[:2], rtol=1e-4)
    assert abs(places[:, 0] @ places[:, 1]) < 1e-2


def test_equal_vectors_lie_on_one_point_and_two_on_a_line():
    one = np.ones((5, 4), dtype=np.float32)
    assert np.allclose(Plane.fit(one).project(one), 0)

    two = np.eye(4, dtype=np.float32)[:2]
    places = Plane.fit(two).project(two)
    np.testing.assert_allclose(np.abs(places[:, 0]), np.sqrt(0.5), atol=1e-6)
    np.testing.assert_allclose(places[:, 1], 0, atol=1e-6)


def _picture(count, total=None, groups=("cats", "dogs")):
    rng = np.random.default_rng(0)
    total = count if total is None else total
    overview = Overview(
        title="video",
        places=rng.standard_normal((count, 2)).astype(np.float32),
        groups=[groups[number % len(groups)] for number in range(count)] if groups else [],
        total=total,
        coverage={"video": {"success": total, "fail": total // 10, "something else": total // 20}},
        norms=1 + rng.standard_normal(count) * 3e-8,
        processed_at=1.79e9 + np.sort(rng.uniform(0, 0.7 * total, total)),
    )
    png = overview_picture(overview)
    return png, Image.open(io.BytesIO(png)).convert("RGBA")


@pytest.mark.parametrize("count", [0, 1, 12, 100_000])
def test_a_picture_is_of_one_size_small_and_clear_behind(count):
    png, image = _picture(count)

    assert image.size == (1000, 620)
    assert len(png) < 100_000
    corners = [image.getpixel(place)[3] for place in ((999, 0), (999, 619))]
    assert corners == [0, 0]
    left = np.asarray(image)[30:500, :560]
    drawn = (left[..., 3] > 128).sum()
    assert drawn > (20 if count else 5)


def test_groups_have_colours_of_their_own():
    _, image = _picture(12)
    pixels = np.asarray(image)[30:500, :560]
    colours = {tuple(pixel) for pixel in pixels[pixels[..., 3] > 200][:, :3].tolist()}

    def near(colour):
        return any(np.abs(np.subtract(colour, other)).max() < 25 for other in colours)

    assert near((0x3B, 0x82, 0xC4))
    assert near((0xE0, 0x7B, 0x39))
    assert not near((0x8A, 0x63, 0xC9))


def test_texts_that_look_like_formulas_are_drawn_as_they_are():
    png, _ = _picture(12, groups=("$\\frac{", "a_b^c $", "", "日本", "x" * 500))

    assert png.startswith(b"\x89PNG")


def test_the_overview_of_a_modality_counts_what_is_done_and_what_is_not(tmp_path):
    corpus = open_corpus(tmp_path)
    write_metadata(corpus, IDS)
    embed(corpus, Stage.VIDEO, IDS[:7])
    corpus.store.delete(corpus.keys.embedding(Stage.VIDEO, "v00"))
    with corpus.ledger(Stage.VIDEO) as ledger:
        manifest = refresh_manifest(opened(corpus, ledger)).manifest

        overview = manifest_overview(corpus, ledger, manifest)

    assert overview.coverage == {"video": {"success": 7, "not yet": 5}}
    assert (overview.total, len(overview.places)) == (7, 6)
    assert overview.groups == [f"query {n % 3}" for n in range(1, 7)]
    assert len(overview.processed_at) == 7


def test_the_overview_of_fused_vectors_counts_each_modality(tmp_path):
    corpus = open_corpus(tmp_path)
    write_metadata(corpus, IDS)
    embed_all(corpus, IDS[:6])
    embed(corpus, Stage.TEXT, IDS)
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(opened(corpus, ledger))
    refreshed = refresh_fused(corpus, make_strategy("concat", ""))

    overview = fused_overview(corpus, "concat", refreshed)

    assert overview.coverage["text"] == {"success": 12, "not yet": 0}
    assert overview.coverage["concat"] == {"success": 6, "not yet": 6}
    assert len(overview.places) == overview.total == 6
    np.testing.assert_allclose(overview.norms, 1, atol=1e-6)
