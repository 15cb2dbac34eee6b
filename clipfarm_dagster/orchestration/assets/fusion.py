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
from clipfarm_dagster.orchestration.names import FUSED_ASSET_KEY, manifest_asset_key
from clipfarm_dagster.orchestration.recording import (
    data_version_tags,
    record_events,
    record_failed_partitions,
)
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
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
def _fused_asset() -> dg.AssetsDefinition:
    @dg.asset(
        name="fused_manifest",
        deps=[manifest_asset_key(stage) for stage in Stage],
        partitions_def=STRATEGY_PARTITIONS,
        group_name="manifests",
        description=(
            "One vector a video that has every modality: `fused/<strategy>/fused_manifest.parquet`."
        ),
        code_version=CODE_VERSION,
        kinds={"python", "parquet"},
        output_required=False,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def fused_manifest(
        context: dg.AssetExecutionContext,
        config: FusionConfig,
        object_store: ObjectStoreResource,
        stage_state: StageStateResource,
    ) -> Iterator[dg.Output[None]]:
        corpus = stage_state.corpus(object_store)
        names = (
            context.partition_keys if context.run.is_partitioned else config.strategies or list(STRATEGIES)
        )
        problems: dict[str, str] = {}
        for name in names:
            try:
                refreshed = refresh_fused(corpus, make_strategy(name, corpus.settings.fusion_weights))
            except FusionError as error:
                problems[name] = str(error)
                continue
            context.log.info(f"{name}: {_summary(refreshed.fusion)}")
            for dropped in refreshed.fusion.dropped[:_LISTED]:
                context.log.warning(f"{name}: {dropped.video_id} left out: {dropped.key}: {dropped.problem}")
            picture = _picture(context, corpus, name, refreshed)
            record_events(context, [_materialization(corpus, name, refreshed, picture)])
        if problems:
            record_failed_partitions(context, FUSED_ASSET_KEY, list(problems))
            raise dg.Failure("\n".join(problems.values()), allow_retries=False)
        yield from ()  # each strategy has recorded itself

    return fused_manifest


FUSED_ASSET = _fused_asset()


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
    corpus: Corpus, strategy: str, refreshed: RefreshedFusion, picture: dict[str, Any]
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
        asset_key=FUSED_ASSET_KEY,
        partition=strategy,
        metadata=metadata,
        tags=data_version_tags(
            refreshed.copy.etag,
            CODE_VERSION,
            {manifest_asset_key(stage): refreshed.manifest_etags.get(stage, "") for stage in Stage},
        ),
    )
