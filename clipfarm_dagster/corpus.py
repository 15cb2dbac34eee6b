"""One installation's corpus: its store, metadata and ledgers, and what needs work in it.

Plain Python over the settings; Dagster's assets and sensor and the command line all work through it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.catalog.delta import DELTA_COLUMNS, StagePlan, plan_stage
from clipfarm_dagster.catalog.hashing import metadata_hash
from clipfarm_dagster.catalog.metadata import LatestRows, read_latest_rows, rows_for
from clipfarm_dagster.embedding.contract import Contract
from clipfarm_dagster.embedding.encoder import stage_contract
from clipfarm_dagster.embedding.outcomes import WorkItem, missing_row, standing_row
from clipfarm_dagster.embedding.vectors import VectorProblem, from_npy, vector_sha256
from clipfarm_dagster.errors import MetadataError, ObjectMissingError, SettingsError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status, timestamp
from clipfarm_dagster.ledger.snapshot import push_snapshot, restore_snapshot
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore, StoredObject

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class MetadataSource:
    """Where the metadata CSV lies."""

    store: ObjectStore
    key: str

    @property
    def url(self) -> str:
        """The CSV's place, for messages."""
        return f"{self.store.url}/{self.key}"

    def etag(self) -> str:
        """The CSV's current version.

        Raises:
            MetadataError: there is no such file.
            StoreError: the store cannot be read.
        """
        info = self.store.head(self.key)
        if info is None:
            raise MetadataError(
                self.url, "there is no such file; put the CSV there, or set CLIPFARM_METADATA_URL"
            )
        return info.etag


@dataclass(frozen=True)
class Finding:
    """What `Corpus.verify` found of one vector; `problem` is `None` where all is well."""

    video_id: str
    key: str
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
        """The metadata CSV: `CLIPFARM_METADATA_URL`, or its default key in the store."""
        url = self.settings.metadata_url
        if not url:
            return MetadataSource(self.store, self.keys.metadata())
        if url.startswith("s3://"):
            bucket, _, key = url.removeprefix("s3://").partition("/")
            if not key:
                raise SettingsError(
                    "CLIPFARM_METADATA_URL names a bucket, not an object: s3://bucket/key.csv"
                )
            return MetadataSource(ObjectStore.open(f"s3://{bucket}"), key)
        path = Path(url.removeprefix("file://")).expanduser().absolute()
        if not path.parent.is_dir():
            raise MetadataError(str(path), "there is no such folder; check CLIPFARM_METADATA_URL")
        return MetadataSource(ObjectStore.open(str(path.parent)), path.name)

    def latest_rows(self) -> LatestRows:
        """The latest metadata row of each video; read anew only when the CSV's ETag changes.

        Raises:
            MetadataError: the CSV is missing or cannot be read; nothing is changed.
            StoreError: the store cannot be read.
        """
        source = self.metadata
        source.etag()
        cache = self.settings.home / "cache"
        cache.mkdir(parents=True, exist_ok=True)

        with tempfile.TemporaryDirectory(dir=cache) as folder:
            copy = Path(folder) / "metadata.csv"
            etag = source.store.download(source.key, copy).etag
            return read_latest_rows(
                copy,
                url=source.url,
                source_columns=self.settings.source_columns(),
                cache_dir=cache,
                etag=etag,
            )

    def raw_listing(self, stage: Stage) -> pa.Table:
        """The raw objects of a stage: columns `key`, `etag`, `size`."""
        return self.store.list(self.keys.raw_folder(stage))

    def contract(self, stage: Stage) -> Contract:
        """The contract that the settings ask for."""
        return stage_contract(stage, self.settings)

    @contextlib.contextmanager
    def ledger(self, stage: Stage) -> Iterator[Ledger]:
        """A stage's ledger, restored from the store's snapshot on a machine that has none."""
        path = self.settings.home / "state" / f"{stage}_embedding.sqlite"
        if not self.settings.state_url:
            restore_snapshot(path, self.store, self.keys.ledger_snapshot(stage))
        ledger = Ledger.open(stage, state_url=self.settings.state_url, sqlite_path=path)
        try:
            yield ledger
        finally:
            ledger.close()

    def push_snapshot(self, ledger: Ledger) -> bool:
        """Bring the ledger's snapshot in the store up to date; tells whether anything was uploaded."""
        return push_snapshot(ledger, self.store, self.keys.ledger_snapshot(ledger.stage))

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
        """What needs work in a stage now, and why."""
        return plan_stage(
            stage,
            latest,
            self.raw_listing(stage) if listing is None else listing,
            ledger.columns(DELTA_COLUMNS),
            contract_id=self.contract(stage).id,
            now=datetime.now(UTC),
            in_flight=in_flight,
            limit=limit,
            keys=self.keys,
        )

    def record_settled(self, ledger: Ledger, plan: StagePlan) -> list[LedgerRow]:
        """Record what a plan settles without any run: raw objects that are missing, vectors that are right
        again. Returns the rows of the latter."""
        contract, now = self.contract(ledger.stage), datetime.now(UTC)
        missing, restored = plan.missing.to_pylist(), plan.restored.to_pylist()
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
        """Read the vector of every success row, and compare it with what the row says of it."""
        names = ["video_id", "status", "embedding_dim", "artifact_sha256"]
        rows = [row for row in ledger.columns(names).to_pylist() if row["status"] == Status.SUCCESS]
        by_key = {self.keys.embedding(ledger.stage, row["video_id"]): row for row in rows}
        for key, answer in self.store.get_many(sorted(by_key)):
            row = by_key[key]
            yield Finding(row["video_id"], key, _vector_problem(row, answer))

    def rows(self, video_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """The latest metadata of some videos; those that the CSV does not have are left out."""
        return rows_for(self.latest_rows(), video_ids)

    def work_items(self, stage: Stage, video_ids: Sequence[str], ledger: Ledger) -> list[WorkItem]:
        """What a run needs to know of some videos; those that the metadata does not have are left out."""
        rows = self.rows(video_ids)
        previous = ledger.rows(rows)
        columns = self.settings.stage(stage).columns()
        return [
            WorkItem(
                video_id,
                rows[video_id],
                metadata_hash([rows[video_id].get(column) for column in columns]),
                rows[video_id]["captured_at"],
                previous.get(video_id),
            )
            for video_id in dict.fromkeys(video_ids)
            if video_id in rows
        ]
