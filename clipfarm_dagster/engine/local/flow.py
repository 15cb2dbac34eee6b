"""Moves items between fetching, preparation and model on one machine. `steps` says what happens to them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from typing import Any

from clipfarm_dagster.engine import steps
from clipfarm_dagster.engine.local.inference import Inferred, ModelThreads
from clipfarm_dagster.engine.local.preparation import Limits, Preparation, PreparedItem, preparation
from clipfarm_dagster.engine.options import EngineOptions, cores
from clipfarm_dagster.engine.outcomes import ItemResult
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.engine.steps import Fetched, Ready
from clipfarm_dagster.errors import InvalidRawObjectError, PreparationError
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import MODALITIES
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys

_WAKE_SECONDS = 1.0
"""While nothing comes from the store, what is done is looked after so often."""

_SMALL_OBJECTS_AHEAD = 32
"""Text is fetched further ahead than media, of which a few fill the memory."""

_GPU_STREAMS = 2


class Pipeline:
    """The processes and threads through which items become results, for as many lots of items as there are.

    Threads may each compute a lot at the same time: they share the model, whose batches are then of one lot.
    """

    def __init__(
        self,
        encoder: Encoder,
        prepare: Preparation,
        model: ModelThreads,
        options: EngineOptions,
        threads: int,
    ) -> None:
        self.prepare, self.model = prepare, model
        self._encoder, self._options, self._threads = encoder, options, threads

    def compute(
        self,
        items: Sequence[WorkItem],
        store: ObjectStore,
        keys: Keys,
        progress: Progress,
        *,
        give: Callable[[ItemResult], None],
        meanwhile: Callable[[], None],
        every_seconds: float,
        last: bool,
    ) -> None:
        """Fetch, prepare and infer items, overlapping, with bounded memory; writes nothing.

        Args:
            give: is called in this thread with the result of each item as it comes; while it blocks, nothing
                new is begun.
            meanwhile: is called in this thread about every `every_seconds` at least.
            last: whether no other items follow, so that the processes that prepare them may end while the
                model still works.

        Raises:
            StoreUnavailableError: the store as a whole cannot be read.
            WorkersLostError: the processes that prepare items end by themselves.
            ModelUnavailableError: the device fails.
        """
        isolated = MODALITIES[self._encoder.contract.stage].isolated
        flow = LocalFlow(
            self.prepare,
            self.model,
            progress,
            most_preparing=2 * self._options.workers,
            most_inferring=2 * self._threads,
            give=give,
            meanwhile=meanwhile,
            every_seconds=every_seconds,
        )
        fetching = steps.fetch_each(
            items,
            self._encoder.contract,
            store,
            keys,
            self._options,
            progress,
            ahead=self._options.workers if isolated else _SMALL_OBJECTS_AHEAD,
            wake_seconds=min(_WAKE_SECONDS, every_seconds),
        )
        try:
            with closing(fetching):
                for came in fetching:
                    flow.take_fetched(came)
            flow.finish_preparing()
            if last:
                self.prepare.finish()
            flow.finish_inferring()
        except BaseException:
            self.model.close()  # what has begun is finished, and given below
            raise
        finally:
            flow.give_inferred()


@contextmanager
def pipeline(
    encoder: Encoder, options: EngineOptions, progress: Progress, *, most_threads: int
) -> Iterator[Pipeline]:
    """A pipeline for the time of a block.

    Args:
        most_threads: on the CPU, no more threads than this run the model.
    """
    limits = Limits(options.item_timeout_seconds, options.max_prepare_bytes)
    threads = max(1, min(cores(), most_threads)) if encoder.device == "cpu" else _GPU_STREAMS
    model = ModelThreads(encoder, threads=threads, progress=progress)
    isolated = MODALITIES[encoder.contract.stage].isolated
    progress.widths = {"prepare": options.workers if isolated else 1, "infer": threads}
    with preparation(
        encoder.preparer, limits, workers=options.workers, previews=options.previews, isolated=isolated
    ) as prepare:
        try:
            yield Pipeline(encoder, prepare, model, options, threads)
        finally:
            model.close()


class LocalFlow:
    """Items on their way through preparation and model; never more than fit into some batches."""

    def __init__(
        self,
        prepare: Preparation,
        model: ModelThreads,
        progress: Progress,
        *,
        most_preparing: int,
        most_inferring: int,
        give: Callable[[ItemResult], None],
        meanwhile: Callable[[], None],
        every_seconds: float,
    ) -> None:
        self._prepare, self._model, self._progress = prepare, model, progress
        self._most_preparing, self._most_inferring = most_preparing, most_inferring
        self._give, self._meanwhile, self._every_seconds = give, meanwhile, every_seconds
        self._preparing: dict[Future[PreparedItem], Fetched] = {}
        self._groups: dict[Hashable, list[Ready]] = {}
        self._inferring: dict[Future[Inferred], Sequence[Ready]] = {}

    def take_fetched(self, came: tuple[Fetched, bytes] | ItemResult | None) -> None:
        """Take what `steps.fetch_each` gives; blocks while there is no room for it."""
        if came is None:
            self._go_on()
        elif isinstance(came, ItemResult):
            self._give(came)
        else:
            fetched, raw = came
            self._preparing[self._prepare.submit(raw, fetched.item.metadata)] = fetched
            self._advance(timeout=0)
            while (
                len(self._preparing) >= self._most_preparing or len(self._inferring) >= self._most_inferring
            ):
                self._advance()

    def finish_preparing(self) -> None:
        """Wait until all that was taken is prepared."""
        while self._preparing:
            self._advance()

    def finish_inferring(self) -> None:
        """Put all that is prepared through the model."""
        while self._groups:
            self._infer_next_group()
            while len(self._inferring) >= self._most_inferring:
                self._advance()
        while self._inferring:
            self._advance()

    def give_inferred(self) -> None:
        """Give the results of the batches that the model has finished."""
        for future in [future for future in self._inferring if future.done()]:
            group = self._inferring.pop(future)
            if not future.cancelled() and future.exception() is None:
                self._give_group(group, future.result())

    def _go_on(self) -> None:
        """Go on with what is here while nothing new comes: what is finished is not kept waiting."""
        self._advance(timeout=0)
        while self._groups and not self._preparing and len(self._inferring) < self._most_inferring:
            self._infer_next_group()

    def _advance(self, timeout: float | None = None) -> None:
        """Wait until something is done, and hand it on."""
        waiting: list[Future[Any]] = [*self._preparing, *self._inferring]
        timeout = self._every_seconds if timeout is None else timeout
        done, _ = wait(waiting, timeout, return_when=FIRST_COMPLETED)
        for future in done & self._preparing.keys():
            self._take_prepared(self._preparing.pop(future), future)
        self._infer_full_groups()
        for batch_future in done & self._inferring.keys():
            self._give_group(self._inferring.pop(batch_future), batch_future.result())
        self._meanwhile()

    def _take_prepared(self, fetched: Fetched, future: Future[PreparedItem]) -> None:
        try:
            made = self._prepare.result(future)
        except (InvalidRawObjectError, PreparationError) as error:
            self._give(steps.not_prepared(fetched, error))
        else:
            self._progress.add("prepare", made.seconds)
            self._progress.worker_peak_bytes = max(self._progress.worker_peak_bytes, made.worker_peak_bytes)
            ready = Ready(fetched, made.prepared, made.seconds)
            self._groups.setdefault(made.prepared.batch_key, []).append(ready)

    def _infer_full_groups(self) -> None:
        """Infer every group that fills a batch; where too much waits in small groups, the largest of them."""
        size = self._model.batch_size.current
        for key in [key for key, group in self._groups.items() if len(group) >= size]:
            self._infer(self._groups.pop(key))
        while sum(map(len, self._groups.values())) > 4 * size:
            self._infer(self._groups.pop(max(self._groups, key=lambda key: len(self._groups[key]))))

    def _infer_next_group(self) -> None:
        self._infer(self._groups.pop(next(iter(self._groups))))

    def _infer(self, group: Sequence[Ready]) -> None:
        self._inferring[self._model.submit([ready.prepared for ready in group])] = group

    def _give_group(self, group: Sequence[Ready], inferred: Inferred) -> None:
        seconds = inferred.seconds / len(group)
        for ready, made in zip(group, inferred.vectors, strict=True):
            self._give(steps.inferred(ready, made, seconds))
