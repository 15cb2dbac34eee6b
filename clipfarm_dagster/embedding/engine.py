"""The engine of one stage: fetch → prepare → infer → store → record, overlapping, with bounded memory.

One thread fetches ahead, worker processes prepare, the calling thread runs the model, one thread stores and
records. Each item has its own outcome; the order of effects for an item is vector, ledger row, then
whatever `on_recorded` does with it. A store or ledger that fails stops the run: nothing is recorded that did
not happen.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.catalog.hashing import source_hash
from clipfarm_dagster.catalog.keys import Keys
from clipfarm_dagster.embedding.contract import Contract
from clipfarm_dagster.embedding.encoder import Encoder, Prepared, Preparer
from clipfarm_dagster.embedding.outcomes import (
    Kind,
    Outcome,
    RetryPolicy,
    WorkItem,
    failure_row,
    missing_row,
    standing_row,
    success_row,
)
from clipfarm_dagster.embedding.vectors import to_npy, vector_sha256
from clipfarm_dagster.errors import InvalidRawObjectError, ObjectMissingError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.store import ObjectStore, StoredObject

if TYPE_CHECKING:
    import numpy as np

RECORD_EVERY_ITEMS = 64
RECORD_EVERY_SECONDS = 5.0
"""Finished items wait for no longer than this before they are stored and recorded; a crash repeats them."""


@dataclass(frozen=True)
class EngineOptions:
    """Limits and sizes of one run of the engine."""

    workers: int
    item_timeout_seconds: float
    max_object_bytes: int
    retry: RetryPolicy
    previews: bool = False

    @classmethod
    def from_settings(cls, settings: Settings, *, previews: bool = False) -> EngineOptions:
        """The options that the settings ask for."""
        return cls(
            workers=settings.workers or len(os.sched_getaffinity(0)),
            item_timeout_seconds=settings.item_timeout_seconds,
            max_object_bytes=settings.max_object_bytes,
            retry=RetryPolicy(settings.max_attempts, settings.retry_seconds),
            previews=previews,
        )


@dataclass(eq=False)
class Progress:
    """Running account of one run; read it at any time."""

    total: int
    started: float = field(default_factory=time.monotonic)
    outcomes: dict[str, int] = field(default_factory=dict)
    """Finished items by ledger status."""
    model_calls: int = 0
    """Items that went through the model."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by step; steps overlap, and `prepare` adds up over worker processes."""

    @property
    def done(self) -> int:
        """Items that have their outcome recorded."""
        return sum(self.outcomes.values())

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of a block to a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(step, time.monotonic() - start)

    def add(self, step: str, seconds: float) -> None:
        """Add seconds to a step."""
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def line(self) -> str:
        """One line for a person: done, failed, rate, time left."""
        done, elapsed = self.done, self.elapsed
        failed = sum(n for status, n in self.outcomes.items() if status in _FAILED)
        text = f"{done}/{self.total} done, {failed} failed"
        if done and elapsed > 0:
            left = (self.total - done) * elapsed / done
            text += f", {done / elapsed:.1f} a second, {left:.0f} s left"
        if self.seconds:
            text += f", slowest step: {max(self.seconds, key=self.seconds.__getitem__)}"
        return text


