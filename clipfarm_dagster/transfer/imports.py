"""Vectors of one modality out of the store into one file, and from such a file into the store.

A file holds ids and vectors: Parquet with the columns `video_id` (text) and `embedding` (list of float32), or
`.npz` with arrays of these names. A file that was exported also says which contract its vectors are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.catalog.metadata import LatestRows
from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.engine.storing import NewVector, contested_row, record_stored, store_vectors
from clipfarm_dagster.ledger.rows import WorkItem, success_row, vector_stands
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.manifests.manifest import LEDGER_COLUMNS_READ, build_manifest
from clipfarm_dagster.modalities.registry import MODALITIES, stage_checkpoint
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import is_valid_video_id
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.transfer.vector_file import VectorFile
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.hashing import source_hash
from clipfarm_dagster.vectors.npy import to_npy, vector_problem

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


ERASED = "its video was erased"


@dataclass
class Imported:
    """What became of a file's vectors."""

    contract: Contract
    rows: list[LedgerRow] = field(default_factory=list)
    """Those that were stored and recorded."""
    kept: int = 0
    """Those whose video had a vector already, of this contract and the present input; it was left alone."""
    serves: bool = False
    """Whether they are of the generation that serves."""
    wanted: bool = False
    """Whether they are of the contract that the settings ask for."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why others were refused, by what the file has as their id."""


def import_vectors(
    corpus: Corpus, stage: Stage, file: VectorFile, contract: Contract, *, replace_done: bool = False
) -> Imported:
    """Store a file's vectors in the generation of `contract`, recorded as made from the present input.

    A vector is recorded with the source hash of the video's present metadata and raw object. Where the
    generation serves, or is the one that the settings ask for, the video is done in it. Without a raw object
    it is recorded with none; it is embedded anew should one appear. Videos that have such a vector already
    keep it, unless `replace_done`.

    Refused are vectors that are no unit vectors or of another dimension than the configured checkpoint's, ids
    that are invalid or come twice, videos that were erased, and those that the metadata does not have. Where
    `contract` is another, or the checkpoint is not on this machine, the vectors that stand tell the
    dimension, or else the first.

    Raises:
        VectorFileError: the file cannot be read.
        ManifestError: the dimension is that of the vectors that stand, and they differ in it.
        ModelUnavailableError: the configured checkpoint is damaged.
        MetadataError: the metadata cannot be read.
        StoreError: the store cannot be read or written; what was recorded before that stays.
    """
    imported = Imported(contract)
    seen: set[str] = set()
    with corpus.stage(stage) as serving:
        opened = serving.under(contract)
        opened.want_again()
        inputs = _Inputs(opened, corpus.latest_rows())
        dimension = _dimension(opened, contract)
        opened.ledger.record_contract(contract)
        for ids, vectors in file.batches():
            chosen: dict[str, np.ndarray[Any, Any]] = {}
            erased = opened.ledger.erased(filter(is_valid_video_id, ids))
            for video_id, vector in zip(ids, vectors, strict=True):
                if dimension is None and vector is not None:
                    dimension = vector.size
                problem = vector_problem(vector, dimension or 0)
                if not is_valid_video_id(video_id):
                    problem = "its video_id cannot be used in a key"
                elif video_id in seen:
                    problem = "it occurs twice; the first one counts"
                elif video_id in erased:
                    problem = ERASED
                elif not inputs.known(video_id):
                    problem = "it is not in the metadata"
                seen.add(video_id)
                if problem is not None or vector is None:
                    imported.refused[video_id[:200]] = problem or ""
                else:
                    chosen[video_id] = vector
            _store(opened, inputs, chosen, imported, replace_done)
        opened.ledger.push()
        imported.serves = serving.contract.id == contract.id
        imported.wanted = serving.wanted.id == contract.id
    return imported


def _dimension(opened: StageCorpus, contract: Contract) -> int | None:
    """Numbers of each vector of a contract, or None where nothing tells."""
    told = None
    if contract == opened.wanted:
        told = MODALITIES[opened.stage].dimension(stage_checkpoint(opened.stage, opened.settings))
    if told is not None:
        return told
    return build_manifest(contract, opened.ledger.columns(LEDGER_COLUMNS_READ), opened.keys).dimension


def _store(
    opened: StageCorpus,
    inputs: _Inputs,
    vectors: Mapping[str, np.ndarray[Any, Any]],
    imported: Imported,
    replace_done: bool,
) -> None:
    contract, ledger = imported.contract, opened.ledger
    previous = ledger.rows(vectors)
    new: list[NewVector] = []
    for video_id, vector in vectors.items():
        item, etag = inputs.item(video_id, previous.get(video_id)), inputs.etag(video_id)
        if not replace_done and _standing_contract(item, etag) == contract.id:
            imported.kept += 1
        else:
            new.append(NewVector(item, to_npy(vector)))
    rows = []
    all_stored = store_vectors(opened.store, ledger, opened.place, new)
    for video_id, stored in all_stored.items():
        if stored.refused is not None:
            imported.refused[video_id] = str(stored.refused)
            continue
        etag = inputs.etag(video_id)
        row = success_row(
            stored.item,
            contract,
            datetime.now(UTC),
            source_hash=source_hash(stored.item.metadata_hash, etag),
            raw_etag=etag,
            raw_sha256=None,
            artifact_key=stored.key,
            vector=vectors[video_id],
            seconds=None,
            note="imported from a file",
        )
        rows.append(contested_row(row) if stored.contested else row)
    erased = record_stored(opened.store, ledger, rows, all_stored)
    erased |= {vector.item.video_id for vector in new} - all_stored.keys()
    imported.refused |= dict.fromkeys(erased, ERASED)
    imported.rows += [row for row in rows if row.video_id not in erased]


def _standing_contract(item: WorkItem, etag: str) -> str | None:
    """The contract of the vector that a video has of its present input."""
    row = item.previous
    if row is None or row.status != Status.SUCCESS:
        return None
    stands = vector_stands(row, row.vector_contract_id, item.metadata_hash, etag or None)
    return row.vector_contract_id if stands else None


class _Inputs:
    """What the vectors of a stage would be made of now: metadata and raw objects."""

    def __init__(self, opened: StageCorpus, latest_rows: LatestRows) -> None:
        import pyarrow.parquet as pq

        hashes = f"{opened.stage}_metadata_hash"
        latest = pq.read_table(latest_rows.path, columns=["video_id", "captured_at", hashes])
        self._rows = {
            video_id: (captured_at, hashed)
            for video_id, captured_at, hashed in zip(
                *(latest[name].to_pylist() for name in ("video_id", "captured_at", hashes)), strict=True
            )
        }
        listing: pa.Table = opened.raw_listing()
        self._etags: dict[str, str] = dict(
            zip(*(listing[n].to_pylist() for n in ("key", "etag")), strict=True)
        )
        self._keys, self._stage = opened.keys, opened.stage

    def known(self, video_id: str) -> bool:
        return video_id in self._rows

    def etag(self, video_id: str) -> str:
        return self._etags.get(self._keys.raw(self._stage, video_id), "")

    def item(self, video_id: str, previous: LedgerRow | None) -> WorkItem:
        captured_at, hashed = self._rows[video_id]
        return WorkItem(video_id, {}, hashed, timestamp(captured_at), previous)
