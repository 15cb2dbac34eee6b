"""The embeddings, one asset a stage, and how a run embeds the videos that it was given."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from clipfarm_dagster.modalities.registry import MODALITIES
from clipfarm_dagster.orchestration.assets.beta import accept_beta
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.resources.taking import (
    CORPUS,
    take_corpus,
    take_encoders,
    take_listener,
)
from clipfarm_dagster.orchestration.runs.embed import WANTED, embed_videos
from clipfarm_dagster.stages import Stage

PARTITIONS_PER_RUN = 500
"""Most partitions of one run of a backfill: enough to pay for starting it and loading a model."""


class Embedding(dg.Config):
    """How the partitions of a run are embedded."""

    force: bool = Field(
        default=False, description="Embed again also what is up to date: the model, and with it the vector."
    )


def embedding_assets(names: CorpusNames) -> list[dg.AssetsDefinition]:
    """One asset a stage for the generation that serves, and one for its candidate."""
    return [
        _embedding_asset(names, stage, candidate=candidate) for stage in Stage for candidate in (False, True)
    ]


@accept_beta
def _embedding_asset(names: CorpusNames, stage: Stage, *, candidate: bool) -> dg.AssetsDefinition:
    folder = f"generations/{stage}/<contract_id>" if candidate else f"embeddings/{stage}"
    description = MODALITIES[stage].embedding_description.format(folder=folder)
    if candidate:
        description = (
            f"The {stage} vectors of the model that the settings ask for, while those of another model serve."
            " They are kept apart until all videos have one; then they serve, and this asset has nothing to"
            f" do.\n\n{description}"
        )

    @dg.asset(
        key=names.candidate(stage) if candidate else names.embedding(stage),
        deps=[names.raw(stage)],
        partitions_def=names.partitions_def,
        group_name=names.group("candidates" if candidate else "embeddings"),
        description=description,
        code_version=MODALITIES[stage].preprocess_version,
        kinds={"python", "pytorch", "numpy"},
        tags={"clipfarm/stage": str(stage)},
        output_required=False,
        io_manager_key=names.resource(Resource.VECTORS),
        required_resource_keys=names.resources(*CORPUS, Resource.ENCODERS, Resource.PROGRESS),
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=PARTITIONS_PER_RUN),
    )
    def embedding(context: dg.AssetExecutionContext, config: Embedding) -> Iterator[dg.Output[None]]:
        embed_videos(
            context,
            names,
            stage,
            context.partition_keys,
            take_corpus(context.resources, names),
            take_encoders(context.resources, names),
            take_listener(context.resources, names),
            generation=WANTED if candidate else None,
            force=config.force,
        )
        yield from ()  # each success has recorded itself; an output would speak for all partitions at once

    return embedding
