"""A Ray cluster of several hosts (see `hosts`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.hosts import Host
from workbench.ray_cluster import ray_program, wait_until_started

_REPOSITORY = Path(__file__).parents[1]
_PORT = 6379
_PORTS = (
    "--node-manager-port=7001",
    "--object-manager-port=7002",
    "--runtime-env-agent-port=7003",
    "--dashboard-agent-grpc-port=7004",
    "--dashboard-agent-listen-port=7005",
    "--metrics-export-port=7006",
    "--min-worker-port=10002",
    "--max-worker-port=10200",
)
"""Ray's ports on each host: all of them named, as a firewall needs it."""

_USE_CLUSTER = """
import sys, time, ray
for attempt in range(30):
    try:
        ray.init(address=sys.argv[1], _node_ip_address=sys.argv[2], log_to_driver=False)
        break
    except Exception:
        if attempt == 29:
            raise
        time.sleep(1)
"""


def start_head(host: Host, environment: Mapping[str, str]) -> str:
    """Start the cluster's head on a host, where nothing is computed; returns its address."""
    arguments = ["--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false"]
    process = _start(host, arguments, environment)
    address = f"{host.address}:{_PORT}"
    wait_until_started(address, environment, _log(host), process, host.enter)
    return address


def join(host: Host, address: str, environment: Mapping[str, str], *, cores: int) -> None:
    """Let a host join a cluster. It need not be there at once."""
    _start(host, [f"--address={address}", f"--num-cpus={cores}"], environment)


def wait_until_joined(host: Host, address: str, environment: Mapping[str, str]) -> None:
    """Wait until programs on a host can use the cluster that it has joined.

    Raises:
        subprocess.CalledProcessError: it has not come.
    """
    command = [*host.enter, sys.executable, "-c", _USE_CLUSTER, address, host.address]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)


def _start(host: Host, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [
        ray_program() or "ray",
        "start",
        "--block",
        f"--node-ip-address={host.address}",
        *arguments,
        *_PORTS,
        "--object-store-memory=100000000",
        "--disable-usage-stats",
    ]
    with _log(host).open("ab") as log:
        python_path = {"PYTHONPATH": str(_REPOSITORY)}
        return host.start(command, {**python_path, **environment}, stdout=log, stderr=subprocess.STDOUT)


def _log(host: Host) -> Path:
    return host.folder / "ray.log"
