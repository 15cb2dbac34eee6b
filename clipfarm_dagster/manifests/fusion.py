"""Fused vectors: one row a video that has every modality that a strategy needs.

What a fused vector is made of stands in its row: for each modality the vector's key, source hash, contract
and SHA-256. A vector is copied from the file before where its inputs are as they were, wherever they lie by
now; only the vectors of other rows are read, each one checked. Both files are in the order of `video_id` and
are gone through in parallel, some hundred rows in memory at a time.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.manifests.manifest import Manifest
from clipfarm_dagster.manifests.strategies import Strategy
from clipfarm_dagster.manifests.vector_table import (
    CHUNK,
    FUSED_VECTOR_COLUMN,
    matrix,
    vectors_writer,
    with_vectors,
)
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster.vectors.npy import VectorProblem
from clipfarm_dagster.vectors.stored import checked_vector

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

STRATEGY = b"clipfarm.strategy"
"""Key of the Parquet file's metadata: the strategy's name and parameters, as JSON."""

_INPUTS = ("embedding_key", "source_hash", "contract_id", "artifact_sha256")
"""What a row says of each modality's vector, as columns `<modality>_<name>`."""

_DECISIVE = ("source_hash", "contract_id", "artifact_sha256")
"""Those that decide the vector: it may be moved to another key."""


@dataclass(frozen=True)
class Dropped:
    """A video that was left out, since the vector of one modality is not what the manifest says."""

    stage: Stage | None
    """The modality; None where all vectors are right but have no sum."""
    video_id: str
    key: str
    artifact_sha256: str | None
    problem: str


@dataclass
class Fusion:
    """What was done to bring a file of fused vectors up to date."""

    changed: bool
    """Whether a file was written; if not, the one before is as it should be."""
    rows: int = 0
    reused: int = 0
    """Rows copied from the file before."""
    objects_read: int = 0
    dropped: list[Dropped] = field(default_factory=list)


def fused_schema(strategy: Strategy, dimension: int) -> pa.Schema:
    """Columns and metadata of a file of fused vectors."""
    import pyarrow as pa

    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), dimension)
    return pa.schema(
        [
            pa.field("video_id", pa.string(), nullable=False),
            pa.field("captured_at", pa.timestamp("us", tz="UTC")),
            *(pa.field(f"{stage}_{name}", pa.string()) for stage in strategy.stages for name in _INPUTS),
            pa.field("fused_dim", pa.int32(), nullable=False),
            pa.field(FUSED_VECTOR_COLUMN, vector, nullable=False),
        ],
        metadata={
            STRATEGY: json.dumps({"name": strategy.name, **strategy.parameters}, sort_keys=True).encode()
        },
    )


class FusionPlan:
    """Which rows a file of fused vectors gets, and where each comes from."""

    def __init__(
        self, strategy: Strategy, manifests: Mapping[Stage, Manifest], previous: LocalFile | None = None
    ) -> None:
        """Plan the fused vectors of all videos that `manifests` have in common.

        Args:
            manifests: of each modality that the strategy needs.
            previous: the file before, whose rows are kept where their inputs are the same.

        Raises:
            FusionError: vectors of these dimensions cannot be fused.
            ManifestError: a manifest's vectors differ in dimension.
        """
        import numpy as np

        dimensions = {stage: manifests[stage].dimension for stage in strategy.stages}
        self._strategy = strategy
        self._known = {stage: dimension for stage, dimension in dimensions.items() if dimension is not None}
        self._fused_dim = strategy.dimension(self._known) if len(self._known) == len(dimensions) else 0
        self._schema = fused_schema(strategy, self._fused_dim)
        self._targets = _targets(strategy, manifests, self._schema)
        self._standing = _Standing.open(previous, self._schema)
        self._rows_before = (
            self._standing.match(self._targets, strategy.stages)
            if self._standing
            else np.full(self._targets.num_rows, -1)
        )

    @property
    def unchanged(self) -> bool:
        """Whether the file before is as it should be."""
        return self._standing is not None and self._standing.table.equals(self._targets)

    def kept(self) -> Fusion:
        """What is to be told of a file that is as it should be."""
        return Fusion(False, rows=self._targets.num_rows, reused=self._targets.num_rows)

    def write(self, store: ObjectStore, output: Path) -> Fusion:
        """Write the file to `output`, from its beginning to its end.

        Raises:
            ManifestError: the file before is damaged among its vectors.
            StoreError: the store cannot be read; a single object that is missing or wrong raises nothing, its
                video is left out and named in the answer.
        """
        import numpy as np
        import pyarrow as pa

        targets, standing = self._targets, self._standing
        reader = _Reader(self._strategy, store, self._known, targets, self._rows_before < 0)
        result = Fusion(True, reused=int((self._rows_before >= 0).sum()))
        with vectors_writer(output, self._schema) as writer:
            for start in range(0, targets.num_rows, CHUNK):
                chunk, before = targets.slice(start, CHUNK), self._rows_before[start : start + CHUNK]
                vectors = np.empty((chunk.num_rows, self._fused_dim), dtype=np.float32)
                whole = before >= 0
                if standing is not None and whole.any():
                    vectors[whole] = standing.vectors(before[whole])
                fresh = np.flatnonzero(~whole)
                read, fused = reader.read(len(fresh))
                vectors[fresh[read]] = fused
                whole[fresh[read]] = True
                rows = with_vectors(chunk, vectors, self._schema)
                writer.write_table(
                    rows if whole.all() else rows.filter(pa.array(whole)), row_group_size=CHUNK
                )
                result.rows += int(whole.sum())
        result.objects_read, result.dropped = reader.objects_read, reader.dropped
        return result

    def close(self) -> None:
        """Close the file before."""
        if self._standing is not None:
            self._standing.close()


