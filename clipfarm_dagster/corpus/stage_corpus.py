"""One stage of a corpus under one contract: what needs work in it, and why."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from clipfarm_dagster.catalog.metadata import LatestRows, rows_for, split_points
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import WorkItem, gone_row, missing_row, standing_row, unknown_success
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.ledger.serving import Serving, ServingRecord, VectorPlace
from clipfarm_dagster.modalities.registry import settings_for, stage_contract
from clipfarm_dagster.planning.coverage import COVERAGE_COLUMNS, Coverage, coverage
from clipfarm_dagster.planning.delta import DELTA_COLUMNS, StagePlan, plan_stage
from clipfarm_dagster.planning.explain import Explanation, explain, explain_erased
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import pyarrow as pa

LISTINGS_AT_ONCE = 2
"""How many raw listings are in memory at the same time while stages are planned together: one of a million
objects takes, with what it is joined to, a quarter of a gigabyte."""


@dataclass(eq=False)
class StageCorpus:
    """One stage of a corpus under one contract, its ledger open (see `Corpus.stage`)."""

    stage: Stage
    settings: Settings
    store: ObjectStore
    ledger: Ledger
    """The rows of this contract's generation."""
    given_contract: Contract | None = None
    """The contract, if it is not the one that the settings ask for."""
    record: ServingRecord | None = None
    """What says which generation serves; without it, this one does."""
    serving: Serving | None = None
    """What it said when the stage was opened."""
    serving_id: str | None = None
    """Contract id of the generation that serves; None if this one does whatever is said."""

    @property
    def keys(self) -> Keys:
        """The keys in the store."""
        return self.settings.keys

    @cached_property
    def wanted(self) -> Contract:
        """The contract that the settings ask for. Loads no model.

        Raises:
            SettingsError: the revision is a branch or tag, and CLIPFARM_FROZEN forbids those.
            ModelUnavailableError: the checkpoint cannot be found, or its branch not be looked up.
        """
        return stage_contract(self.stage, self.settings)

    @cached_property
    def contract(self) -> Contract:
        """The contract of this generation; raises what `wanted` raises where it is that one."""
        return self.wanted if self.given_contract is None else self.given_contract

    @property
    def model_settings(self) -> Settings:
        """The settings by which this generation's model is loaded.

        Raises:
            ModelUnavailableError: it cannot be had any more.
        """
        return settings_for(self.contract, self.settings)

    @property
    def place(self) -> VectorPlace:
        """Where vectors of this generation are written."""
        return VectorPlace(self.keys, self.stage, self.contract.id, self.record, self.serving)

    @property
    def serves(self) -> bool:
        """Whether this generation served when the stage was opened."""
        return self.serving_id in (None, self.contract.id)

    def candidate(self) -> StageCorpus | None:
        """The generation that the settings ask for, where this one serves and is another.

        Raises what `wanted` raises.
        """
        return None if self.wanted.id == self.contract.id else self.under(self.wanted)

    def want_again(self) -> None:
        """Let this generation be filled, also if it was dropped before.

        Raises:
            LedgerError: what is said of the generations is damaged.
            StoreError: the store cannot be read or written.
        """
        if self.record is not None and self.serving is not None and self.contract.id in self.serving.dropped:
            self.record.want_again(self.stage, self.contract.id)

    def under(self, contract: Contract) -> StageCorpus:
        """The generation of a contract, over the same ledger."""
        if contract.id == self.contract.id:
            return self
        return replace(self, ledger=self.ledger.of(contract.id), given_contract=contract)

    def coverage(self, latest: LatestRows) -> Coverage:
        """What this generation has of what is served."""
        known = self.serving_id if self.serving is not None else None
        serving = self.ledger.of(known or self.ledger.serving())
        with serving.stream(COVERAGE_COLUMNS) as served, self.ledger.stream(COVERAGE_COLUMNS) as rows:
            return coverage(latest, served, rows, contract_id=self.contract.id, now=datetime.now(UTC))

    def raw_listing(self, latest: LatestRows | None = None) -> pa.Table:
        """The raw objects: columns `key`, `etag`, `size`. With `latest`, many objects are listed in parts at
        the same time."""
        return list_raw_objects(
            self.store, self.keys, self.stage, split_ids=split_points(latest) if latest else ()
        )

    def plan(
        self,
        latest: LatestRows,
        *,
        in_flight: Collection[str] = (),
        limit: int | None = None,
    ) -> StagePlan:
        """What needs work now, and why; lists the store."""
        return self.plan_from(latest, self.raw_listing(latest), in_flight=in_flight, limit=limit)

    def plan_from(
        self,
        latest: LatestRows,
        listing: pa.Table | None,
        *,
        in_flight: Collection[str] = (),
        limit: int | None = None,
    ) -> StagePlan:
        """What needs work by a listing of the raw objects; None takes them as the ledger last saw them."""
        contract_id = self.contract.id
        with self.ledger.stream(DELTA_COLUMNS) as rows:
            return plan_stage(
                self.stage,
                latest,
                listing,
                rows,
                contract_id=contract_id,
                now=datetime.now(UTC),
                in_flight=in_flight,
                limit=limit,
                keys=self.keys,
            )

    def explain(self, video_id: str, latest: LatestRows, in_flight: Collection[str] = ()) -> Explanation:
        """Why one video is in the delta or not, with old and new values.

        Raises:
            InvalidVideoIdError: it is not a `video_id`.
        """
        import pyarrow as pa

        raw = self.store.head(self.keys.raw(self.stage, video_id))
        if self.ledger.erased([video_id]):
            return explain_erased(self.stage, video_id)
        row = self.ledger.rows([video_id]).get(video_id)
        former = None if row is None or row.contract_id is None else self.ledger.contract(row.contract_id)
        texts = [(name, pa.string()) for name in DELTA_COLUMNS]
        return explain(
            self.stage,
            video_id,
            latest,
            pa.table({"key": [raw.key] if raw else [], "etag": [raw.etag] if raw else []}),
            pa.Table.from_pylist([asdict(row)] if row else [], pa.schema(texts)),
            contract=self.contract,
            recorded={former.id: former} if former is not None else {},
            source_columns=self.settings.stage(self.stage).columns(),
            now=datetime.now(UTC),
            in_flight=in_flight,
            keys=self.keys,
        )

    def record_settled(
        self, plan: StagePlan, *, most_missing: int | None = None, most_restored: int | None = None
    ) -> list[LedgerRow]:
        """Record what a plan settles without any run: raw objects that are missing, vectors that are right
        again, or that nobody can make anew. Returns the rows of those that are right. The limits take the
        newest."""
        now = datetime.now(UTC)
        missing = plan.missing.slice(0, most_missing).to_pylist()
        restored = plan.restored.slice(0, most_restored).to_pylist()
        previous = self.ledger.rows(row["video_id"] for row in (*missing, *restored))

        def item(row: Mapping[str, str | datetime]) -> WorkItem:
            video_id, captured_at = str(row["video_id"]), row["captured_at"]
            assert isinstance(captured_at, datetime)
            return WorkItem(
                video_id, {}, str(row["metadata_hash"]), timestamp(captured_at), previous.get(video_id)
            )

        restored_rows = [
            standing_row(
                item(row), self.contract, now, source_hash=row["source_hash"], raw_etag=row["raw_etag"]
            )
            for row in restored
        ]
        missing_rows = [
            missing_row(item(row), self.contract, now, raw_key=self.keys.raw(self.stage, row["video_id"]))
            for row in missing
        ]
        if restored_rows or missing_rows:
            self.ledger.record_contract(self.contract)
            erased = self.ledger.record([*restored_rows, *missing_rows])
            restored_rows = [row for row in restored_rows if row.video_id not in erased]
        if plan.gone.num_rows:  # until then no manifest would be made
            gone = self.ledger.rows(plan.gone["video_id"].to_pylist()).values()
            self.ledger.replace([(row, gone_row(row, now)) for row in gone if unknown_success(row)])
        return restored_rows

    def orphans(self, latest: LatestRows) -> set[str]:
        """Ids that the ledger knows and the metadata no longer has."""
        known = self.ledger.columns(["video_id"])["video_id"].to_pylist()
        return set(known).difference(latest.video_ids())

    def work_items(self, video_ids: Sequence[str], latest: LatestRows) -> list[WorkItem]:
        """What a run needs to know of some videos; those that the metadata does not have are left out."""
        rows = rows_for(latest, video_ids)
        previous = self.ledger.rows(rows)
        return [
            WorkItem(
                video_id,
                rows[video_id],
                rows[video_id][f"{self.stage}_metadata_hash"],
                rows[video_id]["captured_at"],
                previous.get(video_id),
            )
            for video_id in dict.fromkeys(video_ids)
            if video_id in rows
        ]


