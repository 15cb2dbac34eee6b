"""The raw artifacts, as assets that others make and ClipFarm observes; their data version is the ETag."""

from collections.abc import Sequence

import dagster as dg

from clipfarm_dagster.corpus.stage_corpus import list_raw_objects
from clipfarm_dagster.modalities.registry import MODALITIES
from clipfarm_dagster.orchestration.assets.beta import accept_beta
from clipfarm_dagster.orchestration.events import raw_observation
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.recording import record_events
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus
from clipfarm_dagster.stages import Stage


def raw_assets(names: CorpusNames) -> list[dg.SourceAsset]:
    """One asset a stage."""
    return [_raw_asset(names, stage) for stage in Stage]


@accept_beta
def _raw_asset(names: CorpusNames, stage: Stage) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=names.raw(stage),
        partitions_def=names.partitions_def,
        group_name=names.group("raw"),
        required_resource_keys=names.resources(*CORPUS),
        description=MODALITIES[stage].raw_description,
        tags={"clipfarm/stage": str(stage), f"dagster/kind/{stage.raw_suffix.removeprefix('.')}": ""},
    )
    def raw(context: dg.OpExecutionContext) -> dg.DataVersionsByPartition:
        # recorded in batches here, since Dagster would write what is returned one by one
        partitions = _observed_partitions(context, names)
        corpus = take_corpus(context.resources, names)
        listing = list_raw_objects(corpus.store, corpus.keys, stage)
        etags = dict(zip(listing["key"].to_pylist(), listing["etag"].to_pylist(), strict=True))
        keys = {video_id: corpus.keys.raw(stage, video_id) for video_id in partitions}
        erased = corpus.tombstones.read().among(keys)
        found = {
            video_id: etags[key] for video_id, key in keys.items() if key in etags and video_id not in erased
        }
        record_events(
            context, [raw_observation(names, stage, video_id, etag) for video_id, etag in found.items()]
        )
        context.log.info(f"{len(found)} of {len(partitions)} raw {stage} objects are there")
        return dg.DataVersionsByPartition({})

    return raw


def _observed_partitions(context: dg.OpExecutionContext, names: CorpusNames) -> Sequence[str]:
    """The partitions that the run selects; all where it selects none."""
    if context.run.is_partitioned:
        return context.partition_keys
    return context.instance.get_dynamic_partitions(names.partitions_name)
