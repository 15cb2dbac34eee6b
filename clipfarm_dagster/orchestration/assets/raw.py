"""The raw artifacts, as assets that others make and ClipFarm observes; their data version is the ETag."""

from collections.abc import Sequence

import dagster as dg

from clipfarm_dagster.corpus.stage_corpus import list_raw_objects
from clipfarm_dagster.orchestration.assets.beta import accept_beta
from clipfarm_dagster.orchestration.events import raw_observation
from clipfarm_dagster.orchestration.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.orchestration.recording import record_events
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.stages import Stage

_DESCRIPTIONS = {
    Stage.VIDEO: "Clips as they were delivered, `raw/video/<video_id>.mp4` in the store. Made elsewhere and"
    " observed here: the data version of a partition is its object's ETag.",
    Stage.AUDIO: "Sound of the clips, `raw/audio/<video_id>.wav` in the store. Made elsewhere and observed"
    " here: the data version of a partition is its object's ETag.",
    Stage.TEXT: "Transcripts, `raw/text/<video_id>.json` in the store, with the field `transcript`. Made"
    " elsewhere and observed here: the data version of a partition is its object's ETag.",
}


@accept_beta
def _raw_asset(stage: Stage) -> dg.SourceAsset:
    @dg.observable_source_asset(
        name=f"raw_{stage}",
        partitions_def=VIDEO_PARTITIONS,
        group_name="raw",
        description=_DESCRIPTIONS[stage],
        tags={"clipfarm/stage": str(stage), f"dagster/kind/{stage.raw_suffix.removeprefix('.')}": ""},
    )
    def raw(
        context: dg.OpExecutionContext, object_store: ObjectStoreResource, stage_state: StageStateResource
    ) -> dg.DataVersionsByPartition:
        # recorded in batches here, since Dagster would write what is returned one by one
        partitions = _observed_partitions(context)
        corpus = stage_state.corpus(object_store)
        listing = list_raw_objects(corpus.store, corpus.keys, stage)
        etags = dict(zip(listing["key"].to_pylist(), listing["etag"].to_pylist(), strict=True))
        keys = {video_id: corpus.keys.raw(stage, video_id) for video_id in partitions}
        found = {video_id: etags[key] for video_id, key in keys.items() if key in etags}
        record_events(context, [raw_observation(stage, video_id, etag) for video_id, etag in found.items()])
        context.log.info(f"{len(found)} of {len(partitions)} raw {stage} objects are there")
        return dg.DataVersionsByPartition({})

    return raw


def _observed_partitions(context: dg.OpExecutionContext) -> Sequence[str]:
    """The partitions that the run selects; all where it selects none."""
    if context.run.is_partitioned:
        return context.partition_keys
    return context.instance.get_dynamic_partitions(VIDEO_PARTITIONS.name or "")


RAW_ASSETS = [_raw_asset(stage) for stage in Stage]
