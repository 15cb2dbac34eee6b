"""Which videos are nearest to one, by the vectors in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.embedding.vectors import from_npy
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.store import StoredObject

if TYPE_CHECKING:
    import numpy as np


def load_vectors(corpus: Corpus, ledger: Ledger) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Ids and vectors, float32 (videos, dimension), of a stage's successes, in the order of the ids.

    Vectors that are lost are left out; `clipfarm verify` names them.

    Raises:
        VectorProblem: an object is no vector.
        StoreError: the store cannot be read.
    """
    import numpy as np

    rows = ledger.columns(["video_id", "status"]).to_pylist()
    ids = sorted(row["video_id"] for row in rows if row["status"] == Status.SUCCESS)
    keys = {corpus.keys.embedding(ledger.stage, video_id): video_id for video_id in ids}
    found = [
        (keys[key], from_npy(answer.data))
        for key, answer in corpus.store.get_many(list(keys))
        if isinstance(answer, StoredObject)
    ]
    if not found:
        return [], np.empty((0, 0), dtype=np.float32)
    return [video_id for video_id, _ in found], np.stack([vector for _, vector in found])


def nearest(
    ids: Sequence[str], vectors: np.ndarray[Any, Any], query: np.ndarray[Any, Any], top: int
) -> list[tuple[str, float]]:
    """The `top` ids whose unit vectors have the largest cosine with the unit vector `query`, best first."""
    import numpy as np

    scores = vectors @ query
    best = np.argsort(-scores, kind="stable")[:top]
    return [(ids[i], float(scores[i])) for i in best]
