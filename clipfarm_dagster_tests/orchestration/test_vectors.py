"""Vectors as inputs of other assets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import numpy as np
import pytest

from clipfarm_dagster import VectorMatrix
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.errors import ClipFarmError, VideoNotFoundError
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import l2_normalise, to_npy
from clipfarm_dagster_tests.support.corpora import embed, open_corpus

KEY = DEFAULT_NAMES.embedding(Stage.TEXT)
IDS = ["a", "b", "c"]
taken: list[Any] = []


@pytest.fixture
def corpus(tmp_path):
    taken.clear()
    return open_corpus(tmp_path / "home")


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, IDS)
        yield instance


@dg.asset(ins={"given": dg.AssetIn(KEY)}, partitions_def=DEFAULT_NAMES.partitions_def)
def with_partitions(given: np.ndarray) -> None:
    taken.append(given)


@dg.asset(
    ins={"given": dg.AssetIn(KEY)},
    partitions_def=DEFAULT_NAMES.partitions_def,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def with_ranges(given: VectorMatrix) -> None:
    taken.append(given)


@dg.asset(ins={"given": dg.AssetIn(KEY)})
def without_partitions(given) -> None:
    taken.append(given)


@dg.asset(ins={"given": dg.AssetIn(DEFAULT_NAMES.manifest(Stage.TEXT))})
def of_a_manifest(given) -> None:
    taken.append(given)


def definitions(corpus: Corpus, *more: Any) -> dg.Definitions:
    resources = {
        "object_store": ObjectStoreResource(url=corpus.settings.store_url),
        "stage_state": StageStateResource(home=str(corpus.settings.home)),
    }
    mine = [with_partitions, with_ranges, without_partitions, of_a_manifest, *more]
    return dg.Definitions.merge(build_definitions(resource_overrides=resources), dg.Definitions(assets=mine))


def take(corpus: Corpus, instance: dg.DagsterInstance, asset: str, **options: Any) -> Any:
    """What an asset gets as its input."""
    job = definitions(corpus).resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(asset)], **options)
    return taken[-1]


def assert_same(found: VectorMatrix, made: dict[str, np.ndarray], video_ids: Sequence[str]) -> None:
    assert list(found.video_ids) == list(video_ids)
    assert found.vectors.dtype == np.float32
    assert np.array_equal(found.vectors, np.stack([made[video_id] for video_id in video_ids]))


def test_a_partition_gets_its_vector(corpus, instance):
    made = embed(corpus, Stage.TEXT, IDS)

    found = take(corpus, instance, "with_partitions", partition_key="b")

    assert (found.shape, found.dtype) == ((8,), np.float32)
    assert np.array_equal(found, made["b"])


def test_an_asset_without_partitions_gets_all_that_are_done_and_follows_them(corpus, instance):
    made = embed(corpus, Stage.TEXT, ["b", "a"])
    assert_same(take(corpus, instance, "without_partitions"), made, ["a", "b"])

    made |= embed(corpus, Stage.TEXT, ["b", "c"], version="2")
    assert_same(take(corpus, instance, "without_partitions"), made, IDS)


def test_an_asset_without_partitions_gets_an_empty_matrix_where_nothing_is_done(corpus, instance):
    assert len(take(corpus, instance, "without_partitions")) == 0


def test_a_range_of_partitions_gets_their_matrix_and_so_does_one_that_asks_for_it(corpus, instance):
    made = embed(corpus, Stage.TEXT, IDS)
    bounds = {"dagster/asset_partition_range_start": "b", "dagster/asset_partition_range_end": "c"}

    assert_same(take(corpus, instance, "with_ranges", tags=bounds), made, ["b", "c"])
    assert_same(take(corpus, instance, "with_ranges", partition_key="a"), made, ["a"])


def test_a_notebook_loads_vectors_through_the_definitions(corpus, instance):
    made = embed(corpus, Stage.TEXT, IDS)

    found = definitions(corpus).load_asset_value(KEY, partition_key="a", instance=instance)

    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, made["a"])


@pytest.mark.parametrize("asset", ["with_partitions", "with_ranges"])
def test_a_video_without_a_vector_is_named(corpus, instance, asset):
    embed(corpus, Stage.TEXT, ["a"])

    with pytest.raises(VideoNotFoundError, match="no text vector of 1 videos: 'b': it has none"):
        take(corpus, instance, asset, partition_key="b")

    assert taken == []


@pytest.mark.parametrize("damage", ["deleted", "replaced"])
@pytest.mark.parametrize(
    ("asset", "options"), [("with_partitions", {"partition_key": "b"}), ("without_partitions", {})]
)
def test_a_vector_that_is_not_the_one_recorded_is_refused_and_named(corpus, instance, asset, options, damage):
    embed(corpus, Stage.TEXT, IDS)
    key = corpus.keys.embedding(Stage.TEXT, "b")
    if damage == "deleted":
        corpus.store.delete(key)
    else:
        [other] = l2_normalise(np.ones((1, 8)))
        corpus.store.put(key, to_npy(other))

    problem = {"deleted": "there is no such object", "replaced": "another vector than"}[damage]
    with pytest.raises(VideoNotFoundError, match=f"'b': .*{problem}"):
        take(corpus, instance, asset, **options)

    assert taken == []


def test_only_embeddings_can_be_inputs(corpus, instance):
    with pytest.raises(
        ClipFarmError, match="text_manifest cannot be loaded as an input, only embeddings can"
    ):
        take(corpus, instance, "of_a_manifest")


def test_nothing_is_stored_through_it(corpus, instance):
    @dg.asset(io_manager_key="clipfarm_vectors")
    def misplaced() -> list[float]:
        return [1.0]

    job = definitions(corpus, misplaced).resolve_implicit_global_asset_job_def()
    with pytest.raises(
        ClipFarmError, match="misplaced/result: this IO manager only loads ClipFarm's vectors"
    ):
        job.execute_in_process(instance=instance, asset_selection=[misplaced.key])
