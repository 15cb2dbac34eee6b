"""Fixtures of the engine tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint, minilm_folder
from clipfarm_dagster.engine.computing import Computing
from clipfarm_dagster.engine.distributed.actors import RayOptions
from clipfarm_dagster.engine.distributed.ray_computing import RayComputing
from clipfarm_dagster.engine.engine import LocalComputing
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.bench import Bench, bench
from clipfarm_dagster_tests.support.faults import FaultyPreparer
from clipfarm_dagster_tests.support.nodes import node_loader
from workbench.ray_cluster import Cluster


@pytest.fixture(scope="session")
def audio_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small wav2vec2 with random weights."""
    return make_audio_checkpoint(tmp_path_factory.mktemp("audio"), hidden_size=64, intermediate_size=64)


@pytest.fixture(scope="session")
def audio_encoder(audio_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """It, through the real loader."""
    home = tmp_path_factory.mktemp("home")
    return load_encoder(
        Stage.AUDIO, load_settings(home=home, audio={"model": str(audio_model)}, device="cpu")
    )


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The real MiniLM."""
    home = tmp_path_factory.mktemp("home")
    settings = load_settings(home=home, text={"model": str(minilm_folder())}, device="cpu")
    return load_encoder(Stage.TEXT, settings)


Computed = Callable[[Stage, Path], Callable[[Callable[[], Encoder]], Computing]]


@pytest.fixture
def computed(request: pytest.FixtureRequest, tmp_path: Path) -> Computed:
    """Where a stage's model computes: here, or on the nodes of a cluster; tests name it as `engine`."""
    if getattr(request, "param", "local") == "local":
        return lambda stage, model: LocalComputing
    cluster: Cluster = request.getfixturevalue("on_cluster")
    options = RayOptions(cluster.address, actors=1, lease_size=16)
    return lambda stage, model: (
        lambda load: RayComputing(options, node_loader(stage, model, tmp_path / "node"), workers=2)
    )


@pytest.fixture
def audio(
    audio_encoder: Encoder,
    audio_model: Path,
    computed: Computed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """An empty audio stage over a folder, whose preparer breaks where a raw object asks for it."""
    monkeypatch.setattr(audio_encoder, "preparer", FaultyPreparer(audio_encoder.preparer))
    with bench(audio_encoder, ObjectStore.open(str(tmp_path / "store")), tmp_path) as made:
        made.computing = computed(Stage.AUDIO, audio_model)
        yield made


@pytest.fixture
def text(
    text_encoder: Encoder,
    store: ObjectStore,
    computed: Computed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """An empty text stage over a folder, and over S3; many batches of a few items."""
    monkeypatch.setattr(text_encoder, "batch_size", 16)
    with bench(text_encoder, store, tmp_path) as made:
        made.computing = computed(Stage.TEXT, minilm_folder())
        if made.computing is not LocalComputing and store.url.startswith("s3://"):
            pytest.skip("the nodes were started before this S3 server; test_cluster has both")
        yield made
