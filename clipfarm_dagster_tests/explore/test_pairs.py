"""Pairs of near vectors, against all products at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfarm_dagster.explore import pairs
from clipfarm_dagster.explore.pairs import near_pairs
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster_tests.support.vector_files import vector_file

Matrix = np.ndarray[Any, Any]


def file_of(path: Path, vectors: Matrix) -> LocalFile:
    names = [f"v{number:04d}" for number in range(len(vectors))]
    return vector_file(path, dict(zip(names, vectors, strict=True)), dimension=vectors.shape[1])


def clustered(dimension: int, spread: float, count: int = 300) -> Matrix:
    """Unit vectors that lie around ten others."""
    random = np.random.default_rng(dimension)
    vectors: Matrix = random.standard_normal((10, dimension))[np.arange(count) % 10]
    vectors = vectors + spread * random.standard_normal((count, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


@pytest.mark.parametrize("block", [64, 10_000])
@pytest.mark.parametrize("one_by_one", [0, 10_000])
@pytest.mark.parametrize(
    ("dimension", "spread", "threshold"),
    [(8, 0.1, 0.98), (96, 0.1, 0.98), (96, 0.5, 0.8), (96, 0.1, -1.0), (96, 0.0, 1.0 - 1e-6)],
)
def test_it_finds_each_pair_above_the_threshold_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    one_by_one: int,
    dimension: int,
    spread: float,
    threshold: float,
):
    monkeypatch.setattr(pairs, "_BLOCK", block)
    monkeypatch.setattr(pairs, "_PAIRS", one_by_one)
    vectors = clustered(dimension, spread)
    scores = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    above = np.triu(scores >= threshold + 1e-6, 1)
    below = np.triu(scores < threshold - 1e-6, 1)
    assert above.any()
    ids: list[str] = []

    found = list(near_pairs(file_of(tmp_path / "vectors.parquet", vectors), threshold, ids))

    assert ids == [f"v{number:04d}" for number in range(300)]
    firsts, seconds, cosines = (np.concatenate(column) for column in zip(*found, strict=True))
    assert (firsts < seconds).all()
    assert len(set(zip(firsts.tolist(), seconds.tolist(), strict=True))) == len(firsts)
    assert np.abs(cosines - scores[firsts, seconds]).max() < 1e-5
    missed = above.copy()
    missed[firsts, seconds] = False
    assert not missed.any()
    assert not below[firsts, seconds].any()


def test_few_pairs_are_compared_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compared = 0
    near = pairs._near

    def counted(whole: Matrix, rows: Matrix, columns: Matrix, threshold: float) -> Any:
        nonlocal compared
        compared += len(rows)
        return near(whole, rows, columns, threshold)

    monkeypatch.setattr(pairs, "_near", counted)
    random = np.random.default_rng(0)
    scales = np.arange(1, 257) ** -0.5  # as of a model: much in few directions
    vectors = random.standard_normal((2000, 256)) * scales
    vectors[::100] = vectors[1::100] + 1e-3
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    found = list(near_pairs(file_of(tmp_path / "vectors.parquet", vectors), 0.98, []))

    assert sum(len(firsts) for firsts, _, _ in found) == 20
    assert compared < 100


def test_of_no_vectors_there_are_no_pairs(tmp_path: Path):
    empty = np.empty((0, 8), np.float32)

    assert list(near_pairs(file_of(tmp_path / "vectors.parquet", empty), 0.5, [])) == []
