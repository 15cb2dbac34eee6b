"""One job a stage for runs by id list: what the sensor and `clipfarm sync` launch.

A delta is scattered, and Dagster's partition ranges are contiguous, so these runs have no partitions but a
list of ids in their config. They are jobs of one op, not asset jobs: Dagster refuses an asset step without a
partition once a partitioned parent was observed. What they record for the embedding assets is the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from clipfarm_dagster.orchestration.executor import locking_in_process_executor
from clipfarm_dagster.orchestration.names import STAGE_TAG, CorpusNames, Resource
from clipfarm_dagster.orchestration.resources.taking import (
    CORPUS,
    take_corpus,
    take_encoders,
    take_listener,
)
from clipfarm_dagster.orchestration.runs.embed import embed_videos
from clipfarm_dagster.orchestration.runs.id_list import IdList
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import check_video_id

if TYPE_CHECKING:
    from clipfarm_dagster.orchestration.dagster_internals import UnresolvedAssetJobDefinition


def embedding_jobs(names: CorpusNames) -> list[dg.JobDefinition]:
    """One job a stage."""
    return [_embedding_job(names, stage) for stage in Stage]


def _embedding_job(names: CorpusNames, stage: Stage) -> dg.JobDefinition:
    @dg.op(
        name=names.embedding_op(stage),
        tags={STAGE_TAG: str(stage)},
        out=dg.Out(dg.Nothing, io_manager_key=names.resource(Resource.VECTORS)),
        required_resource_keys=names.resources(*CORPUS, Resource.ENCODERS, Resource.PROGRESS),
    )
    def embed(context: dg.OpExecutionContext, config: IdList) -> None:
        embed_videos(
            context,
            names,
            stage,
            [check_video_id(video_id) for video_id in config.video_ids],
            take_corpus(context.resources, names),
            take_encoders(context.resources, names),
            take_listener(context.resources, names),
        )

    @dg.job(
        name=names.embedding_job(stage),
        description=f"Embeds the {stage} of the video_ids in the run's config.",
        tags={**names.run_tags(), STAGE_TAG: str(stage)},
        executor_def=locking_in_process_executor,
    )
    def job() -> None:
        embed()

    return job


def checks_job(
    names: CorpusNames, checks: Sequence[dg.AssetChecksDefinition]
) -> "UnresolvedAssetJobDefinition":
    """The job of all asset checks."""
    return dg.define_asset_job(
        names.checks_job,
        selection=dg.AssetSelection.checks(*(key for check in checks for key in check.check_keys)),
        description="Checks all embeddings by their ledger rows, and each model by its canary.",
        tags=names.run_tags(),
        executor_def=locking_in_process_executor,
    )


def manifests_job(names: CorpusNames) -> "UnresolvedAssetJobDefinition":
    """The job that makes manifests and fused vectors."""
    return dg.define_asset_job(
        names.manifests_job,
        selection=dg.AssetSelection.assets(names.fused, *map(names.manifest, Stage)),
        description="Brings the manifests up to date with the ledgers, and then the fused vectors.",
        tags=names.run_tags(),
        executor_def=locking_in_process_executor,
    )


def manifests_run_config(names: CorpusNames, strategies: Sequence[str]) -> dict[str, Any]:
    """Run config of a run of `manifests_job`."""
    return {"ops": {names.fused.to_python_identifier(): {"config": {"strategies": list(strategies)}}}}
