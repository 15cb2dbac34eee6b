"""Puts vectors under their keys so that no ledger, of whatever machine, claims what is not there.

A vector is written only over the version of the object that was seen before the ledger said, for all machines
to read, that what lies there is unknown from now on. So whoever was about to write the same key either finds
it changed, and does not write, or finds its own claim forgotten. A key at which there was nothing needs no
mark: it is only ever created.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from clipfarm_dagster.errors import ObjectMissingError, PreconditionFailedError, StoreError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.versions import forgotten
from clipfarm_dagster.store import ObjectStore

_Vector = tuple[LedgerRow, bytes]


@dataclass
class StoredVectors:
    """What became of vectors that were to be stored, by `video_id`."""

    rows: dict[str, LedgerRow]
    """The rows to record."""
    refused: dict[str, StoreError] = field(default_factory=dict)
    """Those of keys that the store refuses alone."""


def store_vectors(store: ObjectStore, ledger: Ledger, vectors: Sequence[_Vector]) -> StoredVectors:
    """Store vectors: each of `vectors` is a row of success, with the key, and the `.npy` to put there.

    A vector that others keep writing at the same time is left to them: its row becomes a failure that is due
    at once.

    Raises:
        StoreError: the store as a whole cannot be read or written.
        LedgerError: the ledger cannot be written.
    """
    stored = StoredVectors({row.video_id: row for row, _ in vectors})
    lost = _put(store, [(*vector, None) for vector in vectors if vector[0].row_version == 0], stored)
    lost += _overwrite(store, ledger, [vector for vector in vectors if vector[0].row_version != 0], stored)
    for row, _ in _overwrite(store, ledger, lost, stored):
        stored.rows[row.video_id] = contested_row(stored.rows[row.video_id])
    return stored


def contested_row(row: LedgerRow) -> LedgerRow:
    """The row of a vector that another machine wrote at the same time."""
    return replace(
        forgotten(row),
        status=Status.FAIL,
        error=f"another machine keeps writing {row.artifact_key!r} at the same time; it is embedded again",
        next_attempt_at=None,
    )


def _overwrite(
    store: ObjectStore, ledger: Ledger, vectors: Sequence[_Vector], stored: StoredVectors
) -> list[_Vector]:
    """Mark, then write over what was there before; returns those that somebody has changed in between."""
    seen = store.head_each([row.artifact_key or "" for row, _ in vectors])
    items: list[tuple[LedgerRow, bytes, str | None]] = []
    for (row, npy), answer in zip(vectors, seen, strict=True):
        if isinstance(answer, StoreError):
            stored.refused[row.video_id] = answer
        else:
            items.append((row, npy, None if answer is None else answer.etag))
    for video_id, version in ledger.mark_overwriting([row.video_id for row, _, _ in items]).items():
        stored.rows[video_id] = replace(stored.rows[video_id], row_version=version)
    return _put(store, items, stored)


def _put(
    store: ObjectStore, items: Sequence[tuple[LedgerRow, bytes, str | None]], stored: StoredVectors
) -> list[_Vector]:
    """Write each over the version with its ETag; returns those that somebody has changed in between."""
    lost = []
    answers = store.put_each([(row.artifact_key or "", npy, etag) for row, npy, etag in items])
    for (row, npy, _), answer in zip(items, answers, strict=True):
        if isinstance(answer, PreconditionFailedError):
            if not _is_there(store, row.artifact_key or "", npy):
                lost.append((row, npy))
        elif isinstance(answer, StoreError):
            stored.refused[row.video_id] = answer
    return lost


def _is_there(store: ObjectStore, key: str, data: bytes) -> bool:
    """Whether the store holds these very bytes: the vector of an earlier run, or of another machine."""
    try:
        return store.get(key).data == data
    except ObjectMissingError:
        return False
