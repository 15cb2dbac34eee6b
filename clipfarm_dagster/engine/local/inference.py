"""Runs a model on threads of its own, and finds the batch size that suits it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.errors import ModelUnavailableError
from clipfarm_dagster.modalities.encoder import Encoder, Prepared

if TYPE_CHECKING:
    import numpy as np

LARGEST_BATCH = 512
_WORTHWHILE = 1.05
"""A larger batch is kept if it is faster by this factor."""


class BatchSize:
    """The number of items in a batch: fixed, or found by doubling it for as long as that pays."""

    def __init__(self, start: int, *, grows: bool) -> None:
        self.current = start
        self._grows = grows
        self._best, self._best_rate = start, 0.0

    def took(self, items: int, seconds: float) -> None:
        """Learn from a batch that went through."""
        if not self._grows or items < self.current:
            return
        rate = items / max(seconds, 1e-9)
        if rate < self._best_rate * _WORTHWHILE:
            self.current, self._grows = self._best, False
            return
        self._best, self._best_rate = items, rate
        self.current = min(2 * items, LARGEST_BATCH)

    def did_not_fit(self, items: int) -> None:
        """Learn from a batch that was too large for the device's memory."""
        self.current, self._grows = max(1, min(self.current, items // 2)), False


_TRIM_EVERY_ITEMS = 32


@dataclass(frozen=True)
class Inferred:
    """What the model made of a batch."""

    vectors: Sequence[np.ndarray[Any, Any] | Exception]
    """Each item's vector, or what the model raised for it."""
    seconds: float


class ModelThreads:
    """Runs batches through an encoder: on the CPU a batch for each core, on a GPU a stream for each thread,
    so that one's transfers overlap with the other's computing."""

    def __init__(self, encoder: Encoder, *, threads: int, progress: Progress) -> None:
        self.batch_size = BatchSize(encoder.batch_size, grows=encoder.finds_batch_size)
        self._encoder, self._progress = encoder, progress
        self._since_trim = 0
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="model")

    def submit(self, batch: Sequence[Prepared]) -> Future[Inferred]:
        """Run a batch; an item on which the model fails costs the others nothing.

        The future raises ModelUnavailableError where the device itself fails, on which nothing can be made
        any more.
        """
        return self._pool.submit(self._infer, batch)

    def close(self) -> None:
        """Finish the batches that have begun, and cancel those that have not."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._encoder.batch_size = self.batch_size.current

    def _infer(self, batch: Sequence[Prepared]) -> Inferred:
        start = time.monotonic()
        with self._progress.timed("infer"), self._stream():
            vectors = self._encode(batch)
        self._since_trim += len(batch)
        if self._since_trim >= _TRIM_EVERY_ITEMS:
            self._since_trim = 0
            _give_back_free_memory()
        return Inferred(vectors, time.monotonic() - start)

    def _encode(self, batch: Sequence[Prepared]) -> list[np.ndarray[Any, Any] | Exception]:
        import torch

        start = time.monotonic()
        try:
            vectors = list(self._encoder.encode(batch))
        except Exception as error:  # one item's failure must not cost its batch
            if len(batch) == 1 and isinstance(error, torch.AcceleratorError):
                raise ModelUnavailableError(
                    f"the device {self._encoder.device} fails: {error}; start the run again"
                ) from error
            # the frames of its traceback hold what the attempt has put on the device
            failure = error.with_traceback(None)
        else:
            self.batch_size.took(len(batch), time.monotonic() - start)
            return vectors
        if isinstance(failure, torch.OutOfMemoryError):
            self.batch_size.did_not_fit(len(batch))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if len(batch) == 1:
            return [failure]
        half = len(batch) // 2
        return self._encode(batch[:half]) + self._encode(batch[half:])

    def _stream(self) -> contextlib.AbstractContextManager[Any]:
        """This thread's stream, always the same: memory that torch keeps for one stream serves no other."""
        import torch

        if torch.device(self._encoder.device).type != "cuda":
            return contextlib.nullcontext()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._encoder.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._own.stream)


def _give_back_free_memory() -> None:
    """Return to the system what glibc holds of freed memory: items of ever new sizes leave it in shreds, and
    a process would grow with their number. Elsewhere nothing happens."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
