"""A real PostgreSQL server for tests, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from workbench.hosts import Host


@dataclass(eq=False)
class PostgresServer:
    """A server that can be stopped and started again, with what it holds."""

    url: str
    """Less a database."""
    command: Sequence[str]
    folder: Path
    user: int | None
    """Whom it runs as."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def process_id(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            self.command, user=self.user, cwd=self.folder, stderr=subprocess.DEVNULL
        )
        _wait_until_ready(self.url, self.process)

    def stop(self) -> None:
        """Stop it at once, as for a restart: its clients' connections are ended."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients
        self.process.wait(30)


@contextmanager
def postgres_server(host: Host | None = None) -> Iterator[PostgresServer]:
    """Run a server on a free port of 127.0.0.1, or of a host; its files lie in a folder of its own: those of
    pytest become private again whenever another session starts."""
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    with (
        tempfile.TemporaryDirectory(prefix="clipfarm-postgres-") as folder,
        _running(initdb, server, Path(folder), host) as running,
    ):
        yield running


@contextmanager
def _running(initdb: str, server: str, folder: Path, host: Host | None) -> Iterator[PostgresServer]:
    address, enter = (host.address, host.enter) if host else ("127.0.0.1", [])
    user = _unprivileged_user(folder)
    data = str(folder / "data")
    command = [initdb, "-D", data, "-U", "clipfarm", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["-c", "fsync=off", "-c", f"listen_addresses={address}", "-c", "unix_socket_directories="]
    command = [server, "-D", data, "-p", str(port), *options]
    if host is not None:  # entering it takes what PostgreSQL must not have
        with Path(data, "pg_hba.conf").open("a") as access:
            access.write("host all all samenet trust\n")
        command, user = [*enter, "setpriv", f"--reuid={user}", "--clear-groups", *command], None
    running = PostgresServer(f"postgresql://clipfarm@{address}:{port}", command, folder, user)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def new_database(server_url: str) -> str:
    """Create an empty database and return its URL."""
    import psycopg2

    name = f"test_{uuid.uuid4().hex}"
    connection = psycopg2.connect(f"{server_url}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{server_url}/{name}"


@contextmanager
def connections(url: str) -> Iterator[list[int]]:
    """How many connections a database has, looked at all the time, besides those that look."""
    import psycopg2

    counted: list[int] = []
    ended = threading.Event()
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name <> 'looking'"
    )

    def count() -> None:
        while not ended.wait(0.005):
            try:
                with closing(psycopg2.connect(url, application_name="looking")) as connection:
                    cursor = connection.cursor()
                    cursor.execute(query)
                    counted.append(cursor.fetchone()[0])
            except psycopg2.OperationalError:  # the server is being restarted
                continue

    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(count)
        try:
            yield counted
        finally:
            ended.set()
            counting.result()


def _program(name: str) -> str | None:
    """One of the server's programs, which Debian keeps off the PATH, one folder a version."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


def _unprivileged_user(folder: Path) -> int | None:
    """PostgreSQL refuses to run as root, so there it runs as `nobody`, who must get at `folder`."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(folder, nobody, -1)
    return nobody


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    import psycopg2

    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg2.connect(f"{url}/postgres").close()
            return
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
