"""Vectors of one modality out of the store into one file, and from such a file into the store.

A file holds ids and vectors: Parquet with the columns `video_id` (text) and `embedding` (list of float32), or
`.npz` with arrays of these names. A file that was exported also says which contract its vectors are of.
"""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.checkpoints.dimension import checkpoint_dimension
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.engine.outcomes import WorkItem, success_row
from clipfarm_dagster.engine.storing import store_vectors
from clipfarm_dagster.errors import VectorFileError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status, timestamp
from clipfarm_dagster.manifests.fusion import Dropped, count_vectors, read_vectors
from clipfarm_dagster.manifests.manifest import CONTRACT, LEDGER_COLUMNS_READ, build_manifest
from clipfarm_dagster.manifests.refresh import modality_vectors
from clipfarm_dagster.modalities.registry import stage_checkpoint
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import is_valid_video_id
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.hashing import source_hash
from clipfarm_dagster.vectors.npy import NORM_TOLERANCE, to_npy, vector_sha256

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ID_COLUMN = "video_id"
VECTOR_COLUMN = "embedding"

_BATCH = 500
"""Vectors that are uploaded, and then recorded, at a time."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    vectors: int
    dimension: int
    contract: Contract
    dropped: list[Dropped]
    """Vectors that are missing or wrong, and therefore not in the file."""


@dataclass
class Imported:
    """What became of a file's vectors."""

    contract: Contract
    rows: list[LedgerRow] = field(default_factory=list)
    """Those that were stored and recorded."""
    kept: int = 0
    """Those whose video had a vector already, of this or the configured contract and the present input; it
    was left alone."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why others were refused, by what the file has as their id."""


def export_vectors(corpus: Corpus, stage: Stage, output: Path) -> Exported:
    """Write all vectors of a modality that are done to `output`, which appears only once it is whole.

    Raises:
        VectorFileError: `output` ends neither in `.parquet` nor in `.npz`, or cannot be written.
        ManifestError: this machine's file of all vectors is damaged.
        StoreError: the store cannot be read.
    """
    writers = {".parquet": _write_parquet, ".npz": _write_npz}
    if output.suffix not in writers:
        raise VectorFileError(f"{output}: name a file that ends in .parquet or .npz")
    contract = corpus.contract(stage)
    vectors, fusion = modality_vectors(corpus, stage)
    count, dimension = count_vectors(vectors)
    try:
        with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".clipfarm-") as scratch:
            part = Path(scratch) / output.name
            writers[output.suffix](vectors, part, contract)
            part.replace(output)
    except OSError as error:
        raise VectorFileError(f"{output}: cannot be written: {error.strerror or error}") from None
    return Exported(count, dimension, contract, fusion.dropped)


def _write_parquet(vectors: LocalFile, output: Path, contract: Contract) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), count_vectors(vectors)[1])
    schema = pa.schema(
        [pa.field(ID_COLUMN, pa.string(), nullable=False), pa.field(VECTOR_COLUMN, kind, nullable=False)],
        metadata={CONTRACT: contract.to_json().encode()},
    )
    with pq.ParquetWriter(output, schema, compression="none", use_dictionary=False) as writer:
        for ids, matrix in read_vectors(vectors):
            column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), type=kind)
            writer.write_table(pa.table([pa.array(ids), column], schema=schema))


