"""Files of vectors with their ids, as other tools write and read them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.errors import VectorFileError
from clipfarm_dagster.manifests.manifest import CONTRACT
from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import numpy as np


ID_COLUMN = "video_id"

EMBEDDING_COLUMN = "embedding"

BATCH = 500
"""Vectors that are uploaded, and then recorded, at a time."""


def write_parquet(vectors: LocalFile, output: Path, contract: Contract) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), count_vectors(vectors)[1])
    schema = pa.schema(
        [pa.field(ID_COLUMN, pa.string(), nullable=False), pa.field(EMBEDDING_COLUMN, kind, nullable=False)],
        metadata={CONTRACT: contract.to_json().encode()},
    )
    with pq.ParquetWriter(output, schema, compression="none", use_dictionary=False) as writer:
        for ids, matrix in iter_vectors(vectors):
            column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), type=kind)
            writer.write_table(pa.table([pa.array(ids), column], schema=schema))


def write_npz(vectors: LocalFile, output: Path, contract: Contract) -> None:
    import numpy as np

    parts = list(iter_vectors(vectors))
    ids = [video_id for some, _ in parts for video_id in some]
    matrix = np.concatenate([matrix for _, matrix in parts] or [np.empty((0, count_vectors(vectors)[1]))])
    with output.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            **{
                ID_COLUMN: np.array(ids, dtype=np.str_),
                EMBEDDING_COLUMN: matrix.astype(np.float32),
                "contract": np.array(contract.to_json()),
            },
        )


class VectorFile:
    """A file of ids and vectors.

    Raises:
        VectorFileError: from every method, when the file cannot be read or has another form.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        formats = {".parquet": self._open_parquet, ".npz": self._open_npz}
        if path.suffix not in formats:
            raise VectorFileError(f"{path}: name a file that ends in .parquet or .npz")
        self._open = formats[path.suffix]
        try:
            self._open()
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
            raise VectorFileError(f"{path}: cannot be read: {error}") from None

    def _open_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._parquet = pq.ParquetFile(self.path)
        schema = self._parquet.schema_arrow
        for name in (ID_COLUMN, EMBEDDING_COLUMN):
            if name not in schema.names:
                raise VectorFileError(f"{self.path}: there is no column {name!r}")
        kind = schema.field(EMBEDDING_COLUMN).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or kind.value_type != pa.float32():
            raise VectorFileError(f"{self.path}: {EMBEDDING_COLUMN!r} is {kind}, not a list of float32")
        self._contract = (schema.metadata or {}).get(CONTRACT, b"").decode()

    def _open_npz(self) -> None:
        import numpy as np

        with self.path.open("rb") as file:  # NumPy leaves one that it opened itself open if it is no .npz
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise VectorFileError(f"{self.path}: it is a single array without a name, not an .npz file")
            for name in (ID_COLUMN, EMBEDDING_COLUMN):
                if name not in arrays:
                    raise VectorFileError(f"{self.path}: there is no array {name!r}")
            self._arrays = arrays[ID_COLUMN], arrays[EMBEDDING_COLUMN]
            self._contract = str(arrays["contract"]) if "contract" in arrays else ""
        ids, vectors = self._arrays
        if ids.ndim != 1 or ids.dtype.kind != "U":
            raise VectorFileError(f"{self.path}: {ID_COLUMN!r} is not an array of strings")
        if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(ids):
            raise VectorFileError(
                f"{self.path}: {EMBEDDING_COLUMN!r} is {vectors.dtype} {vectors.shape},"
                f" not float32 ({len(ids)}, n)"
            )

    @property
    def contract(self) -> Contract | None:
        """The contract that the file names, or None."""
        try:
            return Contract.from_json(self._contract) if self._contract else None
        except (ValueError, TypeError, KeyError):
            raise VectorFileError(f"{self.path}: the contract that it names cannot be read") from None

    def batches(self) -> Iterator[tuple[list[str], list[np.ndarray[Any, Any] | None]]]:
        """Ids and vectors, some at a time; None where a row has no vector."""
        import numpy as np
        import pyarrow as pa

        if self._open == self._open_npz:
            ids, vectors = self._arrays
            for start in range(0, len(ids), BATCH):
                yield ids[start : start + BATCH].tolist(), list(vectors[start : start + BATCH])
            return
        try:
            for batch in self._parquet.iter_batches(BATCH, columns=[ID_COLUMN, EMBEDDING_COLUMN]):
                lists = [value.as_py() for value in batch[EMBEDDING_COLUMN]]
                made = [None if value is None else np.asarray(value, dtype=np.float32) for value in lists]
                yield [str(value) for value in batch[ID_COLUMN].to_pylist()], made
        except (OSError, pa.ArrowException) as error:
            raise VectorFileError(f"{self.path}: cannot be read: {error}") from None
