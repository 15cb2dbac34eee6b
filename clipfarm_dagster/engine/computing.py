"""Where items become results: on this machine here, on many in `distributed`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from clipfarm_dagster.engine.local.flow import pipeline
from clipfarm_dagster.engine.local.preparation import start_workers_early
from clipfarm_dagster.engine.node_kind import NodeWork
from clipfarm_dagster.engine.options import EngineOptions
from clipfarm_dagster.engine.outcomes import ItemResult
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.errors import ModelDiffersError
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import MODALITIES
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract


class Computing(Protocol):
    """What the engine calls to have items computed. It writes neither to the store nor to the ledger."""

    def begin(
        self, contract: Contract, store: ObjectStore, keys: Keys, options: EngineOptions, progress: Progress
    ) -> None:
        """Have a model of `contract` ready, for items whose raw objects lie in `store`.

        Raises:
            ModelUnavailableError: there is none.
            DriftError: it no longer makes the vectors that it made before.
        """

    def compute(
        self,
        items: Sequence[WorkItem],
        *,
        give: Callable[[ItemResult], None],
        meanwhile: Callable[[], None],
        every_seconds: float,
    ) -> None:
        """Compute items, once, after `begin`.

        Args:
            give: is called in this thread, once with the result of each item, in any order.
            meanwhile: is called in this thread about every `every_seconds` at least.

        Raises:
            StoreUnavailableError: the store as a whole cannot be read.
            WorkersLostError: the processes that prepare items end by themselves.
            ModelUnavailableError: the device fails.
        """

    def end(self) -> None:
        """Let go of what `begin` has taken. Also called where `begin` or `compute` has failed."""


class LocalComputing:
    """Computes in this process and worker processes of its own.

    Args:
        kind: tells this machine's kind (see `node_kind`) once the encoder is loaded.
    """

    def __init__(self, load_encoder: Callable[[], Encoder], kind: Callable[[], str] = lambda: "") -> None:
        self._load_encoder, self._kind = load_encoder, kind

    def begin(
        self, contract: Contract, store: ObjectStore, keys: Keys, options: EngineOptions, progress: Progress
    ) -> None:
        """Load the encoder; see `Computing`."""
        if MODALITIES[contract.stage].isolated:
            start_workers_early()
        self._store, self._keys, self._options, self._progress = store, keys, options, progress
        self._encoder = self._load_encoder()
        check_contract(self._encoder, contract)

    def compute(
        self,
        items: Sequence[WorkItem],
        *,
        give: Callable[[ItemResult], None],
        meanwhile: Callable[[], None],
        every_seconds: float,
    ) -> None:
        """Compute items; see `Computing`."""
        computed, begun = 0, time.monotonic()

        def count(result: ItemResult) -> None:
            nonlocal computed
            computed += result.used_model
            give(result)

        with pipeline(self._encoder, self._options, self._progress, most_threads=len(items)) as local:
            local.compute(
                items,
                self._store,
                self._keys,
                self._progress,
                give=count,
                meanwhile=meanwhile,
                every_seconds=every_seconds,
                last=True,
            )
        self._progress.work[""] = NodeWork(self._kind(), computed, time.monotonic() - begun)

    def end(self) -> None:
        """Nothing is kept; the encoder belongs to whoever loads it."""


def check_contract(encoder: Encoder, contract: Contract) -> None:
    """Refuse an encoder that makes other vectors than those asked for.

    Raises:
        ModelDiffersError: its contract is another one.
    """
    if encoder.contract.id != contract.id:
        differences = ", ".join(contract.differences(encoder.contract))
        raise ModelDiffersError(
            f"the {contract.stage} model that was loaded makes vectors of contract {encoder.contract.id},"
            f" and this run is for contract {contract.id} (they differ in {differences}); the model or"
            " its settings changed meanwhile: start the run again"
        )
