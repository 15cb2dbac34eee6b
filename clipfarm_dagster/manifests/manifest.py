"""The manifest of one modality: a row for each vector that is done, taken from the ledger.

All rows are of one contract, the one that the settings ask for, which stands in the file's metadata. After a
change of model the manifest begins anew and grows as videos are embedded again: an older vector's key is
overwritten then, so that a row that pointed at it would lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.errors import ManifestError
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import VIDEO_ID_PATTERN, Keys, check_video_id
from clipfarm_dagster.store.local_copies import LocalCopies, LocalCopy, LocalFile
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import pyarrow as pa

LEDGER_COLUMNS_READ = (
    "video_id",
    "source_hash",
    "captured_at",
    "embedding_dim",
    "status",
    "processed_at",
    "contract_id",
    "vector_source_hash",
    "vector_contract_id",
    "artifact_key",
    "artifact_sha256",
    "note",
)
"""Columns of the ledger that a manifest is made of."""

CONTRACT_ID = b"clipfarm.contract_id"
CONTRACT = b"clipfarm.contract"
"""Keys of the Parquet file's metadata: the contract's id, and the contract as canonical JSON."""

REPLACE_WRONG = (
    "Delete the wrong ones from the store, and run `clipfarm verify --repair`; the next sync embeds them anew"
)
"""What a person is told to do about vectors that are recorded as done, and are not what the model gives."""

_NAMED = 3
_ROW_GROUP = 65_536


@dataclass(frozen=True)
class Manifest:
    """One modality's vectors that are done, all of one contract."""

    contract: Contract
    table: pa.Table
    """Sorted by `video_id`: the columns of `manifest_schema`."""

    @property
    def stage(self) -> Stage:
        """The modality."""
        return self.contract.stage

    @property
    def dimension(self) -> int | None:
        """The dimension of all vectors, or None where there is no row.

        Raises:
            ManifestError: the rows differ in it.
        """
        import pyarrow.compute as pc

        counts = [tuple(found.values()) for found in pc.value_counts(self.table["embedding_dim"]).to_pylist()]
        if len(counts) > 1:
            parts = []
            for dimension, count in sorted(counts, key=lambda found: -found[1]):
                keys = self.table.filter(pc.field("embedding_dim") == dimension)["embedding_key"]
                parts.append(f"{count} have {dimension}, such as {', '.join(keys[:_NAMED].to_pylist())}")
            raise ManifestError(
                f"the {self.stage} vectors of contract {self.contract.id} differ in their dimension:"
                f" {'; '.join(parts)}. {REPLACE_WRONG}"
            )
        return counts[0][0] if counts else None


def manifest_schema() -> pa.Schema:
    """Columns of a modality's manifest, the same for all."""
    import pyarrow as pa

    moment = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            pa.field("video_id", pa.string(), nullable=False),
            pa.field("source_hash", pa.string(), nullable=False),
            pa.field("captured_at", moment),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("embedding_key", pa.string(), nullable=False),
            pa.field("embedding_dim", pa.int32(), nullable=False),
            pa.field("model_name", pa.string(), nullable=False),
            pa.field("model_version", pa.string(), nullable=False),
            pa.field("preprocess_version", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("processed_at", moment, nullable=False),
            pa.field("artifact_sha256", pa.string()),
            pa.field("note", pa.string()),
        ]
    )


def build_manifest(contract: Contract, rows: pa.Table, keys: Keys) -> Manifest:
    """The manifest of a stage from its ledger's rows, `LEDGER_COLUMNS_READ`.

    Taken are successes whose stored vector is known to be made from their source hash under `contract`.

    Raises:
        InvalidVideoIdError: a row's id may not become a key.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    current = pc.and_(
        pc.equal(rows["status"], str(Status.SUCCESS)),
        pc.and_(
            pc.equal(rows["vector_contract_id"], contract.id),
            pc.equal(rows["vector_source_hash"], rows["source_hash"]),
        ),
    )
    rows = rows.filter(pc.fill_null(current, False)).sort_by("video_id")
    ids = rows["video_id"]
    valid = pc.match_substring_regex(ids, f"^(?:{VIDEO_ID_PATTERN})$")
    for video_id in ids.filter(pc.invert(valid)).to_pylist():
        check_video_id(video_id)
    folder = keys.embedding_folder(contract.stage)
    constants = {
        "modality": str(contract.stage),
        "model_name": contract.model_name,
        "model_version": contract.model_revision,
        "preprocess_version": contract.preprocess_version,
    }
    columns = {
        **{name: rows[name] for name in rows.column_names},
        **{name: pa.repeat(value, rows.num_rows) for name, value in constants.items()},
        # where the ledger says that it lies
        "embedding_key": pc.coalesce(
            rows["artifact_key"], pc.binary_join_element_wise(folder, ids, ".npy", "")
        ),
    }
    schema = manifest_schema()
    arrays = [pc.cast(columns[field.name], field.type) for field in schema]
    metadata = {CONTRACT_ID: contract.id.encode(), CONTRACT: contract.to_json().encode()}
    return Manifest(contract, pa.table(arrays, schema=schema.with_metadata(metadata)).combine_chunks())


def incomplete(contract: Contract, rows: pa.Table) -> list[str]:
    """Videos whose latest attempt under a contract succeeded, and whose vector is unknown: it is being
    written over, or was found lost.

    Args:
        rows: of the stage's ledger, `LEDGER_COLUMNS_READ`.
    """
    import pyarrow.compute as pc

    success = pc.and_(
        pc.equal(rows["status"], str(Status.SUCCESS)), pc.equal(rows["contract_id"], contract.id)
    )
    found = rows.filter(pc.and_(pc.fill_null(success, False), pc.is_null(rows["vector_source_hash"])))
    ids: list[str] = found["video_id"].to_pylist()
    return sorted(ids)


def read_manifest(file: LocalFile) -> Manifest:
    """Read a manifest file.

    Raises:
        ManifestError: the file is damaged, or no manifest.
    """
    import pyarrow.parquet as pq

    with file.reading() as path:
        table = pq.read_table(path)
    contract = (table.schema.metadata or {}).get(CONTRACT)
    if contract is None or not table.schema.equals(manifest_schema()):
        raise ManifestError(f"{file.name} is not a manifest of this version; {file.remedy}")
    return Manifest(Contract.from_json(contract.decode()), table)


def write_manifest(manifest: Manifest, copies: LocalCopies, key: str) -> tuple[LocalCopy, bool]:
    """Bring the manifest in the store up to date, in one step; tells also whether anything was written.

    Raises:
        StoreError: the store cannot be read or written.
    """
    standing = copies.get(key)
    if standing is not None:
        try:
            if read_manifest(standing).table.equals(manifest.table, check_metadata=True):
                return standing, False
        except ManifestError:
            pass  # of another version, or damaged: it is replaced
    return copies.put(key, partial(write_rows, manifest.table))[1], True


def write_rows(table: pa.Table, path: Path) -> None:
    """Write the rows of a manifest into a file."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, row_group_size=_ROW_GROUP, compression="zstd")