def list_raw_objects(
    store: ObjectStore, keys: Keys, stage: Stage, *, split_ids: Sequence[str] = ()
) -> pa.Table:
    """The raw objects of a stage: columns `key`, `etag`, `size`. Of many objects, those between two of
    `split_ids` are listed at the same time (see `split_points`)."""
    folder = keys.raw_folder(stage)
    return store.list(folder, split_at=[folder + video_id for video_id in split_ids])


def plan_stages(
    stages: Mapping[Stage, StageCorpus],
    latest: LatestRows,
    *,
    in_flight: Mapping[Stage, Collection[str]] | None = None,
    limit: int | None = None,
    listing: Callable[[Stage], pa.Table | None] | None = None,
    deadline: float = math.inf,
) -> dict[Stage, StagePlan]:
    """The plans of several stages, made at the same time.

    Args:
        listing: gives a stage's raw objects when the stage is planned; None from it takes them as the ledger
            last saw them. By default the store is listed.
        deadline: by `time.monotonic`; stages whose turn comes later are left out.
    """
    listings = BoundedSemaphore(LISTINGS_AT_ONCE)

    def plan(one: StageCorpus) -> StagePlan | None:
        with contextlib.ExitStack() as held:
            held.enter_context(listings)
            if time.monotonic() > deadline:
                return None
            raw_objects = one.raw_listing(latest) if listing is None else listing(one.stage)
            if raw_objects is None:
                held.close()
            ids = (in_flight or {}).get(one.stage, ())
            return one.plan_from(latest, raw_objects, in_flight=ids, limit=limit)

    with ThreadPoolExecutor(len(Stage)) as pool:
        plans = zip(stages, pool.map(plan, stages.values()), strict=True)
        return {stage: made for stage, made in plans if made is not None}
