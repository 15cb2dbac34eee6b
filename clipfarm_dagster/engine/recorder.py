"""Stores vectors and records outcomes, in batches, while the model goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from clipfarm_dagster.engine.outcomes import Outcome
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.engine.storing import StoredVectors, store_vectors
from clipfarm_dagster.errors import StoreError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.versions import forgotten
from clipfarm_dagster.store import ObjectStore

_InHand = tuple[Outcome, bytes | None, Callable[[StoreError], Outcome] | None]


class Recorder:
    """Takes finished items. The order of effects for each is vector, ledger row, then `on_recorded`.

    What fails on the way is raised by a later call. Of that batch nothing is recorded that did not happen,
    and those after it are left unwritten: where the store is away, each would wait for it as the first did.
    """

    def __init__(
        self,
        store: ObjectStore,
        ledger: Ledger,
        on_recorded: Callable[[Sequence[Outcome]], None],
        progress: Progress,
        *,
        every_items: int,
        every_seconds: float,
    ) -> None:
        self._store, self._ledger, self._on_recorded, self._progress = store, ledger, on_recorded, progress
        self._every_items, self._every_seconds = every_items, every_seconds
        self._hand: list[_InHand] = []
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._writing: deque[Future[None]] = deque()
        self._failed = False

    def add(
        self,
        outcome: Outcome,
        npy: bytes | None = None,
        *,
        if_refused: Callable[[StoreError], Outcome] | None = None,
    ) -> None:
        """Take a finished item, with its vector's file where it has a new one, and what its outcome is if the
        store does not take this file alone."""
        if not self._hand:
            self._since = time.monotonic()
        self._hand.append((outcome, npy, if_refused))
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
        vectors = [(outcome.row, npy) for outcome, npy, _ in batch if npy is not None]
        with self._progress.timed("store"):
            stored = store_vectors(self._store, self._ledger, vectors)
        outcomes = [_as_stored(outcome, if_refused, stored) for outcome, _, if_refused in batch]
        with self._progress.timed("ledger"):
            self._ledger.record([outcome.row for outcome in outcomes])
        for outcome in outcomes:
            status = str(outcome.row.status)
            self._progress.outcomes[status] = self._progress.outcomes.get(status, 0) + 1
        with self._progress.timed("report"):
            self._on_recorded(outcomes)


def _as_stored(
    outcome: Outcome, if_refused: Callable[[StoreError], Outcome] | None, stored: StoredVectors
) -> Outcome:
    """What became of an item once its vector was to be stored.

    Raises:
        StoreError: the store refused it, which `if_refused` has no answer to.
    """
    row = stored.rows.get(outcome.row.video_id, outcome.row)
    error = stored.refused.get(row.video_id)
    if error is None:
        return outcome.with_row(row)
    if if_refused is None:
        raise error
    refused = if_refused(error)
    # a request that seems to have failed may have been done
    return refused.with_row(replace(forgotten(refused.row), row_version=row.row_version))
