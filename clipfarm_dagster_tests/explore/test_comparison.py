"""Comparing two sets of vectors whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from clipfarm_dagster.errors import ManifestError
from clipfarm_dagster.explore.comparison import (
    NEIGHBOURS,
    QUANTILES,
    SAMPLE,
    Comparison,
    VectorSet,
    compare,
    draw,
)
from clipfarm_dagster.vectors.npy import l2_normalise
from clipfarm_dagster_tests.support.vector_files import vector_file

IDS = [f"v{number:04d}" for number in range(1500)]
"""More than a row group."""


def random_vectors(seed: int, video_ids: list[str] = IDS, dimension: int = 16) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(seed).standard_normal((len(video_ids), dimension))
    return dict(zip(video_ids, l2_normalise(numbers), strict=True))


def compared(
    tmp_path: Path, old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray], **options: int
) -> Comparison:
    return compare(
        vector_file(tmp_path / "old.parquet", old), vector_file(tmp_path / "new.parquet", new), **options
    )


def brute_force(vectors: Mapping[str, np.ndarray], video_id: str, among: set[str], count: int) -> set[str]:
    scores = {other: float(vectors[video_id] @ vectors[other]) for other in among - {video_id}}
    return set(sorted(scores, key=lambda other: -scores[other])[:count])


class TestOverlap:
    def test_the_same_vectors_in_another_order_agree_wholly(self, tmp_path: Path) -> None:
        vectors = random_vectors(1)
        for number in range(0, 400, 2):  # equal vectors, whose order could be anything
            vectors[IDS[number + 1]] = vectors[IDS[number]]
        shuffled = {i: vectors[i] for i in np.random.default_rng(2).permutation(IDS).tolist()}
        result = compared(tmp_path, vectors, shuffled)
        assert set(result.overlap.shares.values()) == {1.0}
        assert len(result.overlap.shares) == SAMPLE
        assert result.overlap.mean == 1.0
        assert result.overlap.quantiles == dict.fromkeys(QUANTILES, 1.0)
        assert (result.shared, result.coverage) == (len(IDS), 1.0)
        for example in result.examples:
            assert example.old == example.new

    def test_a_turned_space_agrees_wholly_whatever_its_dimension(self, tmp_path: Path) -> None:
        old = random_vectors(1)
        turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((24, 16)))
        new = {video_id: (turn @ vector).astype(np.float32) for video_id, vector in old.items()}
        result = compared(tmp_path, old, new)
        assert result.overlap.mean == pytest.approx(1, abs=0.005)  # rounding may swap the last neighbours
        assert (result.old.dimension, result.new.dimension) == (16, 24)

    def test_unrelated_vectors_agree_by_chance_alone(self, tmp_path: Path) -> None:
        result = compared(tmp_path, random_vectors(1), random_vectors(2))
        assert result.overlap.mean == pytest.approx(NEIGHBOURS / len(IDS), abs=0.006)
        assert result.overlap.quantiles[0.5] == 0

    def test_is_that_of_a_search_through_all_shared_videos(self, tmp_path: Path) -> None:
        old = random_vectors(1, IDS[:900])
        noise = random_vectors(2)
        new = {i: l2_normalise((noise[i] + 1.5 * old.get(i, 0))[None])[0] for i in IDS[300:]}
        result = compared(tmp_path, old, new)
        shared = set(IDS[300:900])
        assert result.shared == 600
        assert result.coverage == pytest.approx(600 / 900)
        assert list(result.overlap.shares) == draw(shared, SAMPLE)
        for video_id, share in result.overlap.shares.items():
            before = brute_force(old, video_id, shared, NEIGHBOURS)
            after = brute_force(new, video_id, shared, NEIGHBOURS)
            assert share == len(before & after) / NEIGHBOURS
        assert 0.1 < (result.overlap.mean or 0) < 0.9
        values = list(result.overlap.shares.values())
        assert result.overlap.quantiles[0.9] == pytest.approx(np.quantile(values, 0.9))

    @pytest.mark.parametrize("count", [0, 1, 2, 5])
    def test_few_shared_videos(self, tmp_path: Path, count: int) -> None:
        vectors = random_vectors(1, IDS[:count])
        result = compared(tmp_path, {**vectors, "only-old": random_vectors(5)[IDS[0]]}, vectors)
        assert result.shared == count
        assert result.coverage == count / (count + 1)
        assert result.overlap.mean == (1.0 if count > 1 else None)
        assert len(result.examples) == (count if count > 1 else 0)

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        result = compared(tmp_path, {}, {})
        assert result.old == result.new == VectorSet(0, 16, None, None)
        assert (result.shared, result.coverage, result.overlap.mean) == (0, 1.0, None)


class TestExamples:
    def test_those_that_differ_most_come_first_with_their_neighbours(self, tmp_path: Path) -> None:
        old = random_vectors(1, IDS[:300])
        new = dict(old)
        moved = draw(IDS[:300], 3)
        for video_id in moved:
            new[video_id] = -old[video_id]
        result = compared(tmp_path, old, new)
        assert {example.video_id for example in result.examples[:3]} == set(moved)
        assert [example.share for example in result.examples[:3]] == [0, 0, 0]
        assert len(result.examples) == 5
        assert all(example.share >= 0.7 for example in result.examples[3:])
        for example in result.examples:
            for matches, vectors in ((example.old, old), (example.new, new)):
                names = [match.video_id for match in matches]
                assert set(names) == brute_force(vectors, example.video_id, set(IDS[:300]), 5)
                scores = [float(vectors[example.video_id] @ vectors[name]) for name in names]
                assert [match.score for match in matches] == pytest.approx(scores, abs=2e-6)
                assert scores == sorted(scores, reverse=True)


class TestDuplicates:
    def test_kept_lost_and_gained_pairs(self, tmp_path: Path) -> None:
        old, new = random_vectors(1, dimension=32), random_vectors(2, dimension=32)
        old["v0002"] = old["v0001"]
        new["v0002"] = new["v0001"]
        old["v0012"] = old["v0011"]
        new["v0022"] = new["v0021"]
        old["only-old"] = old["v0031"]
        result = compared(tmp_path, old, new).duplicates
        assert (result.kept, result.lost, result.gained, result.complete) == (1, 1, 1, True)
        [lost], [gained] = result.best_lost, result.best_gained
        assert (lost.first, lost.second) == ("v0011", "v0012")
        assert lost.old_score == pytest.approx(1, abs=1e-5)
        assert lost.new_score == pytest.approx(float(new["v0011"] @ new["v0012"]), abs=1e-5)
        assert (gained.first, gained.second) == ("v0021", "v0022")
        assert gained.old_score == pytest.approx(float(old["v0021"] @ old["v0022"]), abs=1e-5)
        assert gained.new_score == pytest.approx(1, abs=1e-5)

    def test_the_nearest_are_named_and_all_counted(self, tmp_path: Path) -> None:
        old = random_vectors(1, dimension=32)
        for number in range(0, 20, 2):
            old[IDS[number + 1]] = old[IDS[number]]
        result = compared(tmp_path, old, random_vectors(2, dimension=32)).duplicates
        assert (result.kept, result.lost, result.gained) == (0, 10, 0)
        assert len(result.best_lost) == 5


def test_norms_are_those_of_the_vectors(tmp_path: Path) -> None:
    old, new = random_vectors(1), random_vectors(2)
    new[IDS[3]] = new[IDS[3]] * 1.5
    new[IDS[1400]] = new[IDS[1400]] * 0.5
    result = compared(tmp_path, old, new)
    assert result.new.count == len(IDS)
    assert result.new.min_norm == pytest.approx(0.5, abs=1e-6)
    assert result.new.max_norm == pytest.approx(1.5, abs=1e-6)
    assert result.old.min_norm == pytest.approx(1, abs=1e-6)
    assert result.old.max_norm == pytest.approx(1, abs=1e-6)


def test_the_sample_is_the_same_each_time_and_no_alphabetic_part() -> None:
    drawn = draw(IDS, 200)
    assert drawn == draw(list(reversed(IDS)), 200) == draw(set(IDS), 200)
    assert len(set(drawn)) == 200
    assert 0.35 < np.mean([video_id < IDS[750] for video_id in drawn]) < 0.65
    assert draw(IDS[:3], 200) != []
    assert set(draw(IDS[:3], 200)) == set(IDS[:3])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    good = vector_file(tmp_path / "good.parquet", random_vectors(1))
    bad = vector_file(tmp_path / "bad.parquet", random_vectors(1))
    bad.path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ManifestError, match=r"bad\.parquet cannot be read"):
        compare(good, bad)
