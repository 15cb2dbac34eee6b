"""Which generation of each stage serves: one small object in the store, changed by conditional puts alone.

    {"text": {"contract_id": "…", "since": "2026-01-31T08:00:00.000000Z", "before": null, …}, …}

All machines follow it, so a change of it is the moment of a cut-over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from clipfarm_dagster.errors import (
    LedgerError,
    MigrationError,
    ObjectMissingError,
    PreconditionFailedError,
)
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys

_ATTEMPTS = 20


@dataclass(frozen=True)
class Serving:
    """The generation of one stage that serves, and how far a cut-over is."""

    contract_id: str
    since: str
    before: str | None = None
    """Contract id of the generation that served before."""
    following: str | None = None
    """Contract id of the generation to which a cut-over is under way: what serves is being copied aside."""
    settled: bool = True
    """Whether all of its vectors lie under the keys of `embeddings/`; until then the ledger says where."""
    rolled_back: str | None = None
    """Contract id of the generation from which a person went back; only a person lets it serve again."""
    dropped: tuple[str, ...] = ()
    """Contract ids of generations that were dropped: nothing of them counts or is written any more, by any
    machine."""


class ServingRecord:
    """The object that says which generations serve."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key = store, key

    def read(self) -> dict[Stage, Serving]:
        """The generation that serves, of each stage that has one.

        Raises:
            LedgerError: the object is damaged.
            StoreError: the store cannot be read.
        """
        return self._read()[0]

    def change(self, stage: Stage, change: Callable[[Serving | None], Serving | None]) -> Serving | None:
        """Change what is said of one stage; returns what is said then.

        Args:
            change: from what is said now to what shall be said; the same is not written. Called again where
                another machine has changed it meanwhile.

        Raises:
            LedgerError: the object is damaged, or others keep changing it.
            StoreError: the store cannot be read or written.
        """
        for _ in range(_ATTEMPTS):
            known, etag = self._read()
            now, then = known.get(stage), change(known.get(stage))
            if now == then or then is None:
                return now
            told = {str(name): asdict(serving) for name, serving in {**known, stage: then}.items()}
            data = json.dumps(told, sort_keys=True).encode()
            try:
                self._store.put_if_unchanged(self._key, data, etag)
            except PreconditionFailedError:
                continue
            return then
        raise LedgerError(f"{self._store.url}: {self._key!r} changed {_ATTEMPTS} times meanwhile; try again")

    def want_again(self, stage: Stage, contract_id: str) -> None:
        """Let a generation be filled, also if it was dropped before. Raises what `change` raises."""

        def change(now: Serving | None) -> Serving | None:
            return now and replace(now, dropped=tuple(i for i in now.dropped if i != contract_id))

        self.change(stage, change)

    def _read(self) -> tuple[dict[Stage, Serving], str | None]:
        try:
            stored = self._store.get(self._key)
        except ObjectMissingError:
            return {}, None
        known = {field.name for field in fields(Serving)}
        try:
            told = dict(json.loads(stored.data).items())
            return {
                stage: _serving({name: value for name, value in told[stage].items() if name in known})
                for stage in Stage
                if stage in told
            }, stored.info.etag
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LedgerError(
                f"{self._store.url}: {self._key!r} does not say which generations serve"
                f" ({type(error).__name__}: {error}); restore its content: `contract_id` and `since` by stage"
            ) from None


def _serving(told: dict[str, Any]) -> Serving:
    return Serving(**{**told, "dropped": tuple(told.get("dropped", ()))})


class VectorPlace:
    """Where new vectors of a generation are written.

    Those of the generation that serves lie under `embeddings/`, all others under `generations/`. While a
    cut-over is under way, a vector stays where the ledger says that it lies: one that is copied and written
    at the same time is never in two places with one claim.
    """

    def __init__(
        self,
        keys: Keys,
        stage: Stage,
        contract_id: str,
        record: ServingRecord | None = None,
        seen: Serving | None = None,
    ) -> None:
        """`record` None: the generation serves, whatever happens. `seen`: what it said of late."""
        self._keys, self._stage, self._contract_id, self._record = keys, stage, contract_id, record
        self._seen = seen

    def keys_now(self, vectors: Sequence[tuple[str, str | None]]) -> list[str]:
        """The keys for some vectors, each given as `video_id` and the key at which the ledger says it lies.

        A key holds as long as the same generation serves: whoever looks at what lies at a key has to ask here
        after that, and before writing.

        Raises:
            MigrationError: the generation was dropped.
            StoreError: the store cannot be read.
        """
        if self._record is not None:
            self._seen = self._record.read().get(self._stage)
        if self._seen is not None and self._contract_id in self._seen.dropped:
            raise MigrationError(
                f"the generation {self._contract_id} of {self._stage} vectors was dropped meanwhile, so that"
                " nothing is written to it any more"
            )
        return self.keys_seen(vectors)

    def keys_seen(self, vectors: Sequence[tuple[str, str | None]]) -> list[str]:
        """The keys by what was last known, which may not hold any more; asks nothing."""
        return [self._key(self._seen, video_id, known) for video_id, known in vectors]

    def _key(self, serving: Serving | None, video_id: str, known: str | None) -> str:
        aside = self._keys.generation(self._stage, self._contract_id, video_id)
        if serving is None:
            return self._keys.embedding(self._stage, video_id)
        if serving.contract_id != self._contract_id or serving.following is not None:
            return aside
        if not serving.settled and known == aside:
            return aside
        return self._keys.embedding(self._stage, video_id)
