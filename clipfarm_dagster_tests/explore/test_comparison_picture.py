"""The picture of two sets of vectors side by side."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipfarm_dagster.explore.comparison import compare
from clipfarm_dagster.explore.comparison_picture import SideBySide, comparison_picture, project_both
from clipfarm_dagster.explore.pictures import GROUPS
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster.vectors.npy import l2_normalise
from clipfarm_dagster_tests.support.vector_files import vector_file

IDS = [f"v{number:04d}" for number in range(400)]


def files(tmp_path: Path, count: int) -> tuple[LocalFile, LocalFile]:
    """Two sets, of which the new one has another dimension and lacks some, and whose space is turned."""
    rng = np.random.default_rng(1)
    old = l2_normalise(rng.standard_normal((400, 12)) * np.linspace(3, 1, 12))
    turn, _ = np.linalg.qr(rng.standard_normal((20, 12)))
    new = l2_normalise(old @ turn.T)
    kept = dict(zip(IDS[:count], new[:count], strict=True))
    return (
        vector_file(tmp_path / "old.parquet", dict(zip(IDS, old, strict=True))),
        vector_file(tmp_path / "new.parquet", kept, dimension=20),
    )


def picture(tmp_path: Path, count: int, groups: tuple[str, ...] = ()) -> Image.Image:
    old, new = files(tmp_path, count)
    both = project_both(old, new)
    named = [groups[int(video_id[1:]) % len(groups)] for video_id in both.video_ids] if groups else []
    png = comparison_picture(compare(old, new), both, named)
    assert len(png) < 150_000
    return Image.open(io.BytesIO(png)).convert("RGBA")


def count_near(image: Image.Image, colour: str, columns: slice) -> int:
    """Pixels of about a colour in some columns of the picture."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    pixels = np.asarray(image).astype(int)[:460, columns]
    near = (np.abs(pixels[..., :3] - wanted).max(axis=-1) < 24) & (pixels[..., 3] > 100)
    return int(near.sum())


def test_a_turned_space_lies_where_it_lay(tmp_path: Path) -> None:
    both = project_both(*files(tmp_path, 380))
    assert sorted(both.video_ids) == IDS[:380]
    np.testing.assert_allclose(both.new, both.old, atol=1e-4)
    assert np.ptp(both.old, axis=0).min() > 0.5


def test_of_many_some_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    old, new = files(tmp_path, 380)
    some = project_both(old, new, at_most=50)
    assert len(some.video_ids) == len(some.old) == len(some.new) == 50
    assert set(some.video_ids) < set(IDS[:380])
    again = project_both(old, new, at_most=50)
    assert again.video_ids == some.video_ids
    assert np.array_equal(again.new, some.new)


@pytest.mark.parametrize("count", [0, 1, 2, 400])
def test_is_of_one_size_and_clear_behind(tmp_path: Path, count: int) -> None:
    image = picture(tmp_path, count)
    assert image.size == (1200, 560)
    assert np.mean(np.asarray(image)[..., 3] == 0) > 0.5


def test_groups_have_the_same_colours_on_both_sides(tmp_path: Path) -> None:
    image = picture(tmp_path, 400, ("cats", "dogs $x_1$"))
    for colour in GROUPS[:2]:
        left, right = (count_near(image, colour, columns) for columns in (slice(0, 400), slice(430, 820)))
        assert left > 300
        assert right == pytest.approx(left, rel=0.2)


def test_nothing_shared_leaves_nothing_to_project(tmp_path: Path) -> None:
    both = project_both(*files(tmp_path, 0))
    assert isinstance(both, SideBySide)
    assert both.video_ids == []
    assert both.old.shape == both.new.shape == (0, 2)
