"""One partition by hand: its preview also where nothing is to do, and embedding it again if that is asked."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.recording import DATA_VERSION_TAG
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

KEY = DEFAULT_NAMES.embedding(Stage.TEXT)


@pytest.fixture
def synced(corpus: Corpus, instance: dg.DagsterInstance) -> Corpus:
    """A corpus of two texts that are up to date."""
    put_metadata(corpus, [metadata_row("a"), metadata_row("b")])
    for video_id in ("a", "b"):
        put_transcript(corpus, video_id, f"said in {video_id}")
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)
    return corpus


def materialize(
    instance: dg.DagsterInstance, video_id: str, key: dg.AssetKey = KEY, **config: Any
) -> dg.AssetMaterialization | None:
    """Materialize one partition, as the UI does; what Dagster was told."""
    job = build_definitions().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance,
        partition_key=video_id,
        asset_selection=[key],
        run_config={"ops": {key.to_python_identifier(): {"config": config}}} if config else None,
    )
    assert result.success
    return latest(instance, video_id, key)


def latest(
    instance: dg.DagsterInstance, video_id: str, key: dg.AssetKey = KEY
) -> dg.AssetMaterialization | None:
    """What Dagster shows of a partition."""
    asked = dg.AssetRecordsFilter(key, asset_partitions=[video_id])
    [record] = instance.fetch_materializations(asked, limit=1).records
    return record.asset_materialization


def shown(event: dg.AssetMaterialization | None) -> dict[str, Any]:
    assert event is not None
    return {name: value.value for name, value in event.metadata.items()}


def test_a_partition_that_is_up_to_date_shows_its_preview(synced: Corpus, instance: dg.DagsterInstance):
    metadata = shown(materialize(instance, "a"))

    assert metadata["outcome"] == "up_to_date"
    assert "said in a" in metadata["preview"]
    with synced.ledger(Stage.TEXT) as ledger:
        assert ledger.rows(["a"])["a"].seconds is not None


def test_a_preview_that_cannot_be_made_does_not_fail_what_is_up_to_date(
    synced: Corpus, instance: dg.DagsterInstance
):
    synced.store.delete(synced.keys.raw(Stage.TEXT, "a"))

    metadata = shown(materialize(instance, "a"))

    assert metadata["outcome"] == "up_to_date"
    assert "preview" not in metadata


def test_a_forced_partition_is_embedded_again_and_nothing_becomes_stale(
    synced: Corpus, instance: dg.DagsterInstance
):
    before = latest(instance, "a")
    with synced.ledger(Stage.TEXT) as ledger:
        old = ledger.rows(["a", "b"])

    event = materialize(instance, "a", force=True)

    with synced.ledger(Stage.TEXT) as ledger:
        new = ledger.rows(["a", "b"])
    assert shown(event)["outcome"] == "embedded"
    assert event is not None
    assert before is not None
    assert (event.tags or {})[DATA_VERSION_TAG] == (before.tags or {})[DATA_VERSION_TAG]
    assert new["a"].artifact_sha256 == old["a"].artifact_sha256
    assert (new["a"].row_version or 0) > (old["a"].row_version or 0)
    assert new["b"] == old["b"]
    graph = build_definitions().resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    assert resolver.get_status(KEY, "a") == StaleStatus.FRESH
