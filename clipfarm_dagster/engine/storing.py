"""Puts vectors under their keys so that no ledger, of whatever machine, claims what is not there.

A vector is written only over the version of the object that was seen before the ledger said, for all machines
to read, that what lies there is unknown from now on. So whoever was about to write the same key either finds
it changed, and does not write, or finds its own claim forgotten. A key at which there was nothing needs no
mark: it is only ever created.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Store vectors, and tell by `video_id` what became of each; the answer lacks those of erased videos, of
    which nothing is stored. The caller records the rows by `record_stored`.

    Raises:
        StoreError: the store as a whole cannot be read or written.
        LedgerError: the ledger cannot be written.
    """
    erased = ledger.erased(vector.item.video_id for vector in vectors)
    vectors = [vector for vector in vectors if vector.item.video_id not in erased]
    stored = {vector.item.video_id: Stored(vector.item, "") for vector in vectors}
    new = [vector for vector in vectors if _is_new(vector.item)]
    known = [vector for vector in vectors if not _is_new(vector.item)]
    changed_meanwhile = _store_once(store, ledger, place, new, known, stored)
    for vector in _store_once(store, ledger, place, [], changed_meanwhile, stored):
        video_id = vector.item.video_id
        stored[video_id] = replace(stored[video_id], contested=True)
    return stored


def record_stored(
    store: ObjectStore, ledger: Ledger, rows: Sequence[LedgerRow], stored: Mapping[str, Stored]
) -> set[str]:
    """Record rows, with those of vectors that were `stored` for them. Nothing is recorded of videos that were
    erased meanwhile, and their vectors are removed again; returns their ids.

    Raises:
        StoreError: the store cannot be read or written.
        LedgerError: the ledger cannot be written.
    """
    erased = ledger.record(rows)
    for video_id in erased & stored.keys():
        store.delete(stored[video_id].key)
    return erased


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


def _asked(vectors: Sequence[NewVector]) -> list[tuple[str, str | None]]:
    """Each vector as `VectorPlace` is asked for it."""
    items = [vector.item for vector in vectors]
    return [(item.video_id, item.previous.artifact_key if item.previous else None) for item in items]


def _refused(stored: Stored, error: StoreError) -> Stored:
    # a request that seems to have failed may have been done
    version = 0 if stored.item.previous is None else stored.item.previous.row_version
    return Stored(_marked(stored.item, version), stored.key, refused=error)


def _store_once(
    store: ObjectStore,
    ledger: Ledger,
    place: VectorPlace,
    new: Sequence[NewVector],
    known: Sequence[NewVector],
    stored: dict[str, Stored],
) -> list[NewVector]:
    """Create the new ones; mark the others, then write over what was there before. Returns those that
    somebody has changed in between, or that go elsewhere by now."""
    vectors = [*new, *known]
    if not vectors:
        return []
    looked_at = place.keys_seen(_asked(known))
    seen_objects = store.head_each(looked_at)
    # Asked once the objects were seen: if another generation begins to serve after that, what it puts there
    # has another ETag than what was seen.
    for vector, key in zip(vectors, place.keys_now(_asked(vectors)), strict=True):
        video_id = vector.item.video_id
        stored[video_id] = replace(stored[video_id], key=key)
    left = _put(store, [(vector, None) for vector in new], stored)
    writable: list[tuple[NewVector, str | None]] = []
    for vector, key, seen in zip(known, looked_at, seen_objects, strict=True):
        video_id = vector.item.video_id
        if key != stored[video_id].key:
            left.append(vector)
        elif isinstance(seen, StoreError):
            stored[video_id] = _refused(stored[video_id], seen)
        else:
            writable.append((vector, None if seen is None else seen.etag))
    if writable:
        versions = ledger.mark_overwriting([vector.item.video_id for vector, _ in writable])
        for video_id, version in versions.items():
            stored[video_id] = replace(stored[video_id], item=_marked(stored[video_id].item, version))
        for vector, _ in writable:
            if vector.item.video_id not in versions:  # erased meanwhile
                del stored[vector.item.video_id]
        writable = [(vector, etag) for vector, etag in writable if vector.item.video_id in stored]
    return left + _put(store, writable, stored)


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
