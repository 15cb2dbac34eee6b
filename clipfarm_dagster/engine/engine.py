"""The engine of one stage: fetch → prepare → infer → store → record, overlapping, with bounded memory.

Threads fetch ahead, worker processes prepare (`preparation`), threads run the model (`inference`), one thread
stores and records (`recorder`); the calling thread hands on from one to the next. Each item has its own
outcome, also where the store refuses one object alone. A store that fails as a whole, or a ledger, stops the
run: nothing is recorded that did not happen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.engine.local.inference import Inferred, ModelThreads
from clipfarm_dagster.engine.local.preparation import (
    Limits,
    Preparation,
    PreparedItem,
    preparation,
    start_workers_early,
)
from clipfarm_dagster.engine.options import EngineOptions, cores
from clipfarm_dagster.engine.outcomes import Kind, Outcome
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.engine.recorder import Recorder
from clipfarm_dagster.errors import (
    InvalidRawObjectError,
    ModelUnavailableError,
    ObjectMissingError,
    PreparationError,
    StoreError,
)
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import WorkItem, failure_row, missing_row, standing_row, success_row
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.modalities.encoder import Encoder, Prepared
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore, StoredObject
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.hashing import source_hash
from clipfarm_dagster.vectors.npy import to_npy, vector_sha256

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EngineOptions", "Progress", "embed_items"]

RECORD_EVERY_ITEMS = 32
RECORD_EVERY_SECONDS = 5.0
"""Finished items wait for no longer than this before they are stored and recorded. A crash repeats them, and
those of the batch that is being recorded."""

_WAKE_SECONDS = 1.0
"""While nothing comes from the store, what is done is looked after so often."""

_SMALL_OBJECTS_AHEAD = 32
"""Text is fetched further ahead than media, of which a few fill the memory."""
_GPU_STREAMS = 2


def embed_items(
    items: Sequence[WorkItem],
    *,
    contract: Contract,
    load_encoder: Callable[[], Encoder],
    store: ObjectStore,
    keys: Keys,
    ledger: Ledger,
    options: EngineOptions,
    on_recorded: Callable[[Sequence[Outcome]], None],
    progress: Progress | None = None,
) -> Progress:
    """Bring the vectors of `items` up to date and record each item's outcome.

    `on_recorded` gets batches of outcomes that the ledger holds already. An interrupt, or a store that stays
    away, ends the run after what has begun in the model is finished and recorded. `load_encoder` is called
    only where there is something to embed, and before anything is written.

    Raises:
        ModelUnavailableError: from `load_encoder`, or its encoder has another contract; nothing was written.
        StoreError: the store stays away.
        WorkersLostError: the processes that prepare items end by themselves.
        LedgerError: the ledger cannot be written.
    """
    progress = progress or Progress(len(items))
    recorder = Recorder(
        store,
        ledger,
        on_recorded,
        progress,
        every_items=RECORD_EVERY_ITEMS,
        every_seconds=RECORD_EVERY_SECONDS,
    )
    run = _Run(contract, store, keys, options, recorder, progress)
    try:
        standing = run.find_up_to_date(items)
        settled = {outcome.row.video_id for outcome in standing}
        remaining = [item for item in items if item.video_id not in settled]
        if remaining and contract.stage != Stage.TEXT:
            start_workers_early()
        encoder = load_encoder() if remaining else None
        if encoder is not None and encoder.contract.id != contract.id:
            differences = ", ".join(contract.differences(encoder.contract))
            raise ModelUnavailableError(
                f"the {contract.stage} model that was loaded makes vectors of contract {encoder.contract.id},"
                f" and this run is for contract {contract.id} (they differ in {differences}); the model or"
                " its settings changed meanwhile: start the run again"
            )
        ledger.record_contract(contract)
        for outcome in standing:
            recorder.add(outcome)
        if encoder is not None:
            run.embed(remaining, encoder)
    finally:
        recorder.close()
    return progress


class _End:
    """What comes after the last object."""


_END = _End()


@dataclass(frozen=True)
class _Fetched:
    item: WorkItem
    raw_sha256: str
    raw_etag: str
    source_hash: str


@dataclass(frozen=True)
class _Ready:
    fetched: _Fetched
    prepared: Prepared
    seconds: float


class _Run:
    def __init__(
        self,
        contract: Contract,
        store: ObjectStore,
        keys: Keys,
        options: EngineOptions,
        recorder: Recorder,
        progress: Progress,
    ) -> None:
        self.contract, self.store, self.keys, self.options = contract, store, keys, options
        self.recorder, self.progress = recorder, progress
        self.stage = contract.stage

    # what needs no work

    def find_up_to_date(self, items: Sequence[WorkItem]) -> list[Outcome]:
        """Outcomes of the items whose stored vector is right, by their raw object's ETag. Writes nothing."""
        candidates = [
            (item, item.previous)
            for item in items
            if item.previous is not None
            and item.previous.vector_contract_id == self.contract.id
            and item.previous.vector_metadata_hash == item.metadata_hash
        ]
        if not candidates:
            return []
        raw_keys = [self.keys.raw(self.stage, item.video_id) for item, _ in candidates]
        with self.progress.timed("fetch"):
            infos = self.store.head_each(raw_keys)
        outcomes = []
        for (item, previous), info in zip(candidates, infos, strict=True):
            if isinstance(info, StoreError):  # fetching it will tell more
                continue
            etag = info.etag if info is not None else previous.raw_etag or ""
            unchanged = source_hash(item.metadata_hash, etag) == previous.vector_source_hash
            if unchanged and (info is not None or previous.status == Status.SUCCESS):
                outcomes.append(self._standing(item, etag, Kind.UP_TO_DATE))
        return outcomes

    def _standing(self, item: WorkItem, etag: str, kind: Kind) -> Outcome:
        row = standing_row(
            item,
            self.contract,
            datetime.now(UTC),
            source_hash=source_hash(item.metadata_hash, etag),
            raw_etag=etag,
        )
        return Outcome(kind, row)

    # what does

    def embed(self, items: Sequence[WorkItem], encoder: Encoder) -> None:
        options = self.options
        limits = Limits(options.item_timeout_seconds, options.max_prepare_bytes)
        threads = min(cores(), len(items)) if encoder.device == "cpu" else _GPU_STREAMS
        model = ModelThreads(encoder, threads=threads, progress=self.progress)
        self.progress.widths = {
            "prepare": options.workers if encoder.preparer.isolated else 1,
            "infer": threads,
        }
        with preparation(
            encoder.preparer, limits, workers=options.workers, previews=options.previews
        ) as prepare:
            flow = _Flow(self, prepare, model, waiting_batches=2 * threads)
            ahead = options.workers if encoder.preparer.isolated else _SMALL_OBJECTS_AHEAD
            try:
                self._feed(flow, items, ahead)
                flow.drain()
            finally:
                model.close()
                flow.take_inferred()

    def _feed(self, flow: _Flow, items: Sequence[WorkItem], ahead: int) -> None:
        by_key = {self.keys.raw(self.stage, item.video_id): item for item in items}
        objects = self.store.get_each(
            list(by_key),
            max_concurrency=ahead,
            max_bytes=self.options.object_limit(self.stage)[0],
            timeout_seconds=self.options.fetch_timeout_seconds,
            wake_seconds=min(_WAKE_SECONDS, RECORD_EVERY_SECONDS),
        )
        with closing(objects):
            while True:
                with self.progress.timed("fetch"):
                    came = next(objects, _END)
                if isinstance(came, _End):
                    return
                if came is None:
                    flow.go_on()
                else:
                    self._take_fetched(flow, by_key[came[0]], *came)

    def _take_fetched(self, flow: _Flow, item: WorkItem, key: str, answer: StoredObject | StoreError) -> None:
        if isinstance(answer, ObjectMissingError):
            row = missing_row(item, self.contract, datetime.now(UTC), raw_key=key)
            self.recorder.add(Outcome(Kind.MISSING, row))
        elif isinstance(answer, StoreError):
            etag = self.store.listed_etag(key) or ""
            unread = _Fetched(item, "", etag, source_hash(item.metadata_hash, etag))
            self.fail(unread, f"the raw object cannot be read, while others can: {answer.problem}")
        elif (fetched := self._look_at(item, answer)) is not None:
            flow.add(fetched, answer.data)

    def _look_at(self, item: WorkItem, stored: StoredObject) -> _Fetched | None:
        """What was fetched, or `None` if the item is settled by its bytes alone."""
        etag, size = stored.info.etag, stored.info.size
        limit, setting = self.options.object_limit(self.stage)
        fetched = _Fetched(
            item, hashlib.sha256(stored.data).hexdigest(), etag, source_hash(item.metadata_hash, etag)
        )
        if size > limit:  # and so without its data
            self.fail(
                fetched,
                f"the raw object has {size} bytes, more than {setting}={limit}",
                invalid=True,
            )
            return None
        previous = item.previous
        if (
            previous is not None
            and previous.vector_contract_id == self.contract.id
            and previous.vector_metadata_hash == item.metadata_hash
            and previous.vector_raw_sha256 == fetched.raw_sha256
        ):
            self.recorder.add(self._standing(item, etag, Kind.SAME_BYTES))
            return None
        return fetched

    def succeed(self, ready: _Ready, vector: np.ndarray[Any, Any], seconds: float) -> None:
        import numpy as np

        fetched = ready.fetched
        row = success_row(
            fetched.item,
            self.contract,
            datetime.now(UTC),
            source_hash=fetched.source_hash,
            raw_etag=fetched.raw_etag,
            raw_sha256=fetched.raw_sha256,
            artifact_key=self.keys.embedding(self.stage, fetched.item.video_id),
            artifact_sha256=vector_sha256(vector),
            embedding_dim=vector.size,
            vector_norm=float(np.linalg.norm(vector.astype(np.float64))),
            seconds=seconds,
            note=ready.prepared.note,
        )
        self.recorder.add(
            Outcome(Kind.EMBEDDED, row, ready.prepared.preview),
            to_npy(vector),
            if_refused=partial(self._refused, fetched),
        )

    def fail(self, fetched: _Fetched, error: str, *, invalid: bool = False) -> None:
        self.recorder.add(Outcome(Kind.FAILED, self._failure_row(fetched, error, invalid=invalid)))

    def _refused(self, fetched: _Fetched, error: StoreError) -> Outcome:
        """The outcome of an item whose vector the store does not take; what it holds now, nobody knows."""
        row = self._failure_row(fetched, f"the vector cannot be stored, while others can: {error.problem}")
        return Outcome(Kind.FAILED, replace(row, vector_source_hash=None, vector_contract_id=None))

    def _failure_row(self, fetched: _Fetched, error: str, *, invalid: bool = False) -> LedgerRow:
        return failure_row(
            fetched.item,
            self.contract,
            datetime.now(UTC),
            source_hash=fetched.source_hash,
            raw_etag=fetched.raw_etag,
            error=error,
            invalid=invalid,
            policy=self.options.retry,
        )


