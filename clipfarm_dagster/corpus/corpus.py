"""One installation's corpus: its store, metadata and ledgers, and what needs work in it.

Plain Python over the settings; Dagster's assets and sensor and the command line all work through it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.catalog.metadata import (
    CHANGED_MEANWHILE,
    LatestRows,
    open_latest_rows,
    read_latest_rows,
    rows_for,
    split_points,
)
from clipfarm_dagster.catalog.source import MetadataSource
from clipfarm_dagster.corpus.generations import follow, forget_dropped, recorded_contract, serve
from clipfarm_dagster.corpus.stage_corpus import StageCorpus, list_raw_objects, plan_stages
from clipfarm_dagster.errors import MetadataError, SettingsError
from clipfarm_dagster.ledger.corpus_id import bind_to_corpus, read_corpus_id
from clipfarm_dagster.ledger.journal import Journal
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import JournalKeys
from clipfarm_dagster.ledger.serving import Serving, ServingRecord
from clipfarm_dagster.ledger.tombstones import Erased, Tombstones
from clipfarm_dagster.ledger.verify import repair_vectors, verify_vectors
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder, stage_contract
from clipfarm_dagster.planning.delta import StagePlan
from clipfarm_dagster.planning.explain import Explanation
from clipfarm_dagster.settings import Settings, load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore, local_path
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class _Seen:
    """What the store says of the corpus as a whole when stages are opened."""

    corpus_id: str | None
    serving: Mapping[Stage, Serving]
    erased: Erased


class Corpus:
    """The videos of one store, with what is known and what is done."""

    def __init__(self, settings: Settings, store: ObjectStore) -> None:
        self.settings = settings
        self.store = store
        self.keys = settings.keys
        self._encoders: dict[str, Encoder] = {}

    @classmethod
    def open(cls, settings: Settings | None = None) -> Corpus:
        """Open the store that the settings name; by default those of the environment (`load_settings`).

        Raises:
            SettingsError: a setting is unusable.
            StoreError: the folder of the store cannot be created.
        """
        settings = load_settings() if settings is None else settings
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
        """The latest metadata row of each video that was not erased; read anew only when the CSV's ETag
        changes, or another video is erased.

        Raises:
            MetadataError: the CSV is missing or cannot be read; nothing is changed.
            LedgerError: the list of erased videos is damaged.
            StoreError: the store cannot be read.
        """
        source, cache = self.metadata, self.settings.home_files.metadata_cache
        columns, erased = self.settings.source_columns(), self.tombstones.read()
        etag = source.etag()
        cached = open_latest_rows(
            url=source.url, source_columns=columns, cache_dir=cache, etag=etag, left_out=erased
        )
        if cached is not None:
            return cached

        def read(csv: Path, etag: str | None) -> LatestRows:
            return read_latest_rows(
                csv,
                url=source.url,
                source_columns=columns,
                cache_dir=cache,
                etag=etag,
                left_out=erased,
            )

        cache.mkdir(parents=True, exist_ok=True)
        if source.path is not None:
            latest = read(source.path, etag)
            if source.etag() != etag:
                latest.path.unlink(missing_ok=True)
                raise MetadataError(source.url, CHANGED_MEANWHILE)
        else:
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                copy = Path(folder) / "metadata.csv"
                latest = read(copy, source.store.download(source.key, copy).etag)
        if self.tombstones.read().version != erased.version:  # the cache is cleared only once
            latest.path.unlink(missing_ok=True)
            return self.latest_rows()
        return latest

    def raw_listings(self, stages: Collection[Stage], latest: LatestRows) -> dict[Stage, pa.Table]:
        """The raw objects of several stages (see `StageCorpus.raw_listing`), listed at the same time."""
        listed = partial(list_raw_objects, self.store, self.keys, split_ids=split_points(latest))
        with ThreadPoolExecutor(len(Stage)) as pool:
            return dict(zip(stages, pool.map(listed, stages), strict=True))

    def contract(self, stage: Stage) -> Contract:
        """The contract that the settings ask for. Loads no model."""
        return stage_contract(stage, self.settings)

    @cached_property
    def serving(self) -> ServingRecord:
        """Which generation of each stage serves."""
        return ServingRecord(self.store, self.keys.serving())

    @cached_property
    def tombstones(self) -> Tombstones:
        """Which videos are erased."""
        return Tombstones(self.store, self.keys.erased())

    @contextlib.contextmanager
    def ledger(self, stage: Stage) -> Iterator[Ledger]:
        """A stage's ledger, with all that other machines have added to the store's.

        Its rows are those of the generation that serves.

        Raises:
            LedgerError: it cannot be opened, or it belongs to another corpus.
            StoreError: the store cannot be read.
        """
        with self._ledger(stage, self._look()) as (ledger, _):
            yield ledger

    def _look(self) -> _Seen:
        corpus_id = read_corpus_id(self.store, self.keys.corpus_id())
        return _Seen(corpus_id, self.serving.read(), self.tombstones.read())

    @contextlib.contextmanager
    def _ledger(self, stage: Stage, seen: _Seen) -> Iterator[tuple[Ledger, Serving | None]]:
        path = self.settings.home_files.ledger(stage)
        ledger = Ledger.open(stage, state_url=self.settings.state_url, sqlite_path=path)
        try:
            bind_to_corpus(ledger, self.store, self.keys.corpus_id(), seen.corpus_id)
            ledger.tombstones = self.tombstones
            ledger.follow_erasures(seen.erased)
            serving = seen.serving.get(stage)
            if serving is not None:
                follow(ledger, serving)
            if ledger.sqlite_path is not None:
                keys = JournalKeys(self.keys.ledger_snapshot(stage), self.keys.ledger_journal_folder(stage))
                journal = Journal(ledger, self.store, keys, prove=partial(self._prove, ledger))
                ledger.journal = journal
                journal.take_in()
            if serving is not None:
                forget_dropped(ledger, serving)
            yield ledger if serving is None else ledger.of(serving.contract_id), serving
        finally:
            ledger.close()

    def _prove(self, ledger: Ledger) -> None:
        """Make work of every vector that is not what the ledger claims."""
        repair_vectors(ledger, verify_vectors(ledger, self.store, self.keys))

    @contextlib.contextmanager
    def stage(self, stage: Stage, generation: str | None = None) -> Iterator[StageCorpus]:
        """One stage under the contract that serves, or under another, its ledger open while the block runs.

        Where the store does not say yet what serves, `serving_contract` does, and the first write says so.

        Args:
            generation: contract id of another generation.

        Raises:
            LedgerError: the ledger cannot be opened, it belongs to another corpus, or it does not know the
                contract.
            StoreError: the store cannot be read.
        """
        with self._stage(stage, generation, self._look()) as opened:
            yield opened

    @contextlib.contextmanager
    def _stage(self, stage: Stage, generation: str | None, seen: _Seen) -> Iterator[StageCorpus]:
        with self._ledger(stage, seen) as (ledger, serving):
            opened = StageCorpus(stage, self.settings, self.store, ledger, None, self.serving, serving)
            serve(opened)
            if generation is not None:
                opened = opened.under(recorded_contract(ledger, generation, lambda: opened.wanted))
            yield opened

    @contextlib.contextmanager
    def stages(self, stages: Collection[Stage]) -> Iterator[dict[Stage, StageCorpus]]:
        """Several stages as `stage` opens one, opened at the same time."""
        with contextlib.ExitStack() as held:
            seen = self._look()
            with ThreadPoolExecutor(len(Stage)) as pool:
                opened = pool.map(lambda stage: held.enter_context(self._stage(stage, None, seen)), stages)
                by_stage = dict(zip(stages, opened, strict=True))
            yield by_stage

    def plans(
        self,
        stages: Collection[Stage] = tuple(Stage),
        latest: LatestRows | None = None,
        *,
        in_flight: Mapping[Stage, Collection[str]] | None = None,
        limit: int | None = None,
        listing: Callable[[Stage], pa.Table | None] | None = None,
    ) -> dict[Stage, StagePlan]:
        """What needs work now, and why, by stage (see `plan_stages`). Changes nothing.

        Raises:
            MetadataError: the metadata cannot be read.
            ModelUnavailableError: a checkpoint cannot be found.
            LedgerError: a ledger cannot be read.
            StoreError: the store cannot be read.
        """
        latest = self.latest_rows() if latest is None else latest
        with self.stages(stages) as opened:
            return plan_stages(opened, latest, in_flight=in_flight, limit=limit, listing=listing)

    def explain(self, stage: Stage, video_id: str) -> Explanation:
        """Why one video needs work in a stage, or not; raises what `plans` raises.

        Raises:
            InvalidVideoIdError: it is not a `video_id`.
        """
        latest = self.latest_rows()
        with self.stage(stage) as opened:
            return opened.explain(video_id, latest)

    def encoder(self, stage: Stage, generation: str | None = None) -> Encoder:
        """The model of a stage's generation that serves, or of another, loaded at the first call.

        Raises:
            ModelUnavailableError: it cannot be had (any more), or cannot be loaded.
            LedgerError: the ledger cannot be opened.
            StoreError: the store cannot be read.
        """
        with self.stage(stage, generation) as opened:
            contract_id, settings = opened.contract.id, opened.model_settings
        if contract_id not in self._encoders:
            self._encoders[contract_id] = load_encoder(stage, settings)
        return self._encoders[contract_id]

    def rows(self, video_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """The latest metadata of some videos, as `rows_for` gives it."""
        return rows_for(self.latest_rows(), video_ids)
