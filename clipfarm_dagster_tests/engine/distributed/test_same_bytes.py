"""A vector's bytes are the same on whichever engine, with however many cores and threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from clipfarm_dagster.engine.distributed.actors import RayOptions
from clipfarm_dagster.engine.distributed.ray_computing import RayComputing
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.bench import KEYS, bench
from clipfarm_dagster_tests.support.nodes import node_loader
from clipfarm_dagster_tests.support.sounds import wav
from workbench.clips import ClipSpec, encode
from workbench.ray_cluster import Cluster

ITEMS = 12


def raw_objects(stage: Stage) -> dict[str, bytes]:
    """Inputs of many lengths, so that batches and the operators in them have many shapes."""
    if stage == Stage.TEXT:
        words = [" ".join(f"word{n * k}" for n in range(3 + 17 * k)) for k in range(ITEMS)]
        return {f"v{k}": json.dumps({"transcript": text}).encode() for k, text in enumerate(words)}
    if stage == Stage.AUDIO:
        return {f"v{k}": wav(0.1 + 0.13 * k, seed=k) for k in range(ITEMS)}
    return {f"v{k}": encode(ClipSpec(frames=17 + 3 * k, width=64 + 16 * (k % 3))) for k in range(ITEMS)}


LATER = [pytest.param(stage, marks=pytest.mark.slow) for stage in (Stage.AUDIO, Stage.TEXT)]


@pytest.fixture(scope="module", params=[Stage.VIDEO, *LATER])
def stage(request: pytest.FixtureRequest) -> Stage:
    chosen: Stage = request.param
    return chosen


@pytest.fixture(scope="module")
def model(stage: Stage, checkpoints: dict[str, str]) -> Path:
    return Path(checkpoints[f"CLIPFARM_{stage.upper()}_MODEL"])


@pytest.fixture(scope="module")
def here(stage: Stage, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The vectors of this process."""
    folder = tmp_path_factory.mktemp(f"here-{stage}")
    settings = load_settings(home=folder / "home", device="cpu", **{stage: {"model": str(model)}})
    with bench(load_encoder(stage, settings), ObjectStore.open(str(folder / "store")), folder) as made:
        made.put(raw_objects(stage))
        assert made.run(list(raw_objects(stage))).outcomes == {"success": ITEMS}
        return vectors(made.store, stage)


def vectors(store: ObjectStore, stage: Stage) -> dict[str, bytes]:
    return {name: store.get(KEYS.embedding(stage, name)).data for name in raw_objects(stage)}


@pytest.fixture
def store(stage: Stage, tmp_path: Path) -> ObjectStore:
    """A store with the raw objects."""
    store = ObjectStore.open(str(tmp_path / "store"))
    store.put_many([(KEYS.raw(stage, name), data) for name, data in raw_objects(stage).items()])
    return store


@pytest.mark.parametrize("threads", ["1", pytest.param(None, marks=pytest.mark.slow)])
def test_in_a_process_with_another_number_of_threads(
    threads: str | None,
    stage: Stage,
    model: Path,
    store: ObjectStore,
    here: Mapping[str, bytes],
    tmp_path: Path,
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "clipfarm_dagster_tests.support.embed_apart", stage, str(model)]

    subprocess.run([*command, store.url, str(tmp_path)], env=environment, check=True)

    assert vectors(store, stage) == here


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_on_nodes_with_so_many_cores(
    cores: int,
    stage: Stage,
    model: Path,
    store: ObjectStore,
    here: Mapping[str, bytes],
    on_cluster: Cluster,
    tmp_path: Path,
) -> None:
    """With two cores there is one process, which computes with two threads; with one, there are two."""
    settings = load_settings(home=tmp_path / "home", device="cpu", **{stage: {"model": str(model)}})
    with bench(load_encoder(stage, settings), store, tmp_path) as made:
        options = RayOptions(on_cluster.address, actor_cores=cores, lease_size=4)
        made.computing = lambda load: RayComputing(options, node_loader(stage, model, tmp_path / "node"))
        assert made.run(list(raw_objects(stage))).outcomes == {"success": ITEMS}

    assert vectors(store, stage) == here
