"""The embeddings, one asset a stage, and how a run embeds the videos that it was given."""

from collections.abc import Iterator

import dagster as dg

from clipfarm_dagster.modalities.audio import encoder as audio
from clipfarm_dagster.modalities.text import encoder as text
from clipfarm_dagster.modalities.video import encoder as video
from clipfarm_dagster.orchestration.assets.beta import accept_beta
from clipfarm_dagster.orchestration.names import (
    raw_asset_key,
)
from clipfarm_dagster.orchestration.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.orchestration.progress import ProgressListener
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
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
