"""A real Ray cluster of one host, that tests and benchmarks start and stop."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from workbench.seaweedfs import free_ports

_REPOSITORY = Path(__file__).parents[1]
_START_SECONDS = 90.0
_WORKER_PORTS = 40
_ATTEMPTS = 3


def ray_program() -> str | None:
    """Ray's command, which its package puts beside Python."""
    beside = Path(sys.executable).with_name("ray")
    return str(beside) if beside.exists() else shutil.which("ray")


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    address: str
    folder: Path
    environment: Mapping[str, str]
    """The `RAY_*` variables that lead here."""


def cluster_environment(folder: Path) -> dict[str, str]:
    """Variables for a cluster whose token lies in `folder`; the token is made when new."""
    token = folder / "token"
    if not token.exists():
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


@contextmanager
def running_cluster(*, cores: int, environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster of this host alone, on free ports, for the time of a block.

    Args:
        cores: that it says it has.
        environment: variables that its processes have besides those of this process.
    """
    for attempt in range(_ATTEMPTS):
        # Ray's sockets lie in it, and their paths must be short
        folder = Path(tempfile.mkdtemp(prefix="ray-"))
        variables = cluster_environment(folder)
        process, address = _start(folder, cores, {**variables, **(environment or {})})
        try:
            try:
                wait_until_started(address, variables, folder / "cluster.log", process)
                _wait_for_raylet(process, folder / "cluster.log")
            except RuntimeError:  # another process may have taken one of the ports meanwhile
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            yield Cluster(address, folder, {**variables, "RAY_ADDRESS": address})
            return
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            _end_session(process.pid)
            shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, cores: int, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """Ray's processes, in a session of their own, and the address of the head."""
    program = ray_program()
    assert program is not None, "Ray is not installed (pip install clipfarm-dagster[ray])"
    port, *others = free_ports(7 + _WORKER_PORTS)
    names = ("node-manager", "object-manager", "runtime-env-agent", "dashboard-agent-grpc")
    ports = [f"--{name}-port={number}" for name, number in zip(names, others, strict=False)]
    python_path = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH")]))
    with (folder / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                "start",
                "--head",
                "--block",
                "--node-ip-address=127.0.0.1",
                f"--port={port}",
                *ports,
                f"--dashboard-agent-listen-port={others[4]}",
                f"--metrics-export-port={others[5]}",
                f"--worker-port-list={','.join(map(str, others[6:]))}",
                f"--num-cpus={cores}",
                "--include-dashboard=false",
                "--object-store-memory=200000000",
                "--disable-usage-stats",
                f"--temp-dir={folder / 't'}",
            ],
            env={**os.environ, "PYTHONPATH": python_path, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (folder / "session").write_text(str(process.pid))
    return process, f"127.0.0.1:{port}"


def wait_until_started(
    address: str,
    variables: Mapping[str, str],
    log: Path,
    process: subprocess.Popen[bytes],
    enter: Sequence[str] = (),
) -> None:
    """Wait until the head at an address answers.

    Args:
        enter: what to put before a command so that it runs where the head can be reached.

    Raises:
        RuntimeError: it does not, or its process has ended.
    """
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        asked = subprocess.run(
            [*enter, ray_program() or "ray", "health-check", f"--address={address}"],
            env={**os.environ, **variables},
            capture_output=True,
            check=False,
        )
        if asked.returncode == 0:
            return
    raise RuntimeError(f"Ray did not start: {log.read_text(errors='replace')[-2000:]}")


def _wait_for_raylet(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the part of Ray that starts last, after the head has begun to answer."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        for name in _in_session(process.pid):
            with suppress(OSError):
                if (name / "comm").read_text().strip() == "raylet":
                    return
        time.sleep(0.1)
    raise RuntimeError(f"Ray did not start on this host: {log.read_text(errors='replace')[-2000:]}")


def _end_session(session: int) -> None:
    """End what Ray has left: some of its processes outlive the one that started them."""
    for name in _in_session(session):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(int(name.name), signal.SIGKILL)


def _in_session(session: int) -> Iterator[Path]:
    """Folders in `/proc` of the processes of a session."""
    for name in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(int(name.name)) == session:
                yield name
