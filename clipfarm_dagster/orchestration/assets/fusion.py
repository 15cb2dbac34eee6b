"""The fused manifest, one partition a strategy: one vector a video, of all its modalities."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import FusionError
from clipfarm_dagster.explore.overviews import fused_overview
from clipfarm_dagster.manifests.fusion import Fusion
from clipfarm_dagster.manifests.refresh import RefreshedFusion, refresh_fused
from clipfarm_dagster.manifests.strategies import STRATEGIES, make_strategy
from clipfarm_dagster.orchestration.assets.beta import accept_beta
from clipfarm_dagster.orchestration.assets.manifests import overview_metadata
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.recording import (
    data_version_tags,
    record_events,
    record_failed_partitions,
)
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus
from clipfarm_dagster.stages import Stage

STRATEGY_PARTITIONS = dg.StaticPartitionsDefinition(list(STRATEGIES))
"""One partition a fusion strategy."""

CODE_VERSION = "1"
"""Raised by hand whenever the same vectors would be fused otherwise."""

_LISTED = 100


class FusionConfig(dg.Config):
    """Which strategies a run without partitions brings up to date."""

    strategies: list[str] = Field(
        default=[], description="Names of strategies, where the run has no partition; by default all."
    )


@accept_beta
def fused_asset(names: CorpusNames) -> dg.AssetsDefinition:
    """The one asset of fused vectors."""

    @dg.asset(
        key=names.fused,
        deps=[names.manifest(stage) for stage in Stage],
        partitions_def=STRATEGY_PARTITIONS,
        group_name=names.group("manifests"),
        description=(
            "One vector per video that has every modality: `fused/<strategy>/fused_manifest.parquet`."
        ),
        code_version=CODE_VERSION,
        kinds={"python", "parquet"},
        output_required=False,
        io_manager_key=names.resource(Resource.VECTORS),
        required_resource_keys=names.resources(*CORPUS),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def fused_manifest(context: dg.AssetExecutionContext, config: FusionConfig) -> Iterator[dg.Output[None]]:
        corpus = take_corpus(context.resources, names)
        strategies = (
            context.partition_keys if context.run.is_partitioned else config.strategies or list(STRATEGIES)
        )
        problems: dict[str, str] = {}
        for name in strategies:
            try:
                refreshed = refresh_fused(corpus, make_strategy(name, corpus.settings.fusion_weights))
            except FusionError as error:
                problems[name] = str(error)
                continue
            context.log.info(f"{name}: {_summary(refreshed.fusion)}")
            for dropped in refreshed.fusion.dropped[:_LISTED]:
                context.log.warning(f"{name}: {dropped.video_id} left out: {dropped.key}: {dropped.problem}")
            picture = _picture(context, corpus, name, refreshed)
            record_events(context, [_materialization(corpus, names, name, refreshed, picture)])
        if problems:
            record_failed_partitions(context, names.fused, list(problems))
            raise dg.Failure("\n".join(problems.values()), allow_retries=False)
        yield from ()  # each strategy has recorded itself

    return fused_manifest


def _summary(fusion: Fusion) -> str:
    if not fusion.changed:
        return f"{fusion.rows} rows; nothing has changed"
    return (
        f"{fusion.rows} rows, {fusion.reused} of them as they were; {fusion.objects_read} vectors read,"
        f" {len(fusion.dropped)} missing or wrong"
    )


def _picture(
    context: dg.AssetExecutionContext, corpus: Corpus, strategy: str, refreshed: RefreshedFusion
) -> dict[str, Any]:
    return overview_metadata(context, lambda: fused_overview(corpus, strategy, refreshed))


def _materialization(
    corpus: Corpus, names: CorpusNames, strategy: str, refreshed: RefreshedFusion, picture: dict[str, Any]
) -> dg.AssetMaterialization:
    fusion = refreshed.fusion
    metadata: dict[str, Any] = {
        **picture,
        "dagster/row_count": fusion.rows,
        "written": fusion.changed,
        "rows_kept": fusion.reused,
        "vectors_read": fusion.objects_read,
        "dropped": len(fusion.dropped),
        "key": dg.MetadataValue.path(f"{corpus.store.url}/{corpus.keys.fused_manifest(strategy)}"),
    }
    if fusion.dropped:
        metadata["dropped_videos"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "video_id": dropped.video_id,
                        "modality": str(dropped.stage or ""),
                        "key": dropped.key,
                        "problem": dropped.problem,
                    }
                )
                for dropped in fusion.dropped[:_LISTED]
            ]
        )
    return dg.AssetMaterialization(
        asset_key=names.fused,
        partition=strategy,
        metadata=metadata,
        tags=data_version_tags(
            refreshed.copy.etag,
            CODE_VERSION,
            {names.manifest(stage): refreshed.manifest_etags.get(stage, "") for stage in Stage},
        ),
    )
