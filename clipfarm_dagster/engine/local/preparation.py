"""Where raw objects become model input: in worker processes, each item under limits of time and memory.

Foreign bytes meet native decoders here. Whatever they do to a process costs that item alone: the worker is
ended and replaced, and the item's future says why. Small objects that no native code decodes are prepared
right here, at less than the cost of handing them over.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipfarm_dagster.errors import InvalidRawObjectError, PreparationError, WorkersLostError
from clipfarm_dagster.modalities.encoder import Prepared, Preparer
from clipfarm_dagster.modalities.registry import MODALITIES

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

_WORKER_IMPORTS = ("clipfarm_dagster.engine.local.preparation", "pebble")
"""What workers of any modality need."""

LARGE_BYTES = 2**20
"""A larger object is prepared by a worker whatever its stage: it could take what the limits forbid."""

_SECONDS_OF_GRACE = 10


@dataclass(frozen=True)
class Limits:
    """What the preparation of one item may take."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class PreparedItem:
    """What a worker made of an item, and what that took."""

    prepared: Prepared
    seconds: float
    worker_peak_bytes: int
    """Most memory that the worker process has held so far; 0 without one."""


class Preparation:
    """Prepares items, some at a time."""

    def __init__(self, preparer: Preparer, limits: Limits, *, previews: bool) -> None:
        self._preparer, self._limits, self._previews = preparer, limits, previews

    def submit(self, raw: bytes, metadata: Mapping[str, str]) -> Future[PreparedItem]:
        """Prepare one item; `result` gives what its future holds.

        Raises:
            WorkersLostError: there are no workers to do it.
        """
        future: Future[PreparedItem] = Future()
        try:
            future.set_result(prepare_item(self._preparer, raw, metadata, self._previews, None))
        except Exception as error:  # handed to whoever takes the result
            future.set_exception(error)
        return future

    def finish(self) -> None:
        """Let the workers go, now that all items are prepared; they end while the model goes on."""

    def result(self, future: Future[PreparedItem]) -> PreparedItem:
        """What a finished future holds.

        Raises:
            InvalidRawObjectError: the raw object is at fault.
            PreparationError: it took too long or too much memory, killed its process, or the decoder raised.
            WorkersLostError: no item is at fault; its worker was lost before it began.
        """
        from pebble import ProcessExpired

        try:
            return future.result()
        except InvalidRawObjectError:
            raise
        except TimeoutError:
            limit = f"CLIPFARM_ITEM_TIMEOUT_SECONDS={self._limits.seconds:g}"
            raise PreparationError(f"preparation took more than {limit} and was stopped") from None
        except MemoryError:
            limit = f"CLIPFARM_MAX_PREPARE_BYTES={self._limits.memory_bytes}"
            raise PreparationError(f"preparation took more memory than {limit}") from None
        except BrokenExecutor as error:
            raise _workers_lost(error) from error
        except ProcessExpired as error:
            raise PreparationError(f"preparation killed its process (exit code {error.exitcode})") from None
        except Exception as error:  # whatever a codec raises costs this item alone
            raise PreparationError(f"{type(error).__name__}: {error}") from error


class _PoolPreparation(Preparation):
    def __init__(
        self, preparer: Preparer, limits: Limits, *, previews: bool, workers: int, isolated: bool
    ) -> None:
        super().__init__(preparer, limits, previews=previews)
        from pebble import ProcessPool

        self._isolated = isolated
        self.pool = ProcessPool(max_workers=workers, context=_fork_server())

    def submit(self, raw: bytes, metadata: Mapping[str, str]) -> Future[PreparedItem]:
        if not self._isolated and len(raw) <= LARGE_BYTES:
            return super().submit(raw, metadata)
        args = (self._preparer, raw, dict(metadata), self._previews, self._limits)
        try:
            future: Future[PreparedItem] = self.pool.schedule(
                prepare_item, args=args, timeout=self._limits.seconds
            )
        except RuntimeError as error:  # what Pebble raises for a pool that has broken
            raise _workers_lost(error) from error
        return future

    def finish(self) -> None:
        self.pool.stop()  # type: ignore[no-untyped-call]


def _workers_lost(error: Exception) -> WorkersLostError:
    return WorkersLostError(
        f"the worker processes that prepare items are lost ({error}); if the machine ran out of memory, set"
        " CLIPFARM_WORKERS to a lower number"
    )


def start_workers_early() -> None:
    """Start importing what workers need, in the background."""
    from multiprocessing import forkserver

    _fork_server()
    forkserver.ensure_running()


@contextmanager
def preparation(
    preparer: Preparer, limits: Limits, *, workers: int, previews: bool = False, isolated: bool = True
) -> Iterator[Preparation]:
    """A preparation for the time of a block, in `workers` processes, which are started for the first item
    that needs one: any item if `isolated`, else a large one."""
    pooled = _PoolPreparation(preparer, limits, previews=previews, workers=workers, isolated=isolated)
    try:
        yield pooled
    finally:
        pooled.finish()
        pooled.pool.join()


def prepare_item(
    preparer: Preparer, raw: bytes, metadata: Mapping[str, str], preview: bool, limits: Limits | None
) -> PreparedItem:
    """Prepare one item. Worker processes call this, with limits."""
    start = time.monotonic()
    with nullcontext() if limits is None else _limited(limits):
        prepared = preparer(raw, metadata, preview=preview)
    peak = 0 if limits is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return PreparedItem(prepared, time.monotonic() - start, peak)


@contextmanager
def _limited(limits: Limits) -> Iterator[None]:
    """Limit what this process may take, for the time of a block.

    Not for longer: a worker that runs out of memory while it reads its next item from the pipe that all share
    leaves the rest of it there, which the others would take for items of theirs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limits.memory_bytes if hard == resource.RLIM_INFINITY else min(limits.memory_bytes, hard)
    # the pool ends what takes too long; a worker whose main process was killed has nobody left to end it
    signal.setitimer(signal.ITIMER_REAL, limits.seconds + _SECONDS_OF_GRACE)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _fork_server() -> ForkServerContext:
    """Makes workers as forks of a process that has imported what they need and done nothing else.

    They share that memory. A fork of the main process could hang, since that runs threads; a new interpreter
    each would take a second to start, and twice the memory.
    """
    context = multiprocessing.get_context("forkserver")
    of_modalities = {name for modality in MODALITIES.values() for name in modality.worker_imports}
    context.set_forkserver_preload([*_WORKER_IMPORTS, *sorted(of_modalities)])
    return context
