"""Runs several long-lived programs as one: all of them, or none."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from clipfarm_dagster.errors import ServiceEndedError

STOP_SECONDS = 30.0
"""Runs that are interrupted record what they have finished; what takes longer is killed."""
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Service:
    """One program."""

    name: str
    """As a message calls it."""
    command: Sequence[str]
    ready: Path | None = None
    """A Unix socket; the next program is started when something answers there."""


def run_services(services: Sequence[Service], environment: Mapping[str, str]) -> None:
    """Start the programs one after the other, and return when SIGINT, SIGTERM or SIGHUP has ended them all.

    Each has a process group of its own, and its whole group is interrupted, so that runs end as they do on
    Ctrl-C. A second signal kills at once.

    Raises:
        ServiceEndedError: one ended by itself; the others were ended too.
    """
    running: list[tuple[Service, subprocess.Popen[bytes]]] = []
    with _stop_signals() as stop:
        try:
            for service in services:
                running.append((service, _start(service, environment)))
                while not (stop.is_set() or _is_ready(service)):
                    stop.wait(_LOOK_SECONDS)
                    _check(running)
                if stop.is_set():
                    return
            while not stop.wait(_LOOK_SECONDS):
                _check(running)
        finally:
            stop.clear()
            _end([process for _, process in running], stop)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that signals set, SIGINT too where it was ignored before, as for what a script starts by `&`.

    SIGHUP stays ignored where it is: that is what `nohup` asks for.
    """
    stop = threading.Event()

    def handler(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _start(service: Service, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(service.command, env=environment, stdin=subprocess.DEVNULL, process_group=0)


def _is_ready(service: Service) -> bool:
    if service.ready is None:
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(service.ready)) == 0


def _check(running: Sequence[tuple[Service, subprocess.Popen[bytes]]]) -> None:
    for service, process in running:
        if (code := process.poll()) is not None:
            raise ServiceEndedError(
                f"{service.name} ended unexpectedly (exit code {code}); everything was stopped"
            )


def _end(processes: Sequence[subprocess.Popen[bytes]], hurry: threading.Event) -> None:
    """Interrupt all groups, and kill what is left after a while or at the next signal."""
    for process in processes:
        _signal(process, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    while any(_is_alive(process) for process in processes):
        if time.monotonic() > deadline or hurry.wait(_LOOK_SECONDS / 5):
            break
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _is_alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether any process of the group is left. Those that became ours when their parent ended are reaped."""
    process.poll()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-process.pid, os.WNOHANG) != (0, 0):
            pass
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
