"""One stage of the engine over a real store, ledger and model, as the engine's tests use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipfarm_dagster.engine.computing import Computing
from clipfarm_dagster.engine.engine import EngineOptions, LocalComputing, Progress, embed_items
from clipfarm_dagster.engine.outcomes import Outcome, OutcomeKind
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import RetryPolicy, WorkItem
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.hashing import metadata_hash
from clipfarm_dagster.vectors.npy import from_npy

KEYS = Keys()
OPTIONS = EngineOptions(
    workers=2,
    item_timeout_seconds=60,
    max_object_bytes=2**20,
    retry=RetryPolicy(max_attempts=3, wait_seconds=60),
)


@dataclass
class Begun:
    """Computes as another one does, and counts how often that has begun."""

    inner: Computing
    count: Callable[[], None]

    def begin(self, *arguments: Any) -> None:
        self.count()
        self.inner.begin(*arguments)

    def compute(self, items: Sequence[WorkItem], **named: Any) -> None:
        self.inner.compute(items, **named)

    def end(self) -> None:
        self.inner.end()


@dataclass
class Bench:
    """One stage's store and ledger, and what runs over them did."""

    encoder: Encoder
    store: ObjectStore
    ledger: Ledger
    options: EngineOptions = OPTIONS
    recorded: list[Outcome] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    """Ids that were recorded together."""
    loads: int = 0
    computing: Callable[[Callable[[], Encoder]], Computing] = LocalComputing
    """Makes what computes a run; one on a cluster does not load the encoder of this process."""

    @property
    def stage(self) -> Stage:
        return self.encoder.contract.stage

    def put(self, raw: Mapping[str, bytes]) -> None:
        for video_id, data in raw.items():
            self.store.put(KEYS.raw(self.stage, video_id), data)

    def items(self, video_ids: Sequence[str]) -> list[WorkItem]:
        previous = self.ledger.rows(video_ids)
        return [
            WorkItem(
                video_id,
                {"title": f"Title of {video_id}"},
                metadata_hash([]),
                "2026-01-01T00:00:00.000000Z",
                previous.get(video_id),
            )
            for video_id in video_ids
        ]

    def run(self, video_ids: Sequence[str], *, contract: Contract | None = None, **options: Any) -> Progress:
        def begun() -> None:
            self.loads += 1

        return embed_items(
            self.items(video_ids),
            contract=contract or self.encoder.contract,
            computing=Begun(self.computing(lambda: self.encoder), begun),
            store=self.store,
            keys=KEYS,
            ledger=self.ledger,
            options=replace(self.options, **options),
            on_recorded=self.remember,
        )

    def remember(self, outcomes: Sequence[Outcome]) -> None:
        self.recorded.extend(outcomes)
        self.batches.append([outcome.row.video_id for outcome in outcomes])

    def row(self, video_id: str) -> LedgerRow:
        return self.ledger.rows([video_id])[video_id]

    def vector(self, video_id: str) -> np.ndarray[Any, Any]:
        return from_npy(self.store.get(KEYS.embedding(self.stage, video_id)).data)

    def kinds(self) -> dict[str, OutcomeKind]:
        """OutcomeKind of each recorded outcome; no item has two."""
        ids = [outcome.row.video_id for outcome in self.recorded]
        assert len(set(ids)) == len(ids)
        return {outcome.row.video_id: outcome.kind for outcome in self.recorded}


@contextmanager
def bench(encoder: Encoder, store: ObjectStore, folder: Path) -> Iterator[Bench]:
    """An empty stage over `store`, its ledger in `folder`."""
    ledger = Ledger.open(encoder.contract.stage, state_url="", sqlite_path=folder / "ledger.sqlite")
    yield Bench(encoder, store, ledger)
    ledger.close()


def transcripts(count: int) -> dict[str, bytes]:
    """Raw text artifacts, all different."""
    return {f"clip-{n:03}": b'{"transcript": "number %d"}' % n for n in range(count)}
