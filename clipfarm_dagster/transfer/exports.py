"""Vectors of a stage into a file for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import VectorFileError
from clipfarm_dagster.manifests.fusion import Dropped
from clipfarm_dagster.manifests.vector_table import count_vectors
from clipfarm_dagster.manifests.vectors import modality_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.whole_files import written_whole
from clipfarm_dagster.transfer.vector_file import write_npz, write_parquet
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Exported:
    """What was written."""

    vectors: int
    dimension: int
    contract: Contract
    dropped: list[Dropped]
    """Vectors that are missing or wrong, and therefore not in the file."""


def export_vectors(
    corpus: Corpus,
    stage: Stage,
    output: Path,
    *,
    generation: str | None = None,
    allow_partial: bool = False,
) -> Exported:
    """Write all vectors of a modality that are done to `output`, which appears only once it is whole.

    Args:
        generation: contract id of another generation than the one that serves.
        allow_partial: whether that one may lack videos that are served.

    Raises:
        VectorFileError: `output` ends neither in `.parquet` nor in `.npz`, or cannot be written.
        ManifestError: there are none, some are being written or lost, or this machine's file of them is
            damaged.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    writers = {".parquet": write_parquet, ".npz": write_npz}
    if output.suffix not in writers:
        raise VectorFileError(f"{output}: name a file that ends in .parquet or .npz")
    vectors = modality_vectors(corpus, stage, generation=generation, allow_partial=allow_partial)
    count, dimension = count_vectors(vectors.file)
    try:
        with written_whole(output) as part:
            writers[output.suffix](vectors.file, part, vectors.contract)
    except OSError as error:
        raise VectorFileError(f"{output}: cannot be written: {error.strerror or error}") from None
    return Exported(count, dimension, vectors.contract, vectors.fusion.dropped)
