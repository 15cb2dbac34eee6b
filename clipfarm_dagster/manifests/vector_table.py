"""Tables with a column of vectors: manifests that hold them, read in chunks."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.store.local_copies import LocalFile

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq


FUSED_VECTOR_COLUMN = "fused_vector"

CHUNK = 1024
"""Rows in memory at a time, and in a row group of the file."""


def iter_vectors(file: LocalFile) -> Iterator[tuple[list[str], np.ndarray[Any, Any]]]:
    """Ids and vectors, float32 (videos, dimension), of a file of fused vectors, some at a time.

    Raises:
        ManifestError: the file cannot be read.
    """
    with opened(file) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=["video_id", FUSED_VECTOR_COLUMN])
            if table.num_rows:
                yield table["video_id"].to_pylist(), matrix(table)


def vectors_of(file: LocalFile, video_ids: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The vectors of some videos that a file has, float32 (dimension,), by `video_id`. Only parts of the file
    are read where the ids are near to each other in its order.

    Raises:
        ManifestError: the file cannot be read.
    """
    found: dict[str, np.ndarray[Any, Any]] = {}
    if not video_ids:
        return found
    wanted, first, last = frozenset(video_ids), min(video_ids), max(video_ids)
    with opened(file) as parquet:
        ids_column = parquet.schema_arrow.get_field_index("video_id")
        for group in range(parquet.num_row_groups):
            span = parquet.metadata.row_group(group).column(ids_column).statistics
            if span is not None and (span.max < first or last < span.min):
                continue
            table = parquet.read_row_group(group, columns=["video_id", FUSED_VECTOR_COLUMN])
            for video_id, vector in zip(table["video_id"].to_pylist(), matrix(table), strict=True):
                if video_id in wanted:
                    found[video_id] = vector.copy()  # a row would keep its whole group in memory
    return found


def count_vectors(file: LocalFile) -> tuple[int, int]:
    """Number of vectors in a file of fused vectors, and their dimension.

    Raises:
        ManifestError: the file cannot be read.
    """
    with opened(file) as parquet:
        return parquet.metadata.num_rows, parquet.schema_arrow.field(FUSED_VECTOR_COLUMN).type.list_size


def vector_keys(file: LocalFile, video_ids: Sequence[str]) -> dict[str, list[str]]:
    """Keys of the vectors that the rows of some videos are made of, one a modality.

    Raises:
        ManifestError: the file cannot be read.
    """
    import pyarrow.parquet as pq

    with opened(file) as parquet:
        names = [name for name in parquet.schema_arrow.names if name.endswith("_embedding_key")]
    with file.reading() as path:
        wanted = [("video_id", "in", list(video_ids))]
        rows = pq.read_table(path, columns=["video_id", *names], filters=wanted) if video_ids else None
    found = [] if rows is None else rows.to_pylist()
    return {row["video_id"]: [row[name] for name in names] for row in found}


def content_id(file: LocalFile) -> str | None:
    """A hash of what decides a file's vectors and their order, wherever they were read from; None if the
    SHA-256 of one that they are made of is not known.

    Raises:
        ManifestError: the file cannot be read.
    """
    with opened(file) as parquet:
        schema = parquet.schema_arrow
        names = ["video_id", *(name for name in schema.names if name.endswith("_artifact_sha256"))]
        table = parquet.read(columns=names)
    found = hashlib.sha256(repr((schema.field(FUSED_VECTOR_COLUMN).type, schema.metadata)).encode())
    for column in table.columns:
        if column.null_count:
            return None
        for buffer in column.combine_chunks().buffers():
            found.update(buffer or b"")
    return found.hexdigest()[:16]


@contextlib.contextmanager
def opened(file: LocalFile) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.reading() as path, pq.ParquetFile(path) as parquet:
        if FUSED_VECTOR_COLUMN not in parquet.schema_arrow.names:
            raise pa.ArrowInvalid(f"it has no column {FUSED_VECTOR_COLUMN!r}")
        yield parquet


def vectors_writer(output: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """What writes a file with a column of vectors."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(
        output,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        use_byte_stream_split=[f"{FUSED_VECTOR_COLUMN}.list.element"],  # a sixth smaller than plain float32
        write_statistics=["video_id"],
    )


def with_vectors(rows: pa.Table, vectors: np.ndarray[Any, Any], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    kind = schema.field(FUSED_VECTOR_COLUMN).type
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind)
    return pa.table([*rows.columns, column], schema=schema)


def matrix(table: pa.Table) -> np.ndarray[Any, Any]:
    import numpy as np

    column = table[FUSED_VECTOR_COLUMN].combine_chunks()
    values: np.ndarray[Any, Any] = column.flatten().to_numpy()
    return values.reshape(len(column), -1) if len(column) else np.empty((0, 0), dtype=np.float32)
