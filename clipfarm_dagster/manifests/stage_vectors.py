"""A stage's vectors that are done, in memory, each checked against what its ledger recorded of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import VectorFileError, VideoNotFoundError
from clipfarm_dagster.manifests.manifest import LEDGER_COLUMNS_READ, REPLACE_WRONG, Manifest, build_manifest
from clipfarm_dagster.manifests.refresh import current_manifest
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import VectorProblem
from clipfarm_dagster.vectors.stored import checked_vector

if TYPE_CHECKING:
    import numpy as np

_NAMED = 3


@dataclass(frozen=True)
class StageVectors:
    """Vectors of one stage and one contract, with their ids."""

    video_ids: list[str]
    """Sorted."""
    vectors: np.ndarray[Any, Any]
    """Float32 (n, dimension), a row of unit length for each of `video_ids`; (0, 0) where there is none."""


def read_vectors(corpus: Corpus, stage: Stage, video_ids: Collection[str] | None = None) -> StageVectors:
    """The vectors of a stage that are done under its present contract; of some videos, or of all.

    Videos that have no such vector are left out.

    Raises:
        VectorFileError: a vector that the ledger claims is missing in the store, or is another one.
        ManifestError: the vectors differ in their dimension.
        StoreError: the store cannot be read.
        LedgerError: the ledger cannot be read.
    """
    import numpy as np

    found, wrong = _read(corpus, _manifest(corpus, stage, video_ids))
    if wrong:  # a run may have overwritten them since the ledger was read
        again, wrong = _read(corpus, _manifest(corpus, stage, wrong))
        found |= again
    if wrong:
        some = "; ".join(f"video {video_id!r}: {wrong[video_id]}" for video_id in sorted(wrong)[:_NAMED])
        raise VectorFileError(f"{len(wrong)} {stage} vectors are not those recorded: {some}. {REPLACE_WRONG}")
    ids = sorted(found)
    dimension = found[ids[0]].size if ids else 0
    vectors = np.empty((len(ids), dimension), dtype=np.float32)
    for row, video_id in enumerate(ids):
        vectors[row] = found.pop(video_id)
    return StageVectors(ids, vectors)


def read_vector(corpus: Corpus, stage: Stage, video_id: str) -> np.ndarray[Any, Any]:
    """The vector of one video, float32 (dimension,).

    Raises:
        VideoNotFoundError: it has none under the present contract.
        VectorFileError: the vector that the ledger claims is missing in the store, or is another one.
        StoreError: the store cannot be read.
        LedgerError: the ledger cannot be read.
    """
    found = read_vectors(corpus, stage, [video_id])
    if not found.video_ids:
        raise VideoNotFoundError(
            f"video {video_id!r} has no {stage} vector under the present contract; `clipfarm plan --explain"
            f" {video_id}` says why"
        )
    vector: np.ndarray[Any, Any] = found.vectors[0]
    return vector


def _manifest(corpus: Corpus, stage: Stage, video_ids: Collection[str] | None) -> Manifest:
    import pyarrow as pa

    with corpus.stage(stage) as opened:
        if video_ids is None:
            return current_manifest(opened)
        rows = opened.ledger.rows(video_ids).values()
        kinds = {name: pa.string() for name in LEDGER_COLUMNS_READ} | {"embedding_dim": pa.int64()}
        table = pa.Table.from_pylist([asdict(row) for row in rows], pa.schema(list(kinds.items())))
        return build_manifest(opened.contract, table, corpus.keys)


def _read(corpus: Corpus, manifest: Manifest) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Vectors by video, and what is wrong with those that are not as recorded."""
    table, dimension = manifest.table, manifest.dimension or 0
    columns = (table[name].to_pylist() for name in ("video_id", "embedding_key", "artifact_sha256"))
    found: dict[str, np.ndarray[Any, Any]] = {}
    wrong: dict[str, str] = {}
    answers = corpus.store.get_many(table["embedding_key"].to_pylist())
    for video_id, key, sha256, (_, answer) in zip(*columns, answers, strict=True):
        try:
            found[video_id] = checked_vector(answer, dimension, sha256)
        except VectorProblem as problem:
            wrong[video_id] = f"{key}: {problem}"
    return found, wrong
