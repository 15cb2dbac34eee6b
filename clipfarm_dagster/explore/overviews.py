"""What the picture of a manifest shows, gathered from manifests, ledgers and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.catalog.metadata import metadata_columns
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.explore.pictures import Overview
from clipfarm_dagster.explore.projection import Places, project_file, project_sample
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.manifests.manifest import Manifest
from clipfarm_dagster.manifests.refresh import RefreshedFusion, stored_manifest
from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    import numpy as np

NOT_YET = "not yet"
"""Status of videos that have no vector of the present contract, and no failure either."""


def manifest_overview(corpus: Corpus, ledger: Ledger, manifest: Manifest) -> Overview:
    """Of one modality.

    Raises:
        MetadataError: the metadata cannot be read.
        StoreError: the store cannot be read.
    """
    places, done = project_sample(corpus, manifest), manifest.table.num_rows
    counts = {status: count for status, count in ledger.counts().items() if status != Status.SUCCESS}
    not_yet = max(corpus.latest_rows().videos - done - sum(counts.values()), 0)
    return Overview(
        title=str(ledger.stage),
        places=places.points,
        groups=_queries(corpus, places),
        total=done,
        coverage={str(ledger.stage): {str(Status.SUCCESS): done, **counts, NOT_YET: not_yet}},
        norms=places.norms,
        processed_at=_seconds({ledger.stage: manifest}),
    )


def fused_overview(corpus: Corpus, strategy: str, refreshed: RefreshedFusion) -> Overview:
    """Of the vectors that a strategy fused.

    Raises:
        MetadataError: the metadata cannot be read.
        ManifestError: a manifest, or the fused one, cannot be read.
    """
    places, videos = project_file(refreshed.copy), corpus.latest_rows().videos
    manifests = {
        stage: stored_manifest(corpus, stage)[0] for stage in Stage if stage in refreshed.manifest_etags
    }
    done = {str(stage): manifest.table.num_rows for stage, manifest in manifests.items()}
    done[strategy] = refreshed.fusion.rows
    return Overview(
        title=strategy,
        places=places.points,
        groups=_queries(corpus, places),
        total=refreshed.fusion.rows,
        coverage={
            name: {str(Status.SUCCESS): count, NOT_YET: max(videos - count, 0)}
            for name, count in done.items()
        },
        norms=places.norms,
        processed_at=_seconds(manifests),
    )


def _queries(corpus: Corpus, places: Places) -> list[str]:
    return metadata_columns(corpus.latest_rows(), places.video_ids, ["query"])["query"]


def _seconds(manifests: Mapping[Stage, Manifest]) -> np.ndarray[Any, Any]:
    """When the vectors of some manifests were made, in seconds since 1970."""
    import numpy as np

    moments = [manifest.table["processed_at"].cast("int64").to_numpy() for manifest in manifests.values()]
    return np.concatenate(moments) / 1e6
