"""Files of vectors made to order, as search and comparison read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipfarm_dagster.manifests.vector_table import CHUNK, FUSED_VECTOR_COLUMN
from clipfarm_dagster.store.local_copies import LocalFile


def vector_file(path: Path, vectors: Mapping[str, np.ndarray], dimension: int = 16) -> LocalFile:
    """A file of these vectors, each (dimension,), in this order."""
    numbers = np.stack(list(vectors.values())) if vectors else np.empty((0, dimension))
    values = pa.array(numbers.astype(np.float32).ravel())
    column = pa.FixedSizeListArray.from_arrays(values, numbers.shape[1])
    table = pa.table({"video_id": pa.array(vectors, pa.string()), FUSED_VECTOR_COLUMN: column})
    pq.write_table(table, path, row_group_size=CHUNK)
    return LocalFile(path, path.name, "make it again")
