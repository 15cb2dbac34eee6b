"""What happens to one item on its way from raw object to vector, step by step.

Plain functions that write nothing, neither to the store nor to the ledger: any engine calls them, on whatever
machine, and gives their results to a `Recorder`, which settles them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.engine.options import EngineOptions
from clipfarm_dagster.engine.outcomes import ItemResult, OutcomeKind
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.errors import (
    InvalidRawObjectError,
    ObjectMissingError,
    PreparationError,
    StoreError,
)
from clipfarm_dagster.ledger.rows import WorkItem, same_bytes_stand, vector_stands
from clipfarm_dagster.modalities.encoder import Prepared
from clipfarm_dagster.store import ObjectInfo, ObjectStore, StoredObject
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Fetched:
    """An item whose raw object was read and needs a new vector; its bytes travel beside it."""

    item: WorkItem
    raw_etag: str
    raw_sha256: str


@dataclass(frozen=True)
class Ready:
    """An item that the model can take."""

    fetched: Fetched
    prepared: Prepared
    seconds: float
    """Seconds of preparation."""


# which items need no work


def find_up_to_date(
    items: Sequence[WorkItem],
    contract: Contract,
    store: ObjectStore,
    keys: Keys,
    progress: Progress,
    *,
    force: bool = False,
) -> list[ItemResult]:
    """Results of the items whose stored vector is right, by their raw object's ETag; no object is fetched.

    Args:
        force: only of those that cannot be made anew, since their raw object is gone.

    Raises:
        StoreUnavailableError: the store as a whole cannot be read.
    """
    candidates = [
        item
        for item in items
        if item.previous is not None and item.previous.vector_contract_id == contract.id
    ]
    if not candidates:
        return []
    with progress.timed("fetch"):
        infos = store.head_each([keys.raw(contract.stage, item.video_id) for item in candidates])
    results = (
        check_up_to_date(item, contract, info)
        for item, info in zip(candidates, infos, strict=True)
        if info is None or not force
    )
    return [result for result in results if result is not None]


def check_up_to_date(
    item: WorkItem, contract: Contract, info: ObjectInfo | StoreError | None
) -> ItemResult | None:
    """The result of an item whose stored vector is right by what the store says of its raw object; else None.

    Without a raw object the vector of a success stays right.
    """
    if isinstance(info, StoreError):
        return None
    previous, etag = item.previous, None if info is None else info.etag
    if previous is None or not vector_stands(previous, contract.id, item.metadata_hash, etag):
        return None
    etag = previous.raw_etag or "" if etag is None else etag
    return ItemResult(video_id=item.video_id, kind=OutcomeKind.UP_TO_DATE, raw_etag=etag)


# fetching


def fetch_each(
    items: Sequence[WorkItem],
    contract: Contract,
    store: ObjectStore,
    keys: Keys,
    options: EngineOptions,
    progress: Progress,
    *,
    ahead: int,
    wake_seconds: float,
) -> Generator[tuple[Fetched, bytes] | ItemResult | None]:
    """Fetch raw objects, at most `ahead` before they are taken, and look at the bytes of each as it comes.

    Gives what is to be prepared, with its bytes; the result of an item that is settled by then; and None
    whenever nothing has come for `wake_seconds`.

    Raises:
        StoreUnavailableError: the store as a whole cannot be read.
    """
    by_key = {keys.raw(contract.stage, item.video_id): item for item in items}
    limit = options.object_limit(contract.stage)
    objects = store.get_each(
        list(by_key),
        max_concurrency=ahead,
        max_bytes=limit[0],
        timeout_seconds=options.fetch_timeout_seconds,
        wake_seconds=wake_seconds,
    )
    with closing(objects):
        while True:
            try:
                with progress.timed("fetch"):
                    came = next(objects)
            except StopIteration:
                return
            if came is None:
                yield None
                continue
            key, answer = came
            item = by_key[key]
            if isinstance(answer, ObjectMissingError):
                yield missing(item)
            elif isinstance(answer, StoreError):
                yield unreadable(item, store.listed_etag(key) or "", answer)
            else:
                seen = look_at(item, contract, answer, limit, force=options.force)
                yield (seen, answer.data) if isinstance(seen, Fetched) else seen


def missing(item: WorkItem) -> ItemResult:
    """The result of an item that has work to do but no raw object."""
    return ItemResult(video_id=item.video_id, kind=OutcomeKind.MISSING)


def unreadable(item: WorkItem, raw_etag: str, error: StoreError) -> ItemResult:
    """The result of an item whose raw object alone cannot be read; `raw_etag` is what a listing tells."""
    problem = f"the raw object cannot be read, while others can: {error.problem}"
    return _failed(Fetched(item, raw_etag, ""), problem)


def look_at(
    item: WorkItem,
    contract: Contract,
    stored: StoredObject,
    limit: tuple[int, str],
    *,
    force: bool = False,
) -> Fetched | ItemResult:
    """What was fetched, or the result of an item that is settled by its bytes alone.

    Args:
        limit: most bytes that the object may have, and the setting that says so; a larger one comes
            without its data.
        force: whether the vector is made anew, even of the bytes that it was made of.
    """
    max_bytes, setting = limit
    size = stored.info.size
    fetched = Fetched(item, stored.info.etag, hashlib.sha256(stored.data).hexdigest())
    if size > max_bytes:
        return _failed(
            fetched, f"the raw object has {size} bytes, more than {setting}={max_bytes}", invalid=True
        )
    if not force and same_bytes_stand(item.previous, contract.id, item.metadata_hash, fetched.raw_sha256):
        return ItemResult(video_id=item.video_id, kind=OutcomeKind.SAME_BYTES, raw_etag=fetched.raw_etag)
    return fetched


# preparation and inference


def not_prepared(fetched: Fetched, error: InvalidRawObjectError | PreparationError) -> ItemResult:
    """The result of an item whose raw object could not be made into model input."""
    return _failed(fetched, str(error), invalid=isinstance(error, InvalidRawObjectError))


def inferred(ready: Ready, made: np.ndarray[Any, Any] | Exception, seconds: float) -> ItemResult:
    """The result of an item that went through the model: its vector, or what the model raised for it.

    Args:
        seconds: of inference.
    """
    fetched = ready.fetched
    if isinstance(made, InvalidRawObjectError):
        return _failed(fetched, str(made), invalid=True, used_model=True)
    if isinstance(made, Exception):
        return _failed(fetched, f"the model failed: {type(made).__name__}: {made}", used_model=True)
    return ItemResult(
        video_id=fetched.item.video_id,
        kind=OutcomeKind.EMBEDDED,
        raw_etag=fetched.raw_etag,
        raw_sha256=fetched.raw_sha256,
        vector=made,
        used_model=True,
        seconds=ready.seconds + seconds,
        note=ready.prepared.note,
        preview=ready.prepared.preview,
    )


def _failed(fetched: Fetched, error: str, *, invalid: bool = False, used_model: bool = False) -> ItemResult:
    return ItemResult(
        video_id=fetched.item.video_id,
        kind=OutcomeKind.FAILED,
        raw_etag=fetched.raw_etag,
        raw_sha256=fetched.raw_sha256,
        error=error,
        invalid=invalid,
        used_model=used_model,
    )