_FAILED = {Status.FAIL, Status.INVALID_RAW_OBJECT, Status.QUARANTINED}


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
    away, ends the run after what was finished has been recorded. `load_encoder` is called only where there is
    something to embed, and before anything is written.

    Raises:
        ModelUnavailableError: from `load_encoder`; nothing was written.
        StoreError: the store stays away.
        LedgerError: the ledger cannot be written.
    """
    run = _Run(contract, store, keys, ledger, options, on_recorded, progress or Progress(len(items)))
    standing = run.find_up_to_date(items)
    settled = {outcome.row.video_id for outcome in standing}
    remaining = [item for item in items if item.video_id not in settled]
    encoder = load_encoder() if remaining else None
    ledger.record_contract(contract)
    with run.recording():
        for outcome in standing:
            run.recorder.add(outcome)
        if encoder is not None:
            run.embed(remaining, encoder)
    return run.progress


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
        ledger: Ledger,
        options: EngineOptions,
        on_recorded: Callable[[Sequence[Outcome]], None],
        progress: Progress,
    ) -> None:
        self.contract, self.store, self.keys, self.ledger = contract, store, keys, ledger
        self.options, self.on_recorded, self.progress = options, on_recorded, progress
        self.stage = contract.stage
        self.recorder = _Recorder(self)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records what is finished at the end, however the block ends."""
        try:
            yield
        finally:
            self.recorder.close()

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
        with self.progress.timed("fetch"), ThreadPoolExecutor(16) as pool:
            infos = list(pool.map(self.store.head, raw_keys))
        outcomes = []
        for (item, previous), info in zip(candidates, infos, strict=True):
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
        self.encoder = encoder
        by_key = {self.keys.raw(self.stage, item.video_id): item for item in items}
        groups: dict[Hashable, list[_Ready]] = {}
        with _preparation(encoder.preparer, self.options) as prepare:
            waiting: dict[Future[tuple[Prepared, float]], _Fetched] = {}
            for key, answer in self._fetch(list(by_key)):
                item = by_key[key]
                if isinstance(answer, ObjectMissingError):
                    row = missing_row(item, self.contract, datetime.now(UTC), raw_key=key)
                    self.recorder.add(Outcome(Kind.MISSING, row))
                    continue
                fetched = self._look_at(item, answer)
                if fetched is None:
                    continue
                waiting[prepare(answer.data, item.metadata)] = fetched
                if len(waiting) >= 2 * self.options.workers:
                    self._take_prepared(waiting, groups)
                self._infer_full(groups)
            while waiting:
                self._take_prepared(waiting, groups)
                self._infer_full(groups)
        for group in groups.values():
            self._infer(group)

    def _fetch(self, raw_keys: Sequence[str]) -> Iterator[tuple[str, StoredObject | ObjectMissingError]]:
        objects = self.store.get_many(raw_keys, max_concurrency=8)
        while True:
            with self.progress.timed("fetch"):
                answer = next(objects, None)
            if answer is None:
                return
            yield answer

    def _look_at(self, item: WorkItem, stored: StoredObject) -> _Fetched | None:
        """What was fetched, or `None` if the item is settled by its bytes alone."""
        etag = stored.info.etag
        fetched = _Fetched(
            item, hashlib.sha256(stored.data).hexdigest(), etag, source_hash(item.metadata_hash, etag)
        )
        previous = item.previous
        if (
            previous is not None
            and previous.vector_contract_id == self.contract.id
            and previous.vector_metadata_hash == item.metadata_hash
            and previous.vector_raw_sha256 == fetched.raw_sha256
        ):
            self.recorder.add(self._standing(item, etag, Kind.SAME_BYTES))
            return None
        if len(stored.data) > self.options.max_object_bytes:
            limit = self.options.max_object_bytes
            self._fail(
                fetched,
                f"the raw object has {len(stored.data)} bytes, more than CLIPFARM_MAX_OBJECT_BYTES={limit}",
                invalid=True,
            )
            return None
        return fetched

    def _take_prepared(
        self, waiting: dict[Future[tuple[Prepared, float]], _Fetched], groups: dict[Hashable, list[_Ready]]
    ) -> None:
        """Wait until something is prepared, and put it to its equals."""
        from pebble import ProcessExpired

        with self.progress.timed("wait for prepare"):
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in finished:
            fetched = waiting.pop(future)
            try:
                prepared, seconds = future.result()
            except InvalidRawObjectError as error:
                self._fail(fetched, str(error), invalid=True)
            except TimeoutError:
                limit = self.options.item_timeout_seconds
                self._fail(
                    fetched,
                    f"preparation took more than CLIPFARM_ITEM_TIMEOUT_SECONDS={limit:g} and was ended",
                )
            except ProcessExpired as error:
                self._fail(fetched, f"preparation killed its process (exit code {error.exitcode})")
            except Exception as error:  # whatever a codec raises costs this item alone
                self._fail(fetched, f"{type(error).__name__}: {error}")
            else:
                self.progress.add("prepare", seconds)
                groups.setdefault(prepared.batch_key, []).append(_Ready(fetched, prepared, seconds))

    def _infer_full(self, groups: dict[Hashable, list[_Ready]]) -> None:
        """Infer every group that fills a batch; where too much waits in small groups, the largest of them."""
        for key in list(groups):
            if len(groups[key]) >= self.encoder.batch_size:
                self._infer(groups.pop(key))
        while sum(map(len, groups.values())) > 4 * self.encoder.batch_size:
            self._infer(groups.pop(max(groups, key=lambda key: len(groups[key]))))

    def _infer(self, batch: Sequence[_Ready]) -> None:
        import torch

        start = time.monotonic()
        try:
            with self.progress.timed("infer"):
                vectors = self.encoder.encode([ready.prepared for ready in batch])
        except Exception as error:  # one item's failure must not cost its batch
            if len(batch) > 1:
                if isinstance(error, torch.OutOfMemoryError):
                    torch.cuda.empty_cache()
                    self.encoder.batch_size = max(1, self.encoder.batch_size // 2)
                half = len(batch) // 2
                self._infer(batch[:half])
                self._infer(batch[half:])
                return
            self.progress.model_calls += 1
            self._fail(batch[0].fetched, f"the model failed: {type(error).__name__}: {error}")
            return
        self.progress.model_calls += len(batch)
        seconds = (time.monotonic() - start) / len(batch)
        for ready, vector in zip(batch, vectors, strict=True):
            self._succeed(ready, vector, ready.seconds + seconds)

    def _succeed(self, ready: _Ready, vector: np.ndarray[Any, Any], seconds: float) -> None:
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
        self.recorder.add(Outcome(Kind.EMBEDDED, row, ready.prepared.preview), to_npy(vector))

    def _fail(self, fetched: _Fetched, error: str, *, invalid: bool = False) -> None:
        row = failure_row(
            fetched.item,
            self.contract,
            datetime.now(UTC),
            source_hash=fetched.source_hash,
            raw_etag=fetched.raw_etag,
            error=error,
            invalid=invalid,
            policy=self.options.retry,
        )
        self.recorder.add(Outcome(Kind.FAILED, row))


class _Recorder:
    """Stores vectors and records outcomes in batches, on a thread of its own."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._hand: list[tuple[Outcome, bytes | None]] = []
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._writing: deque[Future[None]] = deque()

    def add(self, outcome: Outcome, npy: bytes | None = None) -> None:
        """Take a finished item; raises what an earlier batch's writing raised."""
        self._hand.append((outcome, npy))
        if len(self._hand) >= RECORD_EVERY_ITEMS or time.monotonic() - self._since > RECORD_EVERY_SECONDS:
            self._flush()
            if len(self._writing) > 2:
                self._writing.popleft().result()

    def close(self) -> None:
        """Write what is in hand and wait until all is written."""
        self._flush()
        try:
            while self._writing:
                self._writing.popleft().result()
        finally:
            self._thread.shutdown()

    def _flush(self) -> None:
        if self._hand:
            self._writing.append(self._thread.submit(self._write, self._hand))
        self._hand, self._since = [], time.monotonic()

    def _write(self, batch: Sequence[tuple[Outcome, bytes | None]]) -> None:
        run = self._run
        vectors = [(o.row.artifact_key, npy) for o, npy in batch if npy is not None and o.row.artifact_key]
        with run.progress.timed("store"):
            run.ledger.mark_overwriting([o.row.video_id for o, npy in batch if npy is not None])
            run.store.put_many(vectors)
        outcomes = [outcome for outcome, _ in batch]
        with run.progress.timed("record"):
            run.ledger.record([outcome.row for outcome in outcomes])
            run.on_recorded(outcomes)
        for outcome in outcomes:
            status = str(outcome.row.status)
            run.progress.outcomes[status] = run.progress.outcomes.get(status, 0) + 1


_Prepare = Callable[[bytes, Mapping[str, str]], "Future[tuple[Prepared, float]]"]


@contextmanager
def _preparation(preparer: Preparer, options: EngineOptions) -> Iterator[_Prepare]:
    """A function that prepares an item: in a worker process under a time limit, or right here."""
    if not preparer.isolated:

        def prepare_here(raw: bytes, metadata: Mapping[str, str]) -> Future[tuple[Prepared, float]]:
            future: Future[tuple[Prepared, float]] = Future()
            try:
                future.set_result(prepare_item(preparer, raw, metadata, options.previews))
            except Exception as error:  # handed to whoever takes the result
                future.set_exception(error)
            return future

        yield prepare_here
        return

    from pebble import ProcessPool

    # spawned, not forked: a fork of a process that runs threads can hang
    pool = ProcessPool(max_workers=options.workers, context=multiprocessing.get_context("spawn"))

    def prepare_in_pool(raw: bytes, metadata: Mapping[str, str]) -> Future[tuple[Prepared, float]]:
        future: Future[tuple[Prepared, float]] = pool.schedule(
            prepare_item,
            args=(preparer, raw, dict(metadata), options.previews),
            timeout=options.item_timeout_seconds,
        )
        return future

    try:
        yield prepare_in_pool
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def prepare_item(
    preparer: Preparer, raw: bytes, metadata: Mapping[str, str], preview: bool
) -> tuple[Prepared, float]:
    """Prepare one item; with the seconds that it took. Worker processes call this."""
    start = time.monotonic()
    prepared = preparer(raw, metadata, preview=preview)
    return prepared, time.monotonic() - start
