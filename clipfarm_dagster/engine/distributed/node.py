"""What runs on a node: a model and its worker processes, which turn items into results for whoever asks.

Nothing here writes to the store or the ledger. So a node that was cut off and comes back cannot put an old
vector over a newer one.
"""

from __future__ import annotations

import math
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from clipfarm_dagster.engine.distributed.facts import NodeFacts
from clipfarm_dagster.engine.outcomes import ItemResult, OutcomeKind
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.errors import ClipFarmError, ModelUnavailableError, PreparationError
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys

if TYPE_CHECKING:
    from clipfarm_dagster.engine.options import EngineOptions
    from clipfarm_dagster.modalities.encoder import Encoder
    from clipfarm_dagster.vectors.contract import Contract

BATCH_ITEMS = 32
BATCH_SECONDS = 1.0
"""Results travel in batches of so many, or as many as come in this time."""

_PROBE_ITEMS = 4
_PROBE_GROWTH = 8


@dataclass(frozen=True)
class NodeModel:
    """A model that is ready on a node."""

    encoder: Encoder
    environment_id: str
    environment: str
    """The environment as JSON."""
    canary: Mapping[str, float | None] | None = None
    """How far each step of the canary lies from the baseline; None where it was not compared now."""


@dataclass(frozen=True)
class NodeSetup:
    """What a node needs in order to compute; travels to it once."""

    contract: Contract
    load: Callable[[], NodeModel]
    """Loads the model and checks it. Called on the node, so it is found there by its name."""
    store_url: str
    keys: Keys
    options: EngineOptions
    """With 0 workers, a node has one for each of its cores."""
    cores: int
    """Processor cores that the node's process may use."""


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself before it computes anything."""

    host: str
    facts: NodeFacts
    environment_id: str = ""
    environment: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)
    """How many of its processes or threads work on a step."""
    canary: Mapping[str, float | None] | None = None
    """As in `NodeModel`."""
    problem: ClipFarmError | None = None
    """Why it cannot compute."""


@dataclass(frozen=True)
class Batch:
    """Results of some items, and what the node has spent since its last batch."""

    results: Sequence[ItemResult]
    seconds: Mapping[str, float] = field(default_factory=dict)
    worker_peak_bytes: int = 0
    problem: ClipFarmError | None = None
    """What ended the lease before all of its items had a result."""


class EmbeddingNode:
    """The actor. Its constructor never raises: Ray would start it again and again.

    Args:
        owns_process: whether the process is there for it alone.
    """

    def __init__(self, setup: NodeSetup, *, owns_process: bool = True) -> None:
        if owns_process:  # torch and OpenMP read it when they are first imported; Ray sets it to 1
            os.environ["OMP_NUM_THREADS"] = str(setup.cores)
        self._setup, facts = setup, NodeFacts.of_this_process()
        self._stack = ExitStack()
        self._progress, self._sent = Progress(0), _Sent()
        host = socket.gethostname()
        try:
            self._start()
        except Exception as error:
            self._report = NodeReport(host, facts, problem=_as_problem(error))
        else:
            model = self._model
            widths = self._progress.widths
            self._report = NodeReport(
                host, facts, model.environment_id, model.environment, widths, model.canary
            )

    def report(self) -> NodeReport:
        """What the node is, or why it cannot compute."""
        return self._report

    def compute(self, items: Sequence[WorkItem]) -> Iterator[Batch]:
        """Results of items, each once, as they come."""
        yield from self._compute_from(self._store, items)

    def probe(self, raw: bytes, metadata: Mapping[str, str], seconds: float) -> float:
        """Items a second, of one input computed again and again for about so long. Nothing is fetched: its
        copies lie in a folder of this node.

        Raises:
            PreparationError: the input could not be computed.
        """
        with tempfile.TemporaryDirectory() as folder:
            store, count = ObjectStore.open(folder), _PROBE_ITEMS
            self._compute_copies(store, raw, metadata, count)  # the first ones of all are slow
            while (took := self._compute_copies(store, raw, metadata, count)) < seconds / 2:
                count = math.ceil(count * min(_PROBE_GROWTH, seconds / took))
            return count / took

    def _compute_copies(
        self, store: ObjectStore, raw: bytes, metadata: Mapping[str, str], count: int
    ) -> float:
        """Seconds that so many copies of an input take."""
        stage, keys = self._setup.contract.stage, self._setup.keys
        items = [WorkItem(f"probe-{n}", metadata, "", "") for n in range(count)]
        store.put_many([(keys.raw(stage, item.video_id), raw) for item in items])
        begun = time.monotonic()
        for batch in self._compute_from(store, items):
            failed = [result for result in batch.results if result.kind != OutcomeKind.EMBEDDED]
            if batch.problem or failed:
                raise PreparationError(f"the probe failed: {batch.problem or failed[0].error}")
        return time.monotonic() - begun

    def close(self) -> None:
        """End the processes and threads; for whoever does not end the whole process."""
        self._stack.close()

    def _compute_from(self, store: ObjectStore, items: Sequence[WorkItem]) -> Iterator[Batch]:
        results: queue.SimpleQueue[ItemResult | _Ended] = queue.SimpleQueue()
        threading.Thread(target=self._compute, args=(store, items, results), daemon=True).start()
        hand: list[ItemResult] = []
        since = time.monotonic()
        while True:
            try:
                came = results.get(timeout=BATCH_SECONDS / 4)
            except queue.Empty:
                came = None
            if isinstance(came, ItemResult):
                hand.append(came)
            ended = came if isinstance(came, _Ended) else None
            waited = time.monotonic() - since > BATCH_SECONDS
            if ended is not None or (hand and (waited or len(hand) >= BATCH_ITEMS)):
                yield self._batch(hand, ended.problem if ended else None)
                hand, since = [], time.monotonic()
            if ended is not None:
                return

    def _start(self) -> None:
        from clipfarm_dagster.engine.computing import check_contract
        from clipfarm_dagster.engine.local.flow import pipeline
        from clipfarm_dagster.engine.local.preparation import start_workers_early
        from clipfarm_dagster.modalities.registry import MODALITIES

        setup = self._setup
        if MODALITIES[setup.contract.stage].isolated:
            start_workers_early()
        self._options = replace(setup.options, workers=setup.options.workers or setup.cores)
        self._store = ObjectStore.open(setup.store_url)
        self._model = setup.load()
        check_contract(self._model.encoder, setup.contract)
        self._pipeline = self._stack.enter_context(
            pipeline(self._model.encoder, self._options, self._progress, most_threads=setup.cores)
        )

    def _compute(
        self,
        store: ObjectStore,
        items: Sequence[WorkItem],
        results: queue.SimpleQueue[ItemResult | _Ended],
    ) -> None:
        try:
            self._pipeline.compute(
                items,
                store,
                self._setup.keys,
                self._progress,
                give=results.put,
                meanwhile=lambda: None,
                every_seconds=BATCH_SECONDS,
                last=False,
            )
        except BaseException as error:
            results.put(_Ended(_as_problem(error)))
        else:
            results.put(_Ended(None))

    def _batch(self, results: Sequence[ItemResult], problem: ClipFarmError | None) -> Batch:
        return Batch(results, self._sent.new(self._progress), self._progress.worker_peak_bytes, problem)


@dataclass(frozen=True)
class _Ended:
    problem: ClipFarmError | None


class _Sent:
    """The seconds that were sent already; leases at the same time share them."""

    def __init__(self) -> None:
        self._sent: dict[str, float] = {}
        self._lock = threading.Lock()

    def new(self, progress: Progress) -> dict[str, float]:
        with self._lock:
            now = dict(progress.seconds)
            new = {step: seconds - self._sent.get(step, 0.0) for step, seconds in now.items()}
            self._sent = now
            return new


def _as_problem(error: BaseException) -> ClipFarmError:
    if isinstance(error, ClipFarmError):
        return error
    return ModelUnavailableError(f"{type(error).__name__}: {error}")