def _targets(strategy: Strategy, manifests: Mapping[Stage, Manifest], schema: pa.Schema) -> pa.Table:
    """The videos that all modalities have, in order, with all columns but the vector."""
    import pyarrow as pa
    import pyarrow.compute as pc

    tables = {stage: manifests[stage].table for stage in strategy.stages}
    for stage in strategy.stages:
        for other in strategy.stages:
            shared = pc.is_in(tables[stage]["video_id"], tables[other]["video_id"].combine_chunks())
            tables[stage] = tables[stage].filter(shared)
    first = tables[strategy.stages[0]]
    columns: dict[str, Any] = {
        "video_id": first["video_id"],
        "captured_at": _latest([table["captured_at"] for table in tables.values()]),
        "fused_dim": pa.repeat(schema.field(FUSED_VECTOR_COLUMN).type.list_size, first.num_rows),
    }
    for stage, table in tables.items():
        contract_id = pa.repeat(manifests[stage].contract.id, table.num_rows)
        for name in _INPUTS:
            columns[f"{stage}_{name}"] = contract_id if name == "contract_id" else table[name]
    fields = [column for column in schema if column.name != FUSED_VECTOR_COLUMN]
    return pa.table(
        [pc.cast(columns[column.name], column.type) for column in fields], schema=pa.schema(fields)
    ).combine_chunks()


