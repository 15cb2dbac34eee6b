"""Several hosts on this machine: network namespaces on a bridge, each with folders and a name of its own.

Needs root, on Linux. The bridge has an address on this machine, so that tests reach what runs on the hosts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUBNET = "10.77.0"
_PRIVATE_FOLDERS = ("/tmp/ray", "/dev/shm")


def hosts_problem() -> str | None:
    """Why no hosts can be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is missing"
    tried = subprocess.run(["unshare", "-n", "-m", "-u", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else tried.stderr.decode(errors="replace").strip()


@dataclass
class Host:
    """One host; what it runs ends with it."""

    name: str
    address: str
    interface: str
    holder: subprocess.Popen[bytes]
    folder: Path
    """A folder that no other host uses."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def enter(self) -> list[str]:
        """What to put before a command so that it runs on this host."""
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", "--uts", "--"]

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a program on this host."""
        process = subprocess.Popen(
            [*self.enter, *command],
            env={**os.environ, "HOME": str(self.folder), **environment},
            **options,
        )
        self.processes.append(process)
        return process

    def cut(self) -> None:
        """Cut it off from the network: nothing comes and nothing goes, and nobody is told."""
        _ip("link", "set", self.interface, "down")

    def mend(self) -> None:
        """Connect it again."""
        _ip("link", "set", self.interface, "up")

    def kill(self) -> None:
        """End all that runs on it at once, as a power cut does."""
        for process_id in _ip("netns", "pids", self.name).split():
            if int(process_id) != self.holder.pid:
                with suppress(ProcessLookupError):
                    os.kill(int(process_id), signal.SIGKILL)
        for process in self.processes:
            process.wait(30)


@contextmanager
def hosts(names: Sequence[str], folder: Path) -> Iterator[dict[str, Host]]:
    """Hosts of these names for the time of a block."""
    mark = f"cf{os.getpid() % 100_000}"
    bridge = f"{mark}br"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("address", "add", f"{SUBNET}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        made = {}
        for number, name in enumerate(names, 10):
            made[name] = stack.enter_context(_host(f"{mark}{name}", f"{SUBNET}.{number}", bridge, folder))
        yield made


@contextmanager
def _host(name: str, address: str, bridge: str, folder: Path) -> Iterator[Host]:
    interface = f"{name}v"[:15]
    own = folder / name
    own.mkdir()
    _ip("netns", "add", name)
    try:
        _ip("link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", interface, "master", bridge, "up")
        _ip("-netns", name, "address", "add", f"{address}/24", "dev", "eth0")
        for inner in ("eth0", "lo"):
            _ip("-netns", name, "link", "set", inner, "up")
        mounts = "".join(f"mkdir -p {path} && mount -t tmpfs tmpfs {path} && " for path in _PRIVATE_FOLDERS)
        command = ["ip", "netns", "exec", name, "unshare", "-m", "-u", "sh", "-c"]
        holder = subprocess.Popen([*command, f"hostname {name} && {mounts} exec sleep 100000"])
        host = Host(name, address, interface, holder, own)
        _wait_until_held(host)
        try:
            yield host
        finally:
            host.kill()
            holder.kill()
            holder.wait()
    finally:
        _ip("netns", "del", name)


def _wait_until_held(host: Host) -> None:
    """Wait until the host has its name, and its folders."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if Path(f"/proc/{host.holder.pid}/comm").read_text().strip() == "sleep":
            return
        time.sleep(0.02)
    raise RuntimeError(f"the host {host.name} was not made")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, check=False, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
