"""The embeddings, one asset a stage, and how a run embeds the videos that it was given."""

from collections.abc import Iterator

import dagster as dg

from clipfarm_dagster.modalities.audio import encoder as audio
from clipfarm_dagster.modalities.text import encoder as text
from clipfarm_dagster.modalities.video import encoder as video
from clipfarm_dagster.orchestration.assets.beta import accept_beta
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.resources.taking import (
    CORPUS,
    take_corpus,
    take_encoders,
    take_listener,
)
from clipfarm_dagster.orchestration.runs.embed import embed_videos
from clipfarm_dagster.stages import Stage

PARTITIONS_PER_RUN = 500
"""Most partitions of one run of a backfill: enough to pay for starting it and loading a model."""

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


def embedding_assets(names: CorpusNames) -> list[dg.AssetsDefinition]:
    """One asset a stage."""
    return [_embedding_asset(names, stage) for stage in Stage]


@accept_beta
def _embedding_asset(names: CorpusNames, stage: Stage) -> dg.AssetsDefinition:
    @dg.asset(
        key=names.embedding(stage),
        deps=[names.raw(stage)],
        partitions_def=names.partitions_def,
        group_name=names.group("embeddings"),
        description=_DESCRIPTIONS[stage],
        code_version=_CODE_VERSIONS[stage],
        kinds={"python", "pytorch", "numpy"},
        tags={"clipfarm/stage": str(stage)},
        output_required=False,
        io_manager_key=names.resource(Resource.VECTORS),
        required_resource_keys=names.resources(*CORPUS, Resource.ENCODERS, Resource.PROGRESS),
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=PARTITIONS_PER_RUN),
    )
    def embedding(context: dg.AssetExecutionContext) -> Iterator[dg.Output[None]]:
        embed_videos(
            context,
            names,
            stage,
            context.partition_keys,
            take_corpus(context.resources, names),
            take_encoders(context.resources, names),
            take_listener(context.resources, names),
        )
        yield from ()  # each success has recorded itself; an output would speak for all partitions at once

    return embedding
