"""All pairs of vectors whose cosine is at or above a threshold, exactly, in little memory.

Comparing all vectors with each other takes their number squared times their dimension. So they are compared
by few numbers each first: by their parts along the directions in which most of them lies, and by the length
of what is left over. The product of these is never less than that of the whole vectors (Cauchy-Schwarz), so
that a pair below the threshold needs no second look; the few others are compared in full.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors
from clipfarm_dagster.store.local_copies import LocalFile

if TYPE_CHECKING:
    import numpy as np

Found = Iterator[tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]]

_DIRECTIONS = 48
_FITTED_TO = 4096
_BLOCK = 2048
_PAIRS = 8192
"""Up to so many pairs of two blocks are compared one by one; for more, the blocks as a whole."""
_ROUNDING = 1e-5


def near_pairs(file: LocalFile, threshold: float, ids: list[str]) -> Found:
    """Numbers of first and second, and cosines, of the pairs of a file of vectors, each pair once.

    Args:
        ids: filled with the ids of the file, in the order of the numbers.

    Raises:
        ManifestError: the file cannot be read.
    """
    import numpy as np

    count, dimension = count_vectors(file)
    if not count:
        return
    directions = _directions(file, count)
    short = np.empty((count, directions.shape[1] + 1), np.float32)
    with tempfile.TemporaryFile(dir=file.path.parent) as scratch:
        for some, vectors in iter_vectors(file):
            parts = vectors @ directions
            here = slice(len(ids), len(ids) + len(some))
            short[here, :-1] = parts
            short[here, -1] = np.linalg.norm(vectors - parts @ directions.T, axis=1)
            vectors.tofile(scratch)
            ids += some
        scratch.flush()
        # pages of it are read as they are needed, and given up as memory is
        whole = np.memmap(scratch, np.float32, "r", shape=(count, dimension))
        for first in range(0, count, _BLOCK):
            for second in range(first, count, _BLOCK):
                bounds = short[first : first + _BLOCK] @ short[second : second + _BLOCK].T
                if bounds.max() < threshold - _ROUNDING:
                    continue
                rows, columns = np.nonzero(bounds >= threshold - _ROUNDING)
                if first == second:
                    once = rows < columns
                    rows, columns = rows[once], columns[once]
                yield _near(whole, rows + first, columns + second, threshold)


def _near(
    whole: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any], threshold: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Those of some pairs of two blocks that are at or above the threshold, with their cosines."""
    import numpy as np

    if len(rows) <= _PAIRS:
        scores = np.einsum("ij,ij->i", whole[rows], whole[columns])
    else:
        first, second = rows.min(), columns.min()
        block = whole[first : rows.max() + 1] @ whole[second : columns.max() + 1].T
        scores = block[rows - first, columns - second]
    near = scores >= threshold
    return rows[near], columns[near], scores[near]


def _directions(file: LocalFile, count: int) -> np.ndarray[Any, Any]:
    """The directions in which most of a sample of vectors lies, float32 (dimension, directions)."""
    import numpy as np

    step = max(count // _FITTED_TO, 1)
    sample = np.concatenate([vectors[::step] for _, vectors in iter_vectors(file)]).astype(np.float64)
    _, found = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(found[:, ::-1][:, :_DIRECTIONS], dtype=np.float32)