def _write_npz(vectors: LocalFile, output: Path, contract: Contract) -> None:
    import numpy as np

    parts = list(read_vectors(vectors))
    ids = [video_id for some, _ in parts for video_id in some]
    matrix = np.concatenate([matrix for _, matrix in parts] or [np.empty((0, count_vectors(vectors)[1]))])
    with output.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            **{
                ID_COLUMN: np.array(ids, dtype=np.str_),
                VECTOR_COLUMN: matrix.astype(np.float32),
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
        for name in (ID_COLUMN, VECTOR_COLUMN):
            if name not in schema.names:
                raise VectorFileError(f"{self.path}: there is no column {name!r}")
        kind = schema.field(VECTOR_COLUMN).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or kind.value_type != pa.float32():
            raise VectorFileError(f"{self.path}: {VECTOR_COLUMN!r} is {kind}, not a list of float32")
        self._contract = (schema.metadata or {}).get(CONTRACT, b"").decode()

    def _open_npz(self) -> None:
        import numpy as np

        with self.path.open("rb") as file:  # NumPy leaves one that it opened itself open if it is no .npz
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise VectorFileError(f"{self.path}: it is one array without names, so no .npz")
            for name in (ID_COLUMN, VECTOR_COLUMN):
                if name not in arrays:
                    raise VectorFileError(f"{self.path}: there is no array {name!r}")
            self._arrays = arrays[ID_COLUMN], arrays[VECTOR_COLUMN]
            self._contract = str(arrays["contract"]) if "contract" in arrays else ""
        ids, vectors = self._arrays
        if ids.ndim != 1 or ids.dtype.kind != "U":
            raise VectorFileError(f"{self.path}: {ID_COLUMN!r} is no array of texts")
        if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(ids):
            raise VectorFileError(
                f"{self.path}: {VECTOR_COLUMN!r} is {vectors.dtype} {vectors.shape},"
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
            for start in range(0, len(ids), _BATCH):
                yield ids[start : start + _BATCH].tolist(), list(vectors[start : start + _BATCH])
            return
        try:
            for batch in self._parquet.iter_batches(_BATCH, columns=[ID_COLUMN, VECTOR_COLUMN]):
                lists = [value.as_py() for value in batch[VECTOR_COLUMN]]
                made = [None if value is None else np.asarray(value, dtype=np.float32) for value in lists]
                yield [str(value) for value in batch[ID_COLUMN].to_pylist()], made
        except (OSError, pa.ArrowException) as error:
            raise VectorFileError(f"{self.path}: cannot be read: {error}") from None


def vector_problem(vector: np.ndarray[Any, Any] | None, dimension: int) -> str | None:
    """Why a vector may not be stored, or None."""
    import numpy as np

    if vector is None:
        return "it has no vector"
    if vector.shape != (dimension,):
        return f"{vector.size} numbers, not {dimension}"
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or abs(norm - 1) > NORM_TOLERANCE:
        return f"L2 norm {norm:.6g}, not 1"
    return None


def import_vectors(
    corpus: Corpus, stage: Stage, file: VectorFile, contract: Contract, *, replace_done: bool = False
) -> Imported:
    """Store a file's vectors under their keys, recorded as made under `contract` from the present input.

    A vector is recorded with the source hash of the video's present metadata and raw object. Where `contract`
    is the configured one it is done; otherwise it is in the delta, as `contract_changed`. Without a raw
    object it is recorded with none; it is embedded anew should one appear. Videos that have such a vector
    already, or one that is done, keep it, unless `replace_done`.

    Refused are vectors that are no unit vectors or of another dimension than the configured checkpoint's, ids
    that are invalid or come twice, and videos that the metadata does not have. Where `contract` is another,
    or the checkpoint is not on this machine, the vectors that stand tell the dimension, or else the first.

    Raises:
        VectorFileError: the file cannot be read.
        ManifestError: the dimension is that of the vectors that stand, and they differ in it.
        ModelUnavailableError: the configured checkpoint is damaged.
        MetadataError: the metadata cannot be read.
        StoreError: the store cannot be read or written; what was recorded before that stays.
    """
    inputs = _Inputs(corpus, stage)
    imported = Imported(contract)
    seen: set[str] = set()
    with corpus.ledger(stage) as ledger:
        dimension = _dimension(corpus, ledger, contract)
        ledger.record_contract(contract)
        for ids, vectors in file.batches():
            chosen: dict[str, np.ndarray[Any, Any]] = {}
            for video_id, vector in zip(ids, vectors, strict=True):
                if dimension is None and vector is not None:
                    dimension = vector.size
                problem = vector_problem(vector, dimension or 0)
                if not is_valid_video_id(video_id):
                    problem = "its video_id may not become a key"
                elif video_id in seen:
                    problem = "it comes twice; the first one counts"
                elif not inputs.known(video_id):
                    problem = "the metadata does not have it"
                seen.add(video_id)
                if problem is not None or vector is None:
                    imported.refused[video_id[:200]] = problem or ""
                else:
                    chosen[video_id] = vector
            _store(corpus, ledger, inputs, chosen, imported, replace_done)
        ledger.push()
    return imported


def _dimension(corpus: Corpus, ledger: Ledger, contract: Contract) -> int | None:
    """Numbers of each vector of a contract, or None where nothing tells."""
    told = None
    if contract == corpus.contract(ledger.stage):
        told = checkpoint_dimension(stage_checkpoint(ledger.stage, corpus.settings))
    if told is not None:
        return told
    return build_manifest(contract, ledger.columns(LEDGER_COLUMNS_READ), corpus.keys).dimension


def _store(
    corpus: Corpus,
    ledger: Ledger,
    inputs: _Inputs,
    vectors: Mapping[str, np.ndarray[Any, Any]],
    imported: Imported,
    replace_done: bool,
) -> None:
    import numpy as np

    contract, previous = imported.contract, ledger.rows(vectors)
    kept_contracts = set() if replace_done else {contract.id, corpus.contract(ledger.stage).id}
    objects: list[tuple[LedgerRow, bytes]] = []
    for video_id, vector in vectors.items():
        item, etag = inputs.item(video_id, previous.get(video_id)), inputs.etag(video_id)
        hashed = source_hash(item.metadata_hash, etag)
        if _standing_contract(item, etag, hashed) in kept_contracts:
            imported.kept += 1
            continue
        key = corpus.keys.embedding(ledger.stage, video_id)
        row = success_row(
            item,
            contract,
            datetime.now(UTC),
            source_hash=hashed,
            raw_etag=etag,
            raw_sha256="",
            artifact_key=key,
            artifact_sha256=vector_sha256(vector),
            embedding_dim=vector.size,
            vector_norm=float(np.linalg.norm(vector.astype(np.float64))),
            seconds=0.0,
            note="imported from a file",
        )
        objects.append((replace(row, vector_raw_sha256=None, seconds=None), to_npy(vector)))
    stored = store_vectors(corpus.store, ledger, objects)
    imported.refused.update((video_id, str(error)) for video_id, error in stored.refused.items())
    rows = [row for video_id, row in stored.rows.items() if video_id not in stored.refused]
    ledger.record(rows)
    imported.rows += rows


def _standing_contract(item: WorkItem, etag: str, hashed: str) -> str | None:
    """The contract of the vector that a video has of its present input, by the rule of `catalog.delta`."""
    row = item.previous
    if row is None or row.status != Status.SUCCESS or row.vector_source_hash is None:
        return None
    # without a raw object a vector stays what it was
    present = row.vector_source_hash == hashed if etag else row.metadata_hash == item.metadata_hash
    return row.vector_contract_id if present else None


class _Inputs:
    """What the vectors of a stage would be made of now: metadata and raw objects."""

    def __init__(self, corpus: Corpus, stage: Stage) -> None:
        import pyarrow.parquet as pq

        hashes = f"{stage}_metadata_hash"
        latest = pq.read_table(corpus.latest_rows().path, columns=["video_id", "captured_at", hashes])
        self._rows = {
            video_id: (captured_at, hashed)
            for video_id, captured_at, hashed in zip(
                *(latest[name].to_pylist() for name in ("video_id", "captured_at", hashes)), strict=True
            )
        }
        listing: pa.Table = corpus.raw_listing(stage)
        self._etags: dict[str, str] = dict(
            zip(*(listing[n].to_pylist() for n in ("key", "etag")), strict=True)
        )
        self._keys, self._stage = corpus.keys, stage

    def known(self, video_id: str) -> bool:
        return video_id in self._rows

    def etag(self, video_id: str) -> str:
        return self._etags.get(self._keys.raw(self._stage, video_id), "")

    def item(self, video_id: str, previous: LedgerRow | None) -> WorkItem:
        captured_at, hashed = self._rows[video_id]
        return WorkItem(video_id, {}, hashed, timestamp(captured_at), previous)
