"""A corpus in which videos have left every kind of trace, made by what ClipFarm does for its users."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    BACKFILL_ID_TAG,
)

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.demo.corpus import DemoVideo
from clipfarm_dagster.explore import search
from clipfarm_dagster.explore.atlas import atlas_table
from clipfarm_dagster.manifests.refresh import fused_file
from clipfarm_dagster.manifests.vector_table import FUSED_VECTOR_COLUMN
from clipfarm_dagster.modalities.encoder import Prepared
from clipfarm_dagster.orchestration.in_process import quiet_run_config, run_in_process
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import from_npy
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon
from clipfarm_dagster_tests.support.leftovers import pieces, vector_pieces
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

GONE, RAW_TOO, FAILS = "gone-7f31a", "gone-52c0e", "gone-9d04b"
"""Videos that are erased: its raw objects stay; all goes; it never had a vector of its clip."""
ERASED = [GONE, RAW_TOO, FAILS]
INSIDE = ["gone-7f31a_x", "x-gone-7f31a"]
"""Neighbours whose ids have an erased one inside."""
IN_HAND = "clip-in-hand-1"
"""A neighbour that a run embeds while another video of that run is erased."""

CHANGED_MODELS = {"CLIPFARM_VIDEO_POOLING": "mean", "CLIPFARM_TEXT_DTYPE": "bfloat16"}
MIGRATED = (Stage.VIDEO, Stage.TEXT)

Command = Callable[..., Any]


@dataclass
class World:
    """The corpus, as the settings of the environment say.

    Args:
        media: clips and sounds; the first three are those of the erased videos, and no other has them.
        videos: how many there are.
        stages: those that are embedded for all videos.
    """

    instance: dg.DagsterInstance
    clipfarm: Command
    media: Sequence[DemoVideo]
    videos: int
    stages: Sequence[Stage] = tuple(Stage)

    def __post_init__(self) -> None:
        plain = [f"clip-{number}" for number in range(self.videos - len(ERASED) - len(INSIDE) - 1)]
        self.neighbours = [*INSIDE, IN_HAND, *plain]
        self.ids = [*ERASED, *self.neighbours]

    @property
    def corpus(self) -> Corpus:
        """The corpus with the present settings."""
        return Corpus.open(load_settings())

    def sync(self) -> Any:
        """`clipfarm sync` of these stages."""
        return self.clipfarm(
            "sync", "--json", *(part for stage in self.stages for part in ("--stage", stage))
        )

    def live(self, set_setting: Callable[[str, str], None], exported: Path) -> None:
        """Everything that happens before somebody asks for an erasure."""
        self._put_raw()
        Daemon(self.instance).tick()
        for stage in (Stage.VIDEO, Stage.AUDIO):  # alone, so that there are pictures
            assert materialize(self.instance, DEFAULT_NAMES.embedding(stage), partition_key=GONE).success
        assert self.sync().code == 1  # some fail
        put_transcript(self.corpus, GONE, said_in(GONE))
        assert materialize(self.instance, DEFAULT_NAMES.embedding(Stage.TEXT), partition_key=GONE).success
        self._backfill([GONE, RAW_TOO, *self.neighbours[:2]])
        self._read()
        assert self.clipfarm("export", "--modality", "text", "--out", str(exported)).code == 0
        for name, value in {**CHANGED_MODELS, "CLIPFARM_CUT_OVER": "manual"}.items():
            set_setting(name, value)
        for stage in set(self.stages).intersection(MIGRATED):
            self._fill_half(stage)

    def _put_raw(self) -> None:
        corpus, store = self.corpus, self.corpus.store
        for number, video_id in enumerate(self.ids):
            others = self.media[len(ERASED) :]
            media = self.media[number] if video_id in ERASED else others[number % len(others)]
            clip = b"this is no film" if video_id == FAILS else media.mp4
            store.put(corpus.keys.raw(Stage.VIDEO, video_id), clip)
            store.put(corpus.keys.raw(Stage.AUDIO, video_id), media.wav)
            put_transcript(corpus, video_id, said_in(video_id))
        store.put(corpus.keys.raw(Stage.TEXT, GONE), b'{"words": 1}')
        put_metadata(corpus, [metadata_row(video_id, title=title_of(video_id)) for video_id in self.ids])

    def _backfill(self, video_ids: Sequence[str]) -> None:
        """A backfill of some partitions as the UI stores it, with its run."""
        key = DEFAULT_NAMES.embedding(Stage.TEXT)
        backfill = PartitionBackfill.from_asset_partitions(
            backfill_id="backfill1",
            asset_graph=build_definitions().resolve_asset_graph(),
            partition_names=list(video_ids),
            asset_selection=[key],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=self.instance,
            all_partitions=False,
            title=f"again for {GONE}",
            description=None,
            run_config=None,
        )
        self.instance.add_backfill(backfill)
        keys = self.instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)
        there = sorted(video_ids, key=keys.index)
        tags = {ASSET_PARTITION_RANGE_START_TAG: there[0], ASSET_PARTITION_RANGE_END_TAG: there[-1]}
        materialize(self.instance, key, tags={**tags, BACKFILL_ID_TAG: "backfill1"})
        self.instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))

    def _read(self) -> None:
        """What fills the caches: manifests, fused vectors, indexes and thumbnails."""
        assert self.clipfarm("manifests").code == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "INDEX_FROM", 4)  # so that there is an index, as of many videos
            patch.setattr(search, "_INDEXED_SHARE", 1)
            assert self.clipfarm("search", "--like", GONE, "--modality", "text").code == 0
        assert any((self.corpus.settings.home_files.manifests_cache / "indexes").iterdir())
        if len(self.stages) == len(Stage):
            corpus, problems = self.corpus, dict[str, str]()
            atlas_table(corpus, fused_file(corpus, "concat"), thumbnails=9, on_problem=problems.__setitem__)

    def _fill_half(self, stage: Stage) -> None:
        """Another model has embedded every other video, and is compared with the one that serves."""
        with self.corpus.stage(stage) as serving:
            candidate = serving.candidate()
            assert candidate is not None
            contract_id = candidate.contract.id
        assert materialize(self.instance, DEFAULT_NAMES.candidate(stage), partition_key=GONE).success
        half = [RAW_TOO, *self.neighbours[::2]]
        for start in range(0, len(half), 500):
            ids = half[start : start + 500]
            job = build_definitions().resolve_job_def(DEFAULT_NAMES.candidate_job(stage))
            config = id_list_run_config(DEFAULT_NAMES, stage, ids, contract_id)
            tags = id_list_run_tags(DEFAULT_NAMES, stage, ids, contract_id)
            assert run_in_process(job, self.instance, config, tags).success
        assert materialize(self.instance, DEFAULT_NAMES.comparison(stage)).success

    def needles(self, video_ids: Sequence[str]) -> dict[str, list[bytes]]:
        """What there is of some videos by now, for `leftovers.Scan`."""
        corpus, keys = self.corpus, self.corpus.keys
        vectors = []
        for key in corpus.store.list(f"{keys.prefix}/")["key"].to_pylist():
            if key.endswith(".npy") and Path(key).stem in video_ids:
                vectors.append(from_npy(corpus.store.get(key).data))
        fused = read_fused(corpus)
        vectors += [fused[video_id] for video_id in video_ids if video_id in fused]
        return {
            "id": [video_id.encode() for video_id in video_ids],
            "vector": [piece for vector in vectors for piece in vector_pieces(vector)],
            "preview": [piece for picture in self.previews(video_ids) for piece in pieces(picture)],
            "text": [text(video_id).encode() for video_id in video_ids for text in (said_in, title_of)],
        }

    def previews(self, video_ids: Sequence[str]) -> list[bytes]:
        """The pictures that Dagster shows of some videos."""
        found = []
        for stage in (Stage.VIDEO, Stage.AUDIO):
            for asset in (DEFAULT_NAMES.embedding(stage), DEFAULT_NAMES.candidate(stage)):
                for video_id in video_ids:
                    query = dg.AssetRecordsFilter(asset, asset_partitions=[video_id])
                    for record in self.instance.fetch_materializations(query, limit=20).records:
                        text = str(record.asset_materialization)
                        found += [base64.b64decode(m) for m in re.findall(r";base64,([A-Za-z0-9+/=]+)", text)]
        return found

    def run_that_has_in_hand(self, meanwhile: Callable[[], None]) -> None:
        """Embed two videos that have changed, and do something before they go through the model."""
        for video_id in (GONE, IN_HAND):
            put_transcript(self.corpus, video_id, f"{said_in(video_id)}, once more")
        with self.corpus.stage(Stage.TEXT) as opened:
            encoder: Any = EncodersResource().load(Stage.TEXT, opened.model_settings)  # as the run has it
        encode, waited = encoder.encode, iter([True])

        def encode_then(batch: Sequence[Prepared]) -> Any:
            if threading.current_thread().name.startswith("model") and next(waited, False):  # not the canary
                meanwhile()
            return encode(batch)

        job = build_definitions().resolve_job_def(DEFAULT_NAMES.embedding_job(Stage.TEXT))
        config = id_list_run_config(DEFAULT_NAMES, Stage.TEXT, [GONE, IN_HAND])
        tags = id_list_run_tags(DEFAULT_NAMES, Stage.TEXT, [GONE, IN_HAND])
        encoder.encode = encode_then
        try:
            run_in_process(job, self.instance, config, tags)
        finally:
            encoder.encode = encode
        assert next(waited, None) is None, "the model had nothing to do"


def materialize(instance: dg.DagsterInstance, key: dg.AssetKey, **options: Any) -> dg.ExecuteInProcessResult:
    """A run of an asset's own, as the UI starts it."""
    job = build_definitions().resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        run_config=quiet_run_config({}),
        instance=instance,
        asset_selection=[key],
        raise_on_error=False,
        **options,
    )


def said_in(video_id: str) -> str:
    """The transcript of a video."""
    return f"words that only {video_id[::-1]} says"


def title_of(video_id: str) -> str:
    """The title of a video."""
    return f"a title of {video_id[::-1]} alone"


def read_fused(corpus: Corpus) -> dict[str, np.ndarray]:
    """The fused vectors by id."""
    import pyarrow.parquet as pq

    table = pq.read_table(fused_file(corpus, "concat").path, columns=["video_id", FUSED_VECTOR_COLUMN])
    return {row["video_id"]: np.asarray(row[FUSED_VECTOR_COLUMN], "<f4") for row in table.to_pylist()}
