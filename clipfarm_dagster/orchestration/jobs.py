"""One job a stage for runs by id list: what the sensor and `clipfarm sync` launch.

A delta is scattered, and Dagster's partition ranges are contiguous, so these runs have no partitions but a
list of ids in their config. They are jobs of one op, not asset jobs: Dagster refuses an asset step without a
partition once a partitioned parent was observed. What they record for the embedding assets is the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from pydantic import Field

from clipfarm_dagster.orchestration.executor import locking_in_process_executor
from clipfarm_dagster.orchestration.names import STAGE_TAG, CorpusNames, Resource
from clipfarm_dagster.orchestration.resources.taking import (
    CORPUS,
    take_corpus,
    take_encoders,
    take_listener,
)
from clipfarm_dagster.orchestration.runs.cut_over import run_cut_over
from clipfarm_dagster.orchestration.runs.embed import embed_videos
from clipfarm_dagster.orchestration.runs.id_list import CandidateIdList, ErasureList, IdList
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import check_video_id

if TYPE_CHECKING:
    from clipfarm_dagster.orchestration.dagster_internals import UnresolvedAssetJobDefinition


def embedding_jobs(names: CorpusNames) -> list[dg.JobDefinition]:
    """Two jobs a stage: for the generation that serves, and for a candidate."""
    return [job(names, stage) for stage in Stage for job in (_embedding_job, _candidate_job)]


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
            force=config.force,
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


def _candidate_job(names: CorpusNames, stage: Stage) -> dg.JobDefinition:
    @dg.op(
        name=names.candidate_op(stage),
        tags={STAGE_TAG: str(stage)},
        out=dg.Out(dg.Nothing, io_manager_key=names.resource(Resource.VECTORS)),
        required_resource_keys=names.resources(*CORPUS, Resource.ENCODERS, Resource.PROGRESS),
    )
    def embed(context: dg.OpExecutionContext, config: CandidateIdList) -> None:
        embed_videos(
            context,
            names,
            stage,
            [check_video_id(video_id) for video_id in config.video_ids],
            take_corpus(context.resources, names),
            take_encoders(context.resources, names),
            take_listener(context.resources, names),
            generation=config.generation,
            force=config.force,
        )

    @dg.job(
        name=names.candidate_job(stage),
        description=f"Embeds the {stage} of the video_ids in the run's config by the model that the settings"
        " ask for, while another one serves.",
        tags={**names.run_tags(), STAGE_TAG: str(stage)},
        executor_def=locking_in_process_executor,
    )
    def job() -> None:
        embed()

    return job


def erasure_job(names: CorpusNames) -> dg.JobDefinition:
    """The job that erases the videos in a run's config."""

    @dg.op(
        name=names.erasure_op,
        out=dg.Out(dg.Nothing, io_manager_key=names.resource(Resource.VECTORS)),
        required_resource_keys=names.resources(*CORPUS),
    )
    def erase(context: dg.OpExecutionContext, config: ErasureList) -> None:
        # much that definitions should not wait for
        from clipfarm_dagster.orchestration.runs.erase import erase_in_run

        erase_in_run(context, names, config, take_corpus(context.resources, names))

    @dg.job(
        name=names.erasure_job,
        description=(
            "Erases the videos in the run's config for good, and keeps them away. Their ids are removed from"
            " this run by the sensor's next tick, or the next `clipfarm sync`, after it has ended."
        ),
        tags=names.run_tags(),
        executor_def=locking_in_process_executor,
    )
    def job() -> None:
        erase()

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


def checks_schedule(names: CorpusNames, job: "UnresolvedAssetJobDefinition") -> dg.ScheduleDefinition:
    """Runs the checks each night; off at first."""
    return dg.ScheduleDefinition(
        name=names.checks_schedule,
        job=job,
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Checks all embeddings and each model's canary every night at 3 o'clock UTC.",
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


class CutOver(dg.Config):
    """Of which stage another generation is to serve."""

    stage: Literal["video", "audio", "text"] = Field(description="The stage.")


def cut_over_job(names: CorpusNames) -> dg.JobDefinition:
    """The job that lets a candidate serve which has all vectors, or finishes a cut-over that was broken
    off."""

    @dg.op(
        name=names.cut_over_op,
        out=dg.Out(dg.Nothing, io_manager_key=names.resource(Resource.VECTORS)),
        required_resource_keys=names.resources(*CORPUS),
    )
    def switch(context: dg.OpExecutionContext, config: CutOver) -> None:
        run_cut_over(context, names, Stage(config.stage), take_corpus(context.resources, names))

    @dg.job(
        name=names.cut_over_job,
        description="Lets the vectors of the wanted model serve, once all videos have one.",
        tags=names.run_tags(),
        executor_def=locking_in_process_executor,
    )
    def job() -> None:
        switch()

    return job
