"""One installation's corpus: its store, metadata and ledgers, and what needs work in it.

Plain Python over the settings; Dagster's assets and sensor and the command line all work through it.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.catalog.metadata import (
    CHANGED_MEANWHILE,
    LatestRows,
    open_latest_rows,
    read_latest_rows,
    rows_for,
    split_points,
)
from clipfarm_dagster.catalog.source import MetadataSource
from clipfarm_dagster.errors import MetadataError, ObjectMissingError, SettingsError
from clipfarm_dagster.ledger.corpus_id import bind_to_corpus
from clipfarm_dagster.ledger.journal import Journal
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import JournalKeys
from clipfarm_dagster.ledger.rows import WorkItem, missing_row, standing_row
from clipfarm_dagster.ledger.schema import FAILED_STATUSES, LedgerRow, Status
from clipfarm_dagster.ledger.versions import forgotten
from clipfarm_dagster.modalities.registry import stage_contract
from clipfarm_dagster.planning.delta import DELTA_COLUMNS, StagePlan, plan_stage
from clipfarm_dagster.planning.explain import Explanation, explain
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore, StoredObject, local_path
from clipfarm_dagster.store.keys import is_valid_video_id
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.npy import VectorProblem, from_npy, vector_sha256

if TYPE_CHECKING:
    import pyarrow as pa

LISTINGS_AT_ONCE = 2
"""How many raw listings are in memory at the same time while stages are planned together: one of a million
objects takes, with what it is joined to, a quarter of a gigabyte."""


@dataclass(frozen=True)
class Finding:
    """What `Corpus.verify` found of one vector; `problem` is `None` where all is well."""

    video_id: str
    key: str
    """Empty for a `video_id` that is refused, which has no key."""
    processed_at: str | None
    """Of the row that the vector was compared with."""
    problem: str | None


def _vector_problem(row: Mapping[str, Any], answer: StoredObject | ObjectMissingError) -> str | None:
    if isinstance(answer, ObjectMissingError):
        return "there is no such object"
    try:
        vector = from_npy(answer.data, dimension=row["embedding_dim"])
    except VectorProblem as problem:
        return str(problem)
    if row["artifact_sha256"] is not None and vector_sha256(vector) != row["artifact_sha256"]:
        return "another vector than the one that was recorded"
    return None


def _lost_row(row: LedgerRow, now: datetime) -> LedgerRow:
    """A success whose vector is not in the store any more."""
    return replace(forgotten(row), processed_at=timestamp(now))


def _due_row(row: LedgerRow, now: datetime) -> LedgerRow:
    """A failure that is tried again now, as if it were the first time."""
    return replace(
        row,
        status=Status.FAIL,
        retry_count=0,
        next_attempt_at=timestamp(now),
        processed_at=timestamp(now),
    )


class Corpus:
    """The videos of one store, with what is known and what is done."""

    def __init__(self, settings: Settings, store: ObjectStore) -> None:
        self.settings = settings
        self.store = store
        self.keys = settings.keys

    @classmethod
    def open(cls, settings: Settings) -> Corpus:
        """Open the store that the settings name."""
        return cls(settings, ObjectStore.open(settings.store_url))

    @cached_property
    def metadata(self) -> MetadataSource:
        """The metadata CSV: `CLIPFARM_METADATA_URL`, or its default key in the store.

        Raises:
            SettingsError: the URL is none that can be read.
            MetadataError: there is no such folder.
        """
        url = self.settings.metadata_url
        if not url:
            return MetadataSource(self.store, self.keys.metadata())
        if url.startswith("s3://"):
            bucket, _, key = url.removeprefix("s3://").partition("/")
            if not key:
                raise SettingsError(
                    "CLIPFARM_METADATA_URL names a bucket, not an object: s3://bucket/key.csv"
                )
            return MetadataSource(self.store.open_other(f"s3://{bucket}"), key)
        path = local_path(url)
        if path is None:
            raise SettingsError(
                f"CLIPFARM_METADATA_URL ({url.partition('://')[0]}://…) is neither s3://bucket/key.csv, nor"
                " file:///folder/file.csv, nor a path; copy the file to one of these"
            )
        if not path.parent.is_dir():
            raise MetadataError(str(path), "there is no such folder; check CLIPFARM_METADATA_URL")
        return MetadataSource(ObjectStore.open(str(path.parent)), path.name)

    def latest_rows(self) -> LatestRows:
        """The latest metadata row of each video; read anew only when the CSV's ETag changes.

        Raises:
            MetadataError: the CSV is missing or cannot be read; nothing is changed.
            StoreError: the store cannot be read.
        """
        source, cache = self.metadata, self.settings.home / "cache"
        columns = self.settings.source_columns()
        etag = source.etag()
        cached = open_latest_rows(url=source.url, source_columns=columns, cache_dir=cache, etag=etag)
        if cached is not None:
            return cached

        def read(csv: Path, etag: str | None) -> LatestRows:
            return read_latest_rows(csv, url=source.url, source_columns=columns, cache_dir=cache, etag=etag)

        cache.mkdir(parents=True, exist_ok=True)
        if source.path is not None:
            latest = read(source.path, etag)
            if source.etag() != etag:
                latest.path.unlink(missing_ok=True)
                raise MetadataError(source.url, CHANGED_MEANWHILE)
            return latest
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            copy = Path(folder) / "metadata.csv"
            return read(copy, source.store.download(source.key, copy).etag)

    def raw_listing(self, stage: Stage, split_ids: Sequence[str] = ()) -> pa.Table:
        """The raw objects of a stage: columns `key`, `etag`, `size`. Of many objects, those between two of
        `split_ids` are listed at the same time (see `split_points`)."""
        folder = self.keys.raw_folder(stage)
        return self.store.list(folder, split_at=[folder + video_id for video_id in split_ids])

    def raw_listings(self, stages: Collection[Stage], latest: LatestRows) -> dict[Stage, pa.Table]:
        """The raw objects of several stages, listed at the same time."""
        list_stage = partial(self.raw_listing, split_ids=split_points(latest))
        with ThreadPoolExecutor(len(Stage)) as pool:
            return dict(zip(stages, pool.map(list_stage, stages), strict=True))

    def contract(self, stage: Stage) -> Contract:
        """The contract that the settings ask for."""
        return stage_contract(stage, self.settings)

    @contextlib.contextmanager
    def ledger(self, stage: Stage) -> Iterator[Ledger]:
        """A stage's ledger, with all that other machines have added to the store's.

        Raises:
            LedgerError: it cannot be opened, or it belongs to another corpus.
            StoreError: the store cannot be read.
        """
        path = self.settings.home / "state" / f"{stage}_embedding.sqlite"
        ledger = Ledger.open(stage, state_url=self.settings.state_url, sqlite_path=path)
        try:
            bind_to_corpus(ledger, self.store, self.keys.corpus_id())
            if ledger.sqlite_path is not None:
                keys = JournalKeys(self.keys.ledger_snapshot(stage), self.keys.ledger_journal_folder(stage))
                ledger.journal = Journal(ledger, self.store, keys, prove=partial(self._prove, ledger))
                ledger.journal.take_in()
            yield ledger
        finally:
            ledger.close()

    def _prove(self, ledger: Ledger) -> None:
        """Make work of every vector that is not what the ledger claims."""
        self.repair(ledger, self.verify(ledger))

    def plan(
        self,
        stage: Stage,
        latest: LatestRows,
        ledger: Ledger,
        *,
        in_flight: Collection[str] = (),
        limit: int | None = None,
        listing: pa.Table | None = None,
    ) -> StagePlan:
        """What needs work in a stage now, and why. `listing` spares listing the store."""
        listing = self.raw_listing(stage, split_points(latest)) if listing is None else listing
        return self._plan(stage, latest, ledger, listing, in_flight, limit)

    def plans(
        self,
        stages: Collection[Stage],
        latest: LatestRows,
        *,
        in_flight: Mapping[Stage, Collection[str]] | None = None,
        limit: int | None = None,
        listing: Callable[[Stage], pa.Table | None] | None = None,
        deadline: float = math.inf,
    ) -> dict[Stage, StagePlan]:
        """The plans of several stages, made at the same time.

        Args:
            listing: gives a stage's raw objects when the stage is planned; None from it takes them as the
                ledger last saw them. By default the store is listed.
            deadline: by `time.monotonic`; stages whose turn comes later are left out.
        """
        if listing is None:
            listing = partial(self.raw_listing, split_ids=split_points(latest))
        listings = BoundedSemaphore(LISTINGS_AT_ONCE)

        def plan(stage: Stage) -> StagePlan | None:
            with contextlib.ExitStack() as held:
                held.enter_context(listings)
                if time.monotonic() > deadline:
                    return None
                raw_objects = listing(stage)
                if raw_objects is None:
                    held.close()
                ids = (in_flight or {}).get(stage, ())
                with self.ledger(stage) as ledger:
                    return self._plan(stage, latest, ledger, raw_objects, ids, limit)

        with ThreadPoolExecutor(len(Stage)) as pool:
            plans = zip(stages, pool.map(plan, stages), strict=True)
            return {stage: made for stage, made in plans if made is not None}

    def _plan(
        self,
        stage: Stage,
        latest: LatestRows,
        ledger: Ledger,
        listing: pa.Table | None,
        in_flight: Collection[str],
        limit: int | None,
    ) -> StagePlan:
        contract_id = self.contract(stage).id
        with ledger.stream(DELTA_COLUMNS) as rows:
            return plan_stage(
                stage,
                latest,
                listing,
                rows,
                contract_id=contract_id,
                now=datetime.now(UTC),
                in_flight=in_flight,
                limit=limit,
                keys=self.keys,
            )

    def explain(
        self, stage: Stage, video_id: str, latest: LatestRows, ledger: Ledger, in_flight: Collection[str] = ()
    ) -> Explanation:
        """Why one video is in a stage's delta or not, with old and new values.

        Raises:
            InvalidVideoIdError: it is no `video_id`.
        """
        import pyarrow as pa

        raw = self.store.head(self.keys.raw(stage, video_id))
        row = ledger.rows([video_id]).get(video_id)
        former = None if row is None or row.contract_id is None else ledger.contract(row.contract_id)
        texts = [(name, pa.string()) for name in DELTA_COLUMNS]
        return explain(
            stage,
            video_id,
            latest,
            pa.table({"key": [raw.key] if raw else [], "etag": [raw.etag] if raw else []}),
            pa.Table.from_pylist([asdict(row)] if row else [], pa.schema(texts)),
            contract=self.contract(stage),
            recorded={former.id: former} if former is not None else {},
            source_columns=self.settings.stage(stage).columns(),
            now=datetime.now(UTC),
            in_flight=in_flight,
            keys=self.keys,
        )

    def record_settled(
        self,
        ledger: Ledger,
        plan: StagePlan,
        *,
        most_missing: int | None = None,
        most_restored: int | None = None,
    ) -> list[LedgerRow]:
        """Record what a plan settles without any run: raw objects that are missing, vectors that are right
        again. Returns the rows of the latter. The limits take the newest."""
        contract, now = self.contract(ledger.stage), datetime.now(UTC)
        missing = plan.missing.slice(0, most_missing).to_pylist()
        restored = plan.restored.slice(0, most_restored).to_pylist()
        previous = ledger.rows(row["video_id"] for row in (*missing, *restored))

        def item(row: Mapping[str, str | datetime]) -> WorkItem:
            video_id, captured_at = str(row["video_id"]), row["captured_at"]
            assert isinstance(captured_at, datetime)
            return WorkItem(
                video_id, {}, str(row["metadata_hash"]), timestamp(captured_at), previous.get(video_id)
            )

        restored_rows = [
            standing_row(item(row), contract, now, source_hash=row["source_hash"], raw_etag=row["raw_etag"])
            for row in restored
        ]
        missing_rows = [
            missing_row(item(row), contract, now, raw_key=self.keys.raw(ledger.stage, row["video_id"]))
            for row in missing
        ]
        if restored_rows or missing_rows:
            ledger.record_contract(contract)
            ledger.record([*restored_rows, *missing_rows])
        return restored_rows

    def orphans(self, latest: LatestRows, ledger: Ledger) -> set[str]:
        """Ids that the ledger knows and the metadata no longer has."""
        return set(ledger.columns(["video_id"])["video_id"].to_pylist()).difference(latest.video_ids())

    def verify(self, ledger: Ledger) -> Iterator[Finding]:
        """Read every vector that a row claims, and compare it with what the row says of it: of successes, and
        of later failures, whose vector may become the right one again. A refused `video_id` is a finding."""
        names = [
            "video_id",
            "status",
            "processed_at",
            "embedding_dim",
            "artifact_sha256",
            "vector_source_hash",
        ]
        rows = [
            row
            for row in ledger.columns(names).to_pylist()
            if row["status"] == Status.SUCCESS or row["vector_source_hash"]
        ]
        by_key = {}
        for row in rows:
            if is_valid_video_id(row["video_id"]):
                by_key[self.keys.embedding(ledger.stage, row["video_id"])] = row
            else:
                yield Finding(row["video_id"], "", row["processed_at"], "its video_id is refused")
        for key, answer in self.store.get_many(sorted(by_key)):
            row = by_key[key]
            yield Finding(row["video_id"], key, row["processed_at"], _vector_problem(row, answer))

    def repair(self, ledger: Ledger, findings: Iterable[Finding]) -> list[str]:
        """Make work of vectors that `verify` found lost or damaged; returns their ids.

        Left alone are videos that a run has embedded meanwhile, and those whose `video_id` is refused.
        """
        now = datetime.now(UTC)
        bad = {
            finding.video_id: finding.processed_at
            for finding in findings
            if finding.problem is not None and finding.key
        }
        rows = [row for row in ledger.rows(bad).values() if row.processed_at == bad[row.video_id]]
        return ledger.replace([(row, _lost_row(row, now)) for row in rows])

    def retry(self, ledger: Ledger, video_ids: Collection[str] | None = None) -> list[str]:
        """Make failed, invalid and quarantined videos due now, their failures forgotten; returns their ids.

        Args:
            video_ids: only these; None for all.
        """
        now = datetime.now(UTC)
        failed = [
            row
            for row in ledger.with_status(FAILED_STATUSES)
            if video_ids is None or row.video_id in video_ids
        ]
        return ledger.replace([(row, _due_row(row, now)) for row in failed])

    def rows(self, video_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """The latest metadata of some videos, as `rows_for` gives it."""
        return rows_for(self.latest_rows(), video_ids)

    def work_items(self, stage: Stage, video_ids: Sequence[str], ledger: Ledger) -> list[WorkItem]:
        """What a run needs to know of some videos; those that the metadata does not have are left out."""
        rows = self.rows(video_ids)
        previous = ledger.rows(rows)
        return [
            WorkItem(
                video_id,
                rows[video_id],
                rows[video_id][f"{stage}_metadata_hash"],
                rows[video_id]["captured_at"],
                previous.get(video_id),
            )
            for video_id in dict.fromkeys(video_ids)
            if video_id in rows
        ]