class _Flow:
    """Items on their way through preparation and model; never more than fit into some batches."""

    def __init__(self, run: _Run, prepare: Preparation, model: ModelThreads, *, waiting_batches: int) -> None:
        self._run, self._prepare, self._model = run, prepare, model
        self._waiting_batches = waiting_batches
        self._preparing: dict[Future[PreparedItem], _Fetched] = {}
        self._groups: dict[Hashable, list[_Ready]] = {}
        self._inferring: dict[Future[Inferred], Sequence[_Ready]] = {}

    def add(self, fetched: _Fetched, raw: bytes) -> None:
        """Take one item; blocks while there is no room for it."""
        self._preparing[self._prepare.submit(raw, fetched.item.metadata)] = fetched
        self._step(timeout=0)
        while (
            len(self._preparing) >= 2 * self._run.options.workers
            or len(self._inferring) >= self._waiting_batches
        ):
            self._step()

    def go_on(self) -> None:
        """Go on with what is here while nothing new comes: what is finished is not kept waiting."""
        self._step(timeout=0)
        while self._groups and not self._preparing and len(self._inferring) < self._waiting_batches:
            self._infer(self._groups.pop(next(iter(self._groups))))

    def drain(self) -> None:
        """Finish all items."""
        while self._preparing:
            self._step()
        self._prepare.finish()
        while self._groups:
            self._infer(self._groups.pop(next(iter(self._groups))))
            while len(self._inferring) >= self._waiting_batches:
                self._step()
        while self._inferring:
            self._step()

    def take_inferred(self) -> None:
        """Take the batches that the model has finished."""
        for future in [future for future in self._inferring if future.done()]:
            group = self._inferring.pop(future)
            if not future.cancelled() and future.exception() is None:
                self._settle(group, future.result())

    def _step(self, timeout: float | None = None) -> None:
        """Wait until something is done, and hand it on; finished items are recorded when they are due."""
        waiting: list[Future[Any]] = [*self._preparing, *self._inferring]
        timeout = RECORD_EVERY_SECONDS if timeout is None else timeout
        done, _ = wait(waiting, timeout, return_when=FIRST_COMPLETED)
        for future in done & self._preparing.keys():
            self._take_prepared(self._preparing.pop(future), future)
        self._infer_full_groups()
        for batch_future in done & self._inferring.keys():
            self._settle(self._inferring.pop(batch_future), batch_future.result())
        self._run.recorder.write_if_due()

    def _take_prepared(self, fetched: _Fetched, future: Future[PreparedItem]) -> None:
        run = self._run
        try:
            made = self._prepare.result(future)
        except InvalidRawObjectError as error:
            run.fail(fetched, str(error), invalid=True)
        except PreparationError as error:
            run.fail(fetched, str(error))
        else:
            run.progress.add("prepare", made.seconds)
            run.progress.worker_peak_bytes = max(run.progress.worker_peak_bytes, made.worker_peak_bytes)
            ready = _Ready(fetched, made.prepared, made.seconds)
            self._groups.setdefault(made.prepared.batch_key, []).append(ready)

    def _infer_full_groups(self) -> None:
        """Infer every group that fills a batch; where too much waits in small groups, the largest of them."""
        size = self._model.batch_size.now
        for key in [key for key, group in self._groups.items() if len(group) >= size]:
            self._infer(self._groups.pop(key))
        while sum(map(len, self._groups.values())) > 4 * size:
            self._infer(self._groups.pop(max(self._groups, key=lambda key: len(self._groups[key]))))

    def _infer(self, group: Sequence[_Ready]) -> None:
        self._inferring[self._model.submit([ready.prepared for ready in group])] = group

    def _settle(self, group: Sequence[_Ready], inferred: Inferred) -> None:
        """Record what the model made of a group."""
        self._run.progress.model_calls += len(group)
        seconds = inferred.seconds / len(group)
        for ready, vector in zip(group, inferred.vectors, strict=True):
            if isinstance(vector, InvalidRawObjectError):
                self._run.fail(ready.fetched, str(vector), invalid=True)
            elif isinstance(vector, Exception):
                error = f"the model failed: {type(vector).__name__}: {vector}"
                self._run.fail(ready.fetched, error)
            else:
                self._run.succeed(ready, vector, ready.seconds + seconds)
