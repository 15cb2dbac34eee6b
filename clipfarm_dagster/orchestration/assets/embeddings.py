"""The embeddings, one asset a stage, and how a run embeds the videos that it was given."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from clipfarm_dagster.canary.check import check_before_writing
from clipfarm_dagster.canary.environment import current_environment
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.engine.engine import EngineOptions, Progress, embed_items
from clipfarm_dagster.engine.outcomes import Kind, Outcome
from clipfarm_dagster.errors import StoreError
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.modalities.audio import encoder as audio
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.text import encoder as text
from clipfarm_dagster.modalities.video import encoder as video
from clipfarm_dagster.orchestration.assets.beta import accept_beta
from clipfarm_dagster.orchestration.assets.raw import raw_asset_key, raw_observation
from clipfarm_dagster.orchestration.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.orchestration.progress import ProgressListener
from clipfarm_dagster.orchestration.recording import (
    Context,
    data_version_tags,
    record_events,
    record_failed_partitions,
)
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract

PARTITIONS_PER_RUN = 500
"""Most partitions of one run of a backfill: enough to pay for starting it and loading a model."""

BROKEN_TAG = "clipfarm/broken"
"""Run tag of a run that could not do its work as a whole, whatever its items: the error's name."""

FAILED_ITEMS_KEY = "failed"
"""Metadata key of the failure that ends a run with failed items; their number."""

CONTRACT_TAG = "clipfarm/contract"
ENVIRONMENT_TAG = "clipfarm/environment"
"""Run tags with the ids of what the run's vectors depend on, and of what they should not depend on."""

_LISTED_FAILURES = 100

_DESCRIPTIONS = {
    Stage.VIDEO: """VideoMAE over 16 frames of each clip, taken uniformly over its timeline.

One vector a video, `embeddings/video/<video_id>.npy`: float32 of unit length. The preview of a partition
that was materialized alone shows the frames that were taken. `embedding_sensor` keeps it up to date.""",
    Stage.AUDIO: """wav2vec2 over the sound of each clip: mono, 16 kHz, at most 90 seconds, mean over time.

One vector a video, `embeddings/audio/<video_id>.npy`: float32 of unit length. The preview of a partition
that was materialized alone shows the waveform. `embedding_sensor` keeps it up to date.""",
    Stage.TEXT: """MiniLM over each video's metadata (title, description, query) and transcript, side by side.

One vector a video, `embeddings/text/<video_id>.npy`: float32 of unit length. The preview of a partition
that was materialized alone shows the texts. `embedding_sensor` keeps it up to date.""",
}
_CODE_VERSIONS = {
    Stage.VIDEO: video.PREPROCESS_VERSION,
    Stage.AUDIO: audio.PREPROCESS_VERSION,
    Stage.TEXT: text.PREPROCESS_VERSION,
}


def embedding_asset_key(stage: Stage) -> dg.AssetKey:
    """Key of a stage's embedding asset."""
    return dg.AssetKey(f"{stage}_embedding")


def data_version(source_hash: str, contract_id: str) -> str:
    """Dagster's data version of one embedding: its input and its contract."""
    return f"{source_hash}.{contract_id}"


@accept_beta
def _embedding_asset(stage: Stage) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"{stage}_embedding",
        deps=[raw_asset_key(stage)],
        partitions_def=VIDEO_PARTITIONS,
        group_name="embeddings",
        description=_DESCRIPTIONS[stage],
        code_version=_CODE_VERSIONS[stage],
        kinds={"python", "pytorch", "numpy"},
        tags={"clipfarm/stage": str(stage)},
        output_required=False,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=PARTITIONS_PER_RUN),
    )
    def embedding(
        context: dg.AssetExecutionContext,
        object_store: ObjectStoreResource,
        stage_state: StageStateResource,
        encoders: EncodersResource,
        progress: dg.ResourceParam[ProgressListener],
    ) -> Iterator[dg.Output[None]]:
        corpus = stage_state.corpus(object_store)
        embed_videos(context, stage, context.partition_keys, corpus, encoders, progress)
        yield from ()  # each success has recorded itself; an output would speak for all partitions at once

    return embedding


EMBEDDING_ASSETS = [_embedding_asset(stage) for stage in Stage]


def embed_videos(
    context: Context,
    stage: Stage,
    video_ids: Sequence[str],
    corpus: Corpus,
    encoders: EncodersResource,
    listener: ProgressListener,
) -> None:
    """Embed some videos in a running step, and tell Dagster of each one that succeeded.

    Raises:
        dagster.Failure: items failed, or are unknown to the metadata; the others are done.
        ClipFarmError: the metadata, the store, the ledger or the model cannot be used.
    """
    single = len(video_ids) == 1
    failures: list[LedgerRow] = []

    with _breakage_tagged(context), corpus.ledger(stage) as ledger:
        contract = corpus.contract(stage)
        items = corpus.work_items(stage, video_ids, ledger)
        known = {item.video_id for item in items}
        unknown = [video_id for video_id in video_ids if video_id not in known]
        progress = Progress(len(items))
        log = _ProgressLog(context, progress)

        def on_recorded(outcomes: Sequence[Outcome]) -> None:
            failed = [outcome.row for outcome in outcomes if outcome.kind == Kind.FAILED]
            failures.extend(failed)
            if failed:  # told at once, each of them: a run that breaks never comes to its list of failures
                context.log.error("\n".join(f"{row.video_id}: {row.status}: {row.error}" for row in failed))
            record_failed_partitions(context, embedding_asset_key(stage), [row.video_id for row in failed])
            events = [event for o in outcomes for event in _events(stage, o, contract, corpus.store.url)]
            record_events(context, events)
            log.report()
            listener(stage, progress)

        try:
            embed_items(
                items,
                contract=contract,
                load_encoder=lambda: _checked_encoder(context, stage, corpus, encoders),
                store=corpus.store,
                keys=corpus.keys,
                ledger=ledger,
                options=EngineOptions.from_settings(corpus.settings, previews=single),
                on_recorded=on_recorded,
                progress=progress,
            )
        finally:
            listener(stage, progress)
            if not isinstance(sys.exception(), StoreError):  # a store that is away is not waited for again
                ledger.push()
    summary = progress.summary()
    context.log.info(f"{stage}: {progress.line()}")
    context.log.info(f"{stage}: {json.dumps(summary)}")
    context.instance.add_run_tags(context.run.run_id, _summary_tags(summary))
    if failures or unknown:
        record_failed_partitions(context, embedding_asset_key(stage), unknown)
        raise _failure(stage, failures, unknown, len(video_ids), summary)


