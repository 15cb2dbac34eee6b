"""Manifests and fused vectors as Dagster's assets: what a run records, and what one bad strategy costs."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from clipfarm_dagster.definitions import build_definitions, defs
from clipfarm_dagster.manifests.refresh import stored_manifest
from clipfarm_dagster.orchestration.jobs import manifests_run_config
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.corpora import embed, embed_all, open_corpus, write_metadata

IDS = [f"v{number:02d}" for number in range(12)]


@pytest.fixture
def instance(tmp_path):
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def corpus(tmp_path):
    corpus = open_corpus(tmp_path / "home")
    write_metadata(corpus, IDS)
    return corpus


def _run(corpus, instance, *, strategies=("concat",), job=DEFAULT_NAMES.manifests_job, **options):
    resources = {
        "object_store": ObjectStoreResource(url=corpus.settings.store_url),
        "stage_state": StageStateResource(home=str(corpus.settings.home)),
    }
    definitions = build_definitions(resource_overrides=resources)
    options.setdefault("run_config", manifests_run_config(DEFAULT_NAMES, strategies))
    return definitions.resolve_job_def(job).execute_in_process(
        instance=instance, raise_on_error=False, **options
    )


def _latest(instance, key, partition=None):
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(key, asset_partitions=[partition] if partition else None), limit=1
    ).records
    return records[0].asset_materialization if records else None


def test_one_run_makes_the_manifests_and_then_the_fused_vectors(corpus, instance):
    embed_all(corpus, IDS)

    assert _run(corpus, instance).success

    for stage in Stage:
        made = _latest(instance, DEFAULT_NAMES.manifest(stage))
        assert made.metadata["dagster/row_count"].value == 12
        assert made.metadata["written"].value is True
        assert stored_manifest(corpus, stage)[0].table.num_rows == 12
    fused = _latest(instance, DEFAULT_NAMES.fused, "concat")
    assert fused.metadata["dagster/row_count"].value == 12
    assert fused.metadata["vectors_read"].value == 36
    assert _latest(instance, DEFAULT_NAMES.fused, "mean") is None


def test_a_run_that_finds_nothing_changed_keeps_the_data_versions(corpus, instance):
    embed_all(corpus, IDS)
    _run(corpus, instance)
    first = [
        _latest(instance, key).tags["dagster/data_version"] for key in map(DEFAULT_NAMES.manifest, Stage)
    ]
    fused = _latest(instance, DEFAULT_NAMES.fused, "concat").tags["dagster/data_version"]

    assert _run(corpus, instance).success

    assert first == [
        _latest(instance, key).tags["dagster/data_version"] for key in map(DEFAULT_NAMES.manifest, Stage)
    ]
    again = _latest(instance, DEFAULT_NAMES.fused, "concat")
    assert again.metadata["written"].value is False
    assert again.tags["dagster/data_version"] == fused


def test_fused_vectors_are_stale_once_a_manifest_changed_and_fresh_after_the_next_run(corpus, instance):
    def status():
        graph = defs.resolve_asset_graph()
        resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
        return resolver.get_status(DEFAULT_NAMES.fused, "concat").value

    embed_all(corpus, IDS)
    _run(corpus, instance)
    assert status() == "FRESH"

    embed(corpus, Stage.TEXT, IDS[:1], version="2")
    _run(corpus, instance, asset_selection=[DEFAULT_NAMES.manifest(Stage.TEXT)], run_config={})
    assert status() == "STALE"

    _run(corpus, instance)
    assert status() == "FRESH"


def test_a_strategy_that_does_not_fit_fails_alone(corpus, instance):
    embed(corpus, Stage.VIDEO, IDS, dimension=6)
    embed(corpus, Stage.AUDIO, IDS)
    embed(corpus, Stage.TEXT, IDS)

    result = _run(corpus, instance, strategies=("mean", "concat"))

    assert not result.success
    [failure] = [event for event in result.all_node_events if event.is_step_failure]
    assert "equal dimension" in failure.step_failure_data.user_failure_data.description
    assert _latest(instance, DEFAULT_NAMES.fused, "concat").metadata["dagster/row_count"].value == 12
    states = instance.get_status_by_partition(DEFAULT_NAMES.fused, ["mean", "concat"], _partitions())
    assert {name: state.name for name, state in states.items()} == {
        "mean": "FAILED",
        "concat": "MATERIALIZED",
    }


def _partitions():
    return defs.resolve_asset_graph().get(DEFAULT_NAMES.fused).partitions_def


def test_one_partition_of_the_fused_manifest_can_be_materialized_alone(corpus, instance):
    embed_all(corpus, IDS)
    _run(corpus, instance)

    result = _run(
        corpus, instance, asset_selection=[DEFAULT_NAMES.fused], partition_key="weighted", run_config={}
    )

    assert result.success
    assert _latest(instance, DEFAULT_NAMES.fused, "weighted").metadata["dagster/row_count"].value == 12


def test_a_lost_vector_is_named_counted_and_becomes_work(corpus, instance):
    embed_all(corpus, IDS)
    corpus.store.delete(corpus.keys.embedding(Stage.AUDIO, "v07"))

    assert _run(corpus, instance).success

    fused = _latest(instance, DEFAULT_NAMES.fused, "concat")
    assert (fused.metadata["dagster/row_count"].value, fused.metadata["dropped"].value) == (11, 1)
    [record] = fused.metadata["dropped_videos"].records
    assert record.data["video_id"] == "v07"
    assert record.data["problem"] == "there is no such object"
    with corpus.ledger(Stage.AUDIO) as ledger:
        assert ledger.rows(["v07"])["v07"].vector_contract_id is None
