"""A real PostgreSQL server for tests, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from workbench.hosts import Host


@dataclass(frozen=True)
class PostgresServer:
    """A server that runs."""

    url: str
    """Less a database."""
    process_id: int


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
    process = subprocess.Popen(command, user=user, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        url = f"postgresql://clipfarm@{address}:{port}"
        _wait_until_ready(url, process)
        yield PostgresServer(url, process.pid)
    finally:
        process.send_signal(signal.SIGINT)  # SIGTERM waits for clients, and an interrupted test may leave one
        process.wait(30)


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