def _latest(moments: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    numbers = pc.max_element_wise(*(column.cast("int64") for column in moments))  # it takes no timestamps
    return numbers.cast(moments[0].type)


class _Standing:
    """The file before: its rows' inputs, and its vectors."""

    def __init__(self, source: LocalFile, file: pq.ParquetFile) -> None:
        import numpy as np

        metadata = file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._source, self._file = source, file
        self._starts = np.cumsum([0, *sizes])
        """Number of each row group's first row, and behind the last one the number of rows."""
        self._group = functools.lru_cache(maxsize=1)(self._read_group)
        self.table = file.read(
            columns=[name for name in file.schema_arrow.names if name != FUSED_VECTOR_COLUMN]
        )
        """All columns but the vector."""

    @classmethod
    def open(cls, source: LocalFile | None, schema: pa.Schema) -> _Standing | None:
        """Open `source`, unless it is damaged, or of another strategy, other parameters or another dimension:
        then all is made anew."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if source is None:
            return None
        with contextlib.suppress(pa.ArrowException, OSError), contextlib.ExitStack() as stack:
            file = stack.enter_context(pq.ParquetFile(source.path))
            if file.schema_arrow.equals(schema, check_metadata=True):
                standing = cls(source, file)
                stack.pop_all()
                return standing
        return None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def match(self, targets: pa.Table, stages: Sequence[Stage]) -> np.ndarray[Any, Any]:
        """For each target the number of the row that was made of the same inputs, or -1.

        An input whose SHA-256 is not known is the same only at the same key.
        """
        import numpy as np
        import pyarrow.compute as pc

        if not self.table.num_rows:
            return np.full(targets.num_rows, -1)
        numbers = pc.index_in(targets["video_id"], self.table["video_id"].combine_chunks())
        found = self.table.take(pc.fill_null(numbers, 0))
        same = np.array(pc.is_valid(numbers))

        def equal(name: str) -> np.ndarray[Any, Any]:
            same_value = pc.equal(found[name], targets[name])  # null where either is
            both_null = pc.and_(pc.is_null(found[name]), pc.is_null(targets[name]))
            return np.array(pc.coalesce(same_value, both_null))

        for stage in stages:
            for name in _DECISIVE:
                same &= equal(f"{stage}_{name}")
            known = np.array(pc.is_valid(targets[f"{stage}_artifact_sha256"]))
            same &= known | equal(f"{stage}_embedding_key")
        return np.where(same, np.array(pc.fill_null(numbers, -1)), -1)

    def vectors(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Vectors of the rows `numbers`, ascending; only the row group read last is kept in memory."""
        import numpy as np

        groups = np.searchsorted(self._starts, numbers, side="right") - 1
        parts = [
            self._group(group)[numbers[groups == group] - self._starts[group]] for group in np.unique(groups)
        ]
        return np.concatenate(parts)

    def _read_group(self, group: int) -> np.ndarray[Any, Any]:
        with self._source.reading():
            return matrix(self._file.read_row_group(int(group), columns=[FUSED_VECTOR_COLUMN]))


class _Reader:
    """Reads and fuses the vectors of the fresh targets, in order; the next ones are fetched meanwhile."""

    def __init__(
        self,
        strategy: Strategy,
        store: ObjectStore,
        dimensions: Mapping[Stage, int],
        targets: pa.Table,
        fresh: np.ndarray[Any, Any],
    ) -> None:
        import pyarrow as pa

        self._strategy, self._dimensions = strategy, dimensions
        rows = targets.filter(pa.array(fresh))
        self._ids = rows["video_id"].to_pylist()
        self._keys, self._sha256s = (
            {stage: rows[f"{stage}_{name}"].to_pylist() for stage in strategy.stages}
            for name in ("embedding_key", "artifact_sha256")
        )
        in_order = zip(*self._keys.values(), strict=True)
        self._objects = store.get_many(key for keys in in_order for key in keys)
        self._next = 0
        self.objects_read = 0
        self.dropped: list[Dropped] = []

    def read(self, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Of the next `count` fresh targets, the numbers (from 0) of those whose vectors are all right, and
        their fused vectors of unit norm."""
        import numpy as np

        stages = self._strategy.stages
        vectors = {
            stage: np.empty((count, self._dimensions.get(stage, 0)), dtype=np.float32) for stage in stages
        }
        whole = []
        for number in range(count):
            row, problems = self._next + number, len(self.dropped)
            for stage in stages:
                _, answer = next(self._objects)
                self.objects_read += 1
                try:
                    vector = checked_vector(answer, self._dimensions[stage], self._sha256s[stage][row])
                except VectorProblem as problem:
                    self._drop(row, stage, str(problem))
                else:
                    vectors[stage][number] = vector
            if len(self.dropped) == problems:
                whole.append(number)
        self._next += count
        fused, directed = _unit(
            self._strategy.fuse({stage: matrix[whole] for stage, matrix in vectors.items()})
        )
        for index in np.flatnonzero(~directed):
            self._drop(self._next - count + whole[index], None, "its vectors cancel each other out")
        return np.array(whole, dtype=np.intp)[directed], fused[directed]

    def _drop(self, row: int, stage: Stage | None, problem: str) -> None:
        key = "" if stage is None else self._keys[stage][row]
        sha256 = None if stage is None else self._sha256s[stage][row]
        self.dropped.append(Dropped(stage, self._ids[row], key, sha256, problem))


def _unit(vectors: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows scaled to L2 norm 1, float32, and which of them have a direction at all."""
    import numpy as np

    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    directed = norms > 0
    return (vectors / np.where(directed, norms, 1)[:, None]).astype(np.float32), directed
