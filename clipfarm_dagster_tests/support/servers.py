"""`clipfarm dev` and `clipfarm atlas` as processes that a test starts and ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 180
STOP_SECONDS = 60
_MARK = "STARTED_BY_THE_TESTS_ON_PORT"
"""Variable by which the descendants of a server are known."""


@dataclass(frozen=True)
class Server:
    """A command that serves."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[int]:
        """The command and all that it started, wherever they may be."""
        mark = f"{_MARK}={self.port}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def stop(self) -> int:
        """Send SIGTERM to the command, and return its exit code once nothing that it started is left.

        Raises:
            RuntimeError: something is left; it has been killed.
        """
        self.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while self.process.poll() is None or self.processes():
            if time.monotonic() > deadline:
                left = self.processes()
                self._kill()
                raise RuntimeError(f"processes {left} do not end:\n{self.tail()}")
            time.sleep(0.1)
        return self.process.returncode

    def tail(self) -> str:
        """The end of what it has printed."""
        return self.log.read_text(errors="replace")[-3000:]

    def _kill(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def clean_environment(home: Path) -> dict[str, str]:
    """This process' environment, less what other tests have set, with a home folder."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CLIPFARM_", "DAGSTER_", "COV_"))
    }
    return {**environment, "CLIPFARM_HOME": str(home)}


def clipfarm(command: str) -> list[str]:
    """A subcommand's command line."""
    return [str(Path(sys.executable).with_name("clipfarm")), command]


@contextmanager
def serving(command: str, path: str, home: Path, more: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A subcommand that serves `path` on a free port, as a script's `&` starts it: SIGINT is ignored.

    It may be stopped within the block; where it is not, it is at the end.
    """
    port = free_port()
    line = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *clipfarm(command), "--port", str(port)]
    with running(line, port, path, home, more) as server:
        yield server


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    line: Sequence[str], port: int, path: str, home: Path, more: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Any command that serves `path` on a port, stopped at the end of the block at the latest."""
    log = home / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            line,
            env={**clean_environment(home), **(more or {}), _MARK: str(port)},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    server = Server(process, port, log)
    try:
        _wait_until_served(server, path)
        yield server
    finally:
        server.stop()


def _wait_until_served(server: Server, path: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(server.url + path, timeout=5):
            return
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nothing serves {server.url}{path}:\n{server.tail()}")
        time.sleep(0.2)


def ask(
    server: Server, method: str, target: str, headers: dict[str, str], body: str | None = None
) -> tuple[int, http.client.HTTPMessage, str]:
    """One request with exactly these headers, but for `Host` where none is given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode(errors="replace")
    finally:
        connection.close()


def graphql(server: Server, query: str, **headers: str) -> Any:
    """What a GraphQL query says, asked as the UI asks."""
    own = {"Content-Type": "application/json", **headers}
    status, _, text = ask(server, "POST", "/graphql", own, json.dumps({"query": query}))
    assert status == 200, text
    return json.loads(text)["data"]
