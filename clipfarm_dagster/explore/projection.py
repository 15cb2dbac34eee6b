"""A plane through vectors, on which a person sees which are near to each other: principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.manifests.manifest import Manifest
from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster.vectors.npy import VectorProblem
from clipfarm_dagster.vectors.stored import checked_vector

if TYPE_CHECKING:
    import numpy as np

SAMPLE = 4096
"""Vectors that the plane is fitted to, and that a picture of one modality reads."""


@dataclass(frozen=True)
class Plane:
    """The two directions in which vectors differ most."""

    mean: np.ndarray[Any, Any]
    directions: np.ndarray[Any, Any]
    """float32 (dimension, 2); a direction in which nothing differs is zero."""

    @classmethod
    def fit(cls, vectors: np.ndarray[Any, Any]) -> Plane:
        """The first two principal components of `vectors`, float32 (videos, dimension).

        Each points to the side of its largest number, so that equal vectors give equal pictures.
        """
        import numpy as np

        mean = vectors.mean(axis=0)
        centred = vectors - mean
        # the smaller of the two Gram matrices has the same non-zero eigenvalues
        wide = len(centred) < centred.shape[1]
        gram = (centred @ centred.T if wide else centred.T @ centred).astype(np.float64)
        values, found = np.linalg.eigh(gram)
        directions = np.zeros((vectors.shape[1], 2))
        for column, number in enumerate(np.argsort(-values)[:2]):
            if values[number] <= 1e-9 * max(len(vectors), 1):
                continue
            direction = centred.T @ found[:, number] if wide else found[:, number]
            direction = direction / np.linalg.norm(direction)
            directions[:, column] = direction * np.sign(direction[np.abs(direction).argmax()])
        return cls(mean, directions.astype(np.float32))

    def project(self, vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Places on the plane, float32 (videos, 2)."""
        places: np.ndarray[Any, Any] = (vectors - self.mean) @ self.directions
        return places


@dataclass(frozen=True)
class Places:
    """Vectors on a plane."""

    video_ids: list[str]
    points: np.ndarray[Any, Any]
    """float32 (videos, 2)"""
    norms: np.ndarray[Any, Any]
    """L2 norms, float64 (videos,)"""


def project_file(file: LocalFile) -> Places:
    """All vectors of a file of vectors (`fusion.iter_vectors`).

    Raises:
        ManifestError: the file cannot be read.
    """
    import numpy as np

    count, _ = count_vectors(file)
    if not count:
        return Places([], np.empty((0, 2), dtype=np.float32), np.empty(0))
    step = max(count // SAMPLE, 1)
    # a regular sample; ids do not tell what a video is about
    plane = Plane.fit(np.concatenate([vectors[::step] for _, vectors in iter_vectors(file)]))
    parts = [(ids, plane.project(vectors), _norms(vectors)) for ids, vectors in iter_vectors(file)]
    return Places(
        [video_id for ids, _, _ in parts for video_id in ids],
        np.concatenate([points for _, points, _ in parts]),
        np.concatenate([norms for _, _, norms in parts]),
    )


def project_sample(corpus: Corpus, manifest: Manifest) -> Places:
    """At most `SAMPLE` vectors of a modality, read from the store; missing and wrong ones are left out."""
    import numpy as np

    step = -(-manifest.table.num_rows // SAMPLE)
    rows = manifest.table.select(["video_id", "embedding_key", "artifact_sha256"])
    sample = rows.take(list(range(0, rows.num_rows, step))).to_pylist() if rows.num_rows else []
    ids, vectors = [], []
    for row, (_, answer) in zip(
        sample, corpus.store.get_many([row["embedding_key"] for row in sample]), strict=True
    ):
        try:
            vectors.append(checked_vector(answer, manifest.dimension or 0, row["artifact_sha256"]))
        except VectorProblem:
            continue  # fusing reads every vector, and names these
        ids.append(row["video_id"])
    if not vectors:
        return Places([], np.empty((0, 2), dtype=np.float32), np.empty(0))
    matrix = np.stack(vectors)
    return Places(ids, Plane.fit(matrix).project(matrix), _norms(matrix))


def _norms(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    norms: np.ndarray[Any, Any] = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return norms
