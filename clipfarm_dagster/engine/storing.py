"""Puts vectors under their keys so that no ledger, of whatever machine, claims what is not there.

A vector is written only over the version of the object that was seen before the ledger said, for all machines
to read, that what lies there is unknown from now on. So whoever was about to write the same key either finds
it changed, and does not write, or finds its own claim forgotten. A key at which there was nothing needs no
mark: it is only ever created.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clipfarm_dagster.errors import ObjectMissingError, PreconditionFailedError, StoreError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.serving import VectorPlace
from clipfarm_dagster.ledger.versions import forgotten
from clipfarm_dagster.store import ObjectStore


@dataclass(frozen=True)
class NewVector:
    """A vector on its way to its key."""

    item: WorkItem
    npy: bytes


@dataclass(frozen=True)
class Stored:
    """What became of a vector that was to be stored."""

    item: WorkItem
    """With the row that the ledger has by now: what is to be recorded is derived from it."""
    key: str
    refused: StoreError | None = None
    """The store refuses this key alone."""
    contested: bool = False
    """Others kept writing the key at the same time; it was left to them."""


def store_vectors(
    store: ObjectStore, ledger: Ledger, place: VectorPlace, vectors: Sequence[NewVector]
) -> dict[str, Stored]:
    """Store vectors, and tell by `video_id` what became of each. The caller records the rows.

    Raises:
        StoreError: the store as a whole cannot be read or written.
        LedgerError: the ledger cannot be written.
    """
    keys = _keys(place, vectors)
    stored = {v.item.video_id: Stored(v.item, key) for v, key in zip(vectors, keys, strict=True)}
    new = [vector for vector in vectors if _is_new(vector.item)]
    changed_meanwhile = _put(store, [(vector, None) for vector in new], stored)
    known = [vector for vector in vectors if not _is_new(vector.item)]
    changed_meanwhile += _overwrite(store, ledger, place, known, stored)
    for vector in _overwrite(store, ledger, place, changed_meanwhile, stored):
        video_id = vector.item.video_id
        stored[video_id] = replace(stored[video_id], contested=True)
    return stored


def contested_row(row: LedgerRow) -> LedgerRow:
    """The row of a vector that another machine wrote at the same time, from that of its success: a failure
    that is due at once."""
    return replace(
        forgotten(row),
        status=Status.FAIL,
        error=f"another machine keeps writing {row.artifact_key!r} at the same time; it is embedded again",
        next_attempt_at=None,
    )


def _is_new(item: WorkItem) -> bool:
    return item.previous is None or item.previous.row_version == 0


def _marked(item: WorkItem, version: int | None) -> WorkItem:
    """The item once the ledger says that what lies at its key is unknown."""
    previous = item.previous or LedgerRow(video_id=item.video_id, row_version=0)
    return replace(item, previous=replace(forgotten(previous), row_version=version))


def _keys(place: VectorPlace, vectors: Sequence[NewVector]) -> list[str]:
    known = [vector.item.previous for vector in vectors]
    return place.keys_now(
        [
            (vector.item.video_id, None if row is None else row.artifact_key)
            for vector, row in zip(vectors, known, strict=True)
        ]
    )


def _refused(stored: Stored, error: StoreError) -> Stored:
    # a request that seems to have failed may have been done
    version = 0 if stored.item.previous is None else stored.item.previous.row_version
    return Stored(_marked(stored.item, version), stored.key, refused=error)


def _overwrite(
    store: ObjectStore,
    ledger: Ledger,
    place: VectorPlace,
    vectors: Sequence[NewVector],
    stored: dict[str, Stored],
) -> list[NewVector]:
    """Mark, then write over what was there before; returns those that somebody has changed in between."""
    if not vectors:
        return []
    writable: list[tuple[NewVector, str | None]] = []
    moved: list[NewVector] = []
    keys = _keys(place, vectors)
    seen_objects = store.head_each(keys)
    # Asked again once the objects were seen: if another generation began to serve after that, what it puts
    # there has another ETag than what was seen.
    for vector, key, seen, key_now in zip(vectors, keys, seen_objects, _keys(place, vectors), strict=True):
        video_id = vector.item.video_id
        stored[video_id] = replace(stored[video_id], key=key)
        if isinstance(seen, StoreError):
            stored[video_id] = _refused(stored[video_id], seen)
        elif key != key_now:
            moved.append(vector)
        else:
            writable.append((vector, None if seen is None else seen.etag))
    versions = ledger.mark_overwriting([vector.item.video_id for vector, _ in writable])
    for video_id, version in versions.items():
        stored[video_id] = replace(stored[video_id], item=_marked(stored[video_id].item, version))
    return moved + _put(store, writable, stored)


def _put(
    store: ObjectStore, vectors: Sequence[tuple[NewVector, str | None]], stored: dict[str, Stored]
) -> list[NewVector]:
    """Write each over the version with its ETag; returns those that somebody has changed in between."""
    changed_meanwhile = []
    keys = [stored[vector.item.video_id].key for vector, _ in vectors]
    answers = store.put_each(
        [(key, vector.npy, etag) for key, (vector, etag) in zip(keys, vectors, strict=True)]
    )
    for (vector, _), key, answer in zip(vectors, keys, answers, strict=True):
        video_id = vector.item.video_id
        if isinstance(answer, PreconditionFailedError):
            if not _is_there(store, key, vector.npy):
                changed_meanwhile.append(vector)
        elif isinstance(answer, StoreError):
            stored[video_id] = _refused(stored[video_id], answer)
    return changed_meanwhile


def _is_there(store: ObjectStore, key: str, data: bytes) -> bool:
    """Whether the store holds these very bytes: the vector of an earlier run, or of another machine."""
    try:
        return store.get(key).data == data
    except ObjectMissingError:
        return False
