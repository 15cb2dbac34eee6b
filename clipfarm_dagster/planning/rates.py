"""How fast nodes of each kind were, as runs have recorded it in the store.

One object a stage, contract and kind of node. Each run adds what its nodes have done; the further back, the
less it counts. Of two runs that end in the same moment one may not be counted.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Protocol

from clipfarm_dagster.errors import ObjectMissingError
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.timestamps import timestamp

REMEMBERED_ITEMS = 10_000
"""Earlier runs count as if they had computed no more items than this."""


class Work(Protocol):
    """What one node has done in a run (see `engine.node_kind`)."""

    @property
    def kind(self) -> str:
        """Which kind of node it is; empty where that is not known."""

    @property
    def computed(self) -> int:
        """Items that went through its model."""

    @property
    def seconds(self) -> float:
        """How long it was there to compute."""


@dataclass(frozen=True)
class Rate:
    """How fast one node of a kind was."""

    kind: str
    items: float
    """How many items, of late, it is known from."""
    seconds: float
    """How long one node computed them."""
    recorded_at: str

    @property
    def per_second(self) -> float:
        """Items a second of one node."""
        return self.items / self.seconds

    def after(self, items: float, seconds: float, recorded_at: str) -> Rate:
        """The rate with some work more."""
        weight = min(1.0, REMEMBERED_ITEMS / self.items)
        return Rate(self.kind, self.items * weight + items, self.seconds * weight + seconds, recorded_at)


def read_rates(store: ObjectStore, keys: Keys, stage: Stage, contract_id: str) -> list[Rate]:
    """The rates that are recorded of a contract, that of most items first.

    Raises:
        StoreError: the store cannot be read.
    """
    folder = keys.rates_folder(stage, contract_id)
    rates = [Rate(**json.loads(store.get(key).data)) for key in store.list(folder)["key"].to_pylist()]
    return sorted(rates, key=lambda rate: (-rate.items, rate.kind))


def record_work(
    store: ObjectStore, keys: Keys, stage: Stage, contract_id: str, work: Collection[Work]
) -> float | None:
    """Add what nodes have done in a run to what is recorded.

    Returns:
        Seconds that the run was to take by what was recorded before it; None where a kind was not known.

    Raises:
        StoreError: the store cannot be read or written.
    """
    now = timestamp(datetime.now(UTC))
    before: dict[str, Rate | None] = {}
    for kind in {one.kind for one in work if one.kind and one.computed}:
        key = keys.rate(stage, contract_id, kind)
        known = before[kind] = _read(store, key)
        items = sum(one.computed for one in work if one.kind == kind)
        seconds = sum(one.seconds for one in work if one.kind == kind)
        rate = Rate(kind, items, seconds, now) if known is None else known.after(items, seconds, now)
        store.put(key, json.dumps(asdict(rate), indent=1).encode())
    together = [known.per_second for one in work if (known := before.get(one.kind)) is not None]
    if not together or len(together) < len(work):
        return None
    return sum(one.computed for one in work) / sum(together)


def _read(store: ObjectStore, key: str) -> Rate | None:
    try:
        return Rate(**json.loads(store.get(key).data))
    except ObjectMissingError:
        return None