@contextmanager
def _breakage_tagged(context: Context) -> Iterator[None]:
    """Tag the run where the block, and not some of its items, goes wrong."""
    try:
        yield
    except Exception as error:
        context.instance.add_run_tags(context.run.run_id, {BROKEN_TAG: type(error).__name__})
        raise


def _checked_encoder(context: Context, stage: Stage, corpus: Corpus, encoders: EncodersResource) -> Encoder:
    """The stage's encoder, once its canary agrees; the run is told contract and environment.

    Raises:
        ModelUnavailableError: it cannot be loaded.
        DriftError: it no longer makes the vectors that it made before.
    """
    encoder = encoders.load(stage, corpus.settings)
    environment, contract = current_environment(encoder.device), encoder.contract
    tags = {CONTRACT_TAG: contract.id, ENVIRONMENT_TAG: environment.id}
    context.instance.add_run_tags(context.run.run_id, tags)
    context.log.info(f"contract {contract.id}: {contract.to_json()}")
    context.log.info(f"environment {environment.id}: {environment.to_json()}")
    check_before_writing(encoder, environment, corpus.store, corpus.keys, corpus.settings.home)
    return encoder


def _events(
    stage: Stage, outcome: Outcome, contract: Contract, store_url: str
) -> list[dg.AssetMaterialization | dg.AssetObservation]:
    """What Dagster is told of an outcome: successes are materialized, and so is what they were made of."""
    row = outcome.row
    if not outcome.succeeded:
        return []
    observation = raw_observation(stage, row.video_id, row.raw_etag or "")
    return [observation, embedding_materialization(stage, row, contract, store_url, outcome)]


def embedding_materialization(
    stage: Stage, row: LedgerRow, contract: Contract, store_url: str, outcome: Outcome | None = None
) -> dg.AssetMaterialization:
    """The materialization that stands for one ledger row of success."""
    # a person's eyes first: Dagster shows the entries in this order
    metadata: dict[str, Any] = {}
    if outcome is not None and outcome.preview:
        metadata["preview"] = dg.MetadataValue.md(outcome.preview)
    if outcome is not None:
        metadata["outcome"] = str(outcome.kind)
    if row.note:
        metadata["note"] = row.note
    metadata |= {
        "key": dg.MetadataValue.path(f"{store_url}/{row.artifact_key}"),
        "dimension": row.embedding_dim or 0,
        "seconds": round(row.seconds or 0.0, 3),
        "model": f"{contract.model_name}@{contract.model_revision}",
        "contract": contract.id,
        "source_hash": row.source_hash or "",
    }
    return dg.AssetMaterialization(
        asset_key=embedding_asset_key(stage),
        partition=row.video_id,
        metadata=metadata,
        tags=data_version_tags(
            data_version(row.source_hash or "", contract.id),
            _CODE_VERSIONS[stage],
            {raw_asset_key(stage): row.raw_etag or ""},
        ),
    )


def _failure(
    stage: Stage,
    failures: Sequence[LedgerRow],
    unknown: Sequence[str],
    total: int,
    summary: Mapping[str, float | int | str],
) -> dg.Failure:
    """The failure that ends a run with failed items, saying which and why."""
    rows = [(row.video_id, str(row.status), row.error or "") for row in failures]
    rows += [(video_id, "not in the metadata", "the metadata CSV has no row of it") for video_id in unknown]
    listed = "\n".join(
        f"{video_id}: {status}: {error}" for video_id, status, error in rows[:_LISTED_FAILURES]
    )
    more = f"\n… and {len(rows) - _LISTED_FAILURES} more" if len(rows) > _LISTED_FAILURES else ""
    records = [
        dg.TableRecord({"video_id": video_id, "status": status, "error": error})
        for video_id, status, error in rows[:_LISTED_FAILURES]
    ]
    return dg.Failure(
        description=f"{len(rows)} of {total} {stage} items failed; the others are done.\n{listed}{more}",
        metadata={FAILED_ITEMS_KEY: len(rows), "failures": dg.MetadataValue.table(records), **summary},
        allow_retries=False,
    )


def _summary_tags(summary: Mapping[str, float | int | str]) -> dict[str, str]:
    """Run tags with a run's speed and what bounded it: a run's own metadata, to which Dagster gives no other
    place. The log has the whole summary."""
    names = ("items_per_second", "model_busy_share", "bottleneck", "peak_memory_mb")
    return {f"clipfarm/{name}": str(summary[name]) for name in names}


class _ProgressLog:
    """A line in the run's log, at most one in ten seconds."""

    def __init__(self, context: Context, progress: Progress) -> None:
        self._context, self._progress = context, progress
        self._last = datetime.now(UTC)

    def report(self) -> None:
        now = datetime.now(UTC)
        if (now - self._last).total_seconds() >= 10:
            self._last = now
            self._context.log.info(self._progress.line())
