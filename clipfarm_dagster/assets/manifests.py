"""The manifests, one asset a modality: what its ledger says is done, as a table that other programs read."""

import dagster as dg

from clipfarm_dagster.assets.embeddings import embedding_asset_key
from clipfarm_dagster.manifests.refresh import refresh_manifest
from clipfarm_dagster.resources.object_store import ObjectStoreResource
from clipfarm_dagster.resources.stage_state import StageStateResource
from clipfarm_dagster.stages import Stage


def manifest_asset_key(stage: Stage) -> dg.AssetKey:
    """Key of a modality's manifest asset."""
    return dg.AssetKey(f"{stage}_manifest")


def _manifest_asset(stage: Stage) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"{stage}_manifest",
        deps=[embedding_asset_key(stage)],
        group_name="manifests",
        description=(
            f"Every {stage} vector that is done under the present contract: `manifests/{stage}.parquet`."
        ),
        kinds={"python", "parquet"},
        tags={"clipfarm/stage": str(stage)},
    )
    def manifest(
        context: dg.AssetExecutionContext, object_store: ObjectStoreResource, stage_state: StageStateResource
    ) -> dg.MaterializeResult[None]:
        corpus = stage_state.corpus(object_store)
        key = corpus.keys.manifest(stage)
        with corpus.ledger(stage) as ledger:
            refreshed = refresh_manifest(corpus, ledger)
        made = refreshed.manifest
        rows = made.table.num_rows
        done = "written" if refreshed.written else "nothing has changed"
        context.log.info(f"{rows} {stage} vectors; {done}: {key}")
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "written": refreshed.written,
                "contract": made.contract.id,
                "model": f"{made.contract.model_name}@{made.contract.model_revision}",
                "key": dg.MetadataValue.path(f"{corpus.store.url}/{key}"),
            },
            data_version=dg.DataVersion(refreshed.etag),
        )

    return manifest


MANIFEST_ASSETS = [_manifest_asset(stage) for stage in Stage]
