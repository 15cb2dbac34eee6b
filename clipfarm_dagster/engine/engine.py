"""The engine's one entry: brings the vectors of some items of one stage up to date, and records each outcome.

`steps` says what happens to one item until its result is known. A `Computing` runs the steps, overlapping and
with bounded memory: on this machine (`local`), or on many (`distributed`). `recorder` settles the results:
vector, ledger row, event. Each item has its own outcome, also where the store refuses one object alone. A
store that fails as a whole, or a ledger, stops the run: nothing is recorded that did not happen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clipfarm_dagster.engine.computing import Computing, LocalComputing
from clipfarm_dagster.engine.options import EngineOptions
from clipfarm_dagster.engine.outcomes import ItemResult, Outcome, Settlement
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.engine.recorder import Recorder
from clipfarm_dagster.engine.steps import find_up_to_date
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.ledger.serving import VectorPlace
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract

__all__ = ["EngineOptions", "LocalComputing", "Progress", "embed_items"]

RECORD_EVERY_ITEMS = 32
RECORD_EVERY_SECONDS = 5.0
"""Finished items wait for no longer than this before they are stored and recorded. A crash repeats them, and
those of the batch that is being recorded."""


def embed_items(
    items: Sequence[WorkItem],
    *,
    contract: Contract,
    computing: Computing,
    store: ObjectStore,
    keys: Keys,
    ledger: Ledger,
    options: EngineOptions,
    on_recorded: Callable[[Sequence[Outcome]], None],
    place: VectorPlace | None = None,
    progress: Progress | None = None,
) -> Progress:
    """Bring the vectors of `items` up to date and record each item's outcome.

    `on_recorded` gets batches of outcomes that the ledger holds already. An interrupt, or a store that stays
    away, ends the run after what has begun in the model is finished and recorded. `computing` begins only if
    there is something to embed, and before anything is written. `place` says where vectors are put; by
    default under `embeddings/`.

    Raises:
        ModelUnavailableError: there is no model of the contract; nothing was written.
        DriftError: it no longer makes the vectors that it made before; nothing was written.
        StoreError: the store stays away.
        WorkersLostError: the processes that prepare items end by themselves.
        LedgerError: the ledger cannot be written.
    """
    progress = progress or Progress(len(items))
    recorder = Recorder(
        Settlement(contract, keys, options.retry),
        store,
        ledger,
        place or VectorPlace(keys, contract.stage, contract.id),
        on_recorded,
        progress,
        every_items=RECORD_EVERY_ITEMS,
        every_seconds=RECORD_EVERY_SECONDS,
    )
    remaining = {item.video_id: item for item in items}

    def settle(result: ItemResult) -> None:
        recorder.add(remaining.pop(result.video_id), result)

    try:
        up_to_date = find_up_to_date(items, contract, store, keys, progress, force=options.force)
        work = len(remaining) > len(up_to_date)
        if work:
            computing.begin(contract, store, keys, options, progress)
        ledger.record_contract(contract)
        for result in up_to_date:
            settle(result)
        if work:
            computing.compute(
                list(remaining.values()),
                give=settle,
                meanwhile=recorder.write_if_due,
                every_seconds=RECORD_EVERY_SECONDS,
            )
    finally:
        try:
            computing.end()
        finally:
            recorder.close()
    return progress
