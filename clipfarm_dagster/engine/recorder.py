"""Stores vectors and records outcomes, in batches, while the model goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from clipfarm_dagster.engine.outcomes import ItemResult, Outcome, Settlement
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.engine.storing import NewVector, record_stored, store_vectors
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.ledger.serving import VectorPlace
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.vectors.npy import to_npy

ERASED = "erased"
"""What items are counted as whose videos were erased meanwhile: nothing is recorded of them."""


@dataclass(frozen=True)
class _InHand:
    item: WorkItem
    result: ItemResult
    finished: datetime


class Recorder:
    """Settles what was computed. The order of effects for each item: vector, ledger row, then `on_recorded`.
    Items whose videos were erased meanwhile have none.

    What fails on the way is raised by a later call. Of that batch nothing is recorded that did not happen,
    and those after it are left unwritten: where the store is away, each would wait for it as the first did.
    """

    def __init__(
        self,
        settlement: Settlement,
        store: ObjectStore,
        ledger: Ledger,
        place: VectorPlace,
        on_recorded: Callable[[Sequence[Outcome]], None],
        progress: Progress,
        *,
        every_items: int,
        every_seconds: float,
    ) -> None:
        self._settlement, self._store, self._ledger, self._place = settlement, store, ledger, place
        self._on_recorded, self._progress = on_recorded, progress
        self._every_items, self._every_seconds = every_items, every_seconds
        self._hand: list[_InHand] = []
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._writing: deque[Future[None]] = deque()
        self._failed = False

    def add(self, item: WorkItem, result: ItemResult) -> None:
        """Take what became of an item; the caller gives one result for each."""
        if not self._hand:
            self._since = time.monotonic()
        self._hand.append(_InHand(item, result, datetime.now(UTC)))
        self._progress.model_calls += result.used_model
        self.write_if_due()

    def write_if_due(self) -> None:
        """Begin to write what is in hand, if that is enough or has waited for long enough."""
        if len(self._hand) >= self._every_items or time.monotonic() - self._since > self._every_seconds:
            self._flush()
        while len(self._writing) > 1 or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()

    def close(self) -> None:
        """Write what is in hand and wait until all is written."""
        self._flush()
        try:
            while self._writing:
                self._writing.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def _flush(self) -> None:
        if self._hand:
            self._writing.append(self._thread.submit(self._write, self._hand))
        self._hand = []

    def _write(self, batch: Sequence[_InHand]) -> None:
        if self._failed:
            return
        try:
            self._write_in_order(batch)
        except BaseException:
            self._failed = True
            raise

    def _write_in_order(self, batch: Sequence[_InHand]) -> None:
        vectors = [
            NewVector(done.item, to_npy(done.result.vector))
            for done in batch
            if done.result.vector is not None
        ]
        with self._progress.timed("store"):
            stored = store_vectors(self._store, self._ledger, self._place, vectors)
        outcomes = [
            self._settlement.outcome(done.item, done.result, done.finished, stored.get(done.item.video_id))
            for done in batch
            if done.result.vector is None or done.item.video_id in stored
        ]
        with self._progress.timed("ledger"):
            rows = [outcome.row for outcome in outcomes]
            erased = record_stored(self._store, self._ledger, rows, stored)
        outcomes = [outcome for outcome in outcomes if outcome.row.video_id not in erased]
        statuses = [str(outcome.row.status) for outcome in outcomes]
        for status in [*statuses, *[ERASED] * (len(batch) - len(outcomes))]:
            self._progress.outcomes[status] = self._progress.outcomes.get(status, 0) + 1
        with self._progress.timed("report"):
            self._on_recorded(outcomes)
