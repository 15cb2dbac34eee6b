"""The manifests, one asset a modality: what its ledger says is done, as a table that other programs read."""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.explore.overviews import manifest_overview
from clipfarm_dagster.explore.pictures import Overview, overview_picture
from clipfarm_dagster.ledger.schema import FAILED_STATUSES, LedgerRow
from clipfarm_dagster.manifests.refresh import refresh_manifest
from clipfarm_dagster.modalities.previews import data_uri_markdown
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus
from clipfarm_dagster.stages import Stage

_LISTED = 100
_SHA1_DIGITS = 40
"""Of a revision; with all of a folder's SHA-256 the page would cut off the failures' last column."""


def overview_metadata(context: dg.AssetExecutionContext, gather: Callable[[], Overview]) -> dict[str, Any]:
    """The picture of a manifest as metadata.

    A manifest is right without its picture: where metadata or a vector cannot be read, the log says so.
    """
    try:
        overview = gather()
    except ClipFarmError as error:
        context.log.warning(f"no picture this time: {error}")
        return {}
    alt = f"{overview.title}: {overview.total} vectors on a plane, coverage, norms and throughput"
    return {"overview": dg.MetadataValue.md(data_uri_markdown(overview_picture(overview), alt))}


def _failures_metadata(failures: Sequence[LedgerRow]) -> dict[str, Any]:
    """Videos that failed, with their causes, the latest first."""
    metadata: dict[str, Any] = {"failed": len(failures)}
    if failures:
        metadata["failures"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "video_id": row.video_id,
                        "status": row.status or "",
                        "cause": (row.error or "")
                        + (f" ({n} attempts)" if (n := row.retry_count) > 1 else ""),
                        "at": (row.processed_at or "")[: len("2026-01-31T08:00")].replace("T", " "),
                    }
                )
                for row in failures[:_LISTED]
            ]
        )
    return metadata


def manifest_assets(names: CorpusNames) -> list[dg.AssetsDefinition]:
    """One asset a modality."""
    return [_manifest_asset(names, stage) for stage in Stage]


def _manifest_asset(names: CorpusNames, stage: Stage) -> dg.AssetsDefinition:
    @dg.asset(
        key=names.manifest(stage),
        deps=[names.embedding(stage)],
        group_name=names.group("manifests"),
        description=(
            f"Every {stage} vector that is done under the present contract: `manifests/{stage}.parquet`."
        ),
        kinds={"python", "parquet"},
        tags={"clipfarm/stage": str(stage)},
        io_manager_key=names.resource(Resource.VECTORS),
        required_resource_keys=names.resources(*CORPUS),
    )
    def manifest(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        corpus = take_corpus(context.resources, names)
        key = corpus.keys.manifest(stage)
        with corpus.stage(stage) as opened:
            refreshed = refresh_manifest(opened)
            picture = overview_metadata(
                context, lambda: manifest_overview(corpus, opened.ledger, refreshed.manifest)
            )
            failures = opened.ledger.with_status(FAILED_STATUSES)
        made = refreshed.manifest
        rows = made.table.num_rows
        done = "written" if refreshed.written else "nothing has changed"
        context.log.info(f"{rows} {stage} vectors; {done}: {key}")
        return dg.MaterializeResult(
            metadata={
                **picture,
                "dagster/row_count": rows,
                "dagster/column_schema": dg.TableSchema(
                    [dg.TableColumn(field.name, str(field.type)) for field in made.table.schema]
                ),
                "written": refreshed.written,
                "contract": made.contract.id,
                "model": made.contract.model_name,
                "revision": made.contract.model_revision[:_SHA1_DIGITS],
                "key": dg.MetadataValue.path(f"{corpus.store.url}/{key}"),
                **_failures_metadata(failures),
            },
            data_version=dg.DataVersion(refreshed.etag),
        )

    return manifest
