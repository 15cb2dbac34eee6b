"""Connects this process with a Ray cluster, and leaves the process as it was."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipfarm_dagster.errors import ClusterError

_PROC = Path("/proc")
_CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The `ray` module, connected to the cluster at `address` for the time of a block.

    Ray's messages go to standard error, and signals are handled as before.

    Raises:
        ClusterError: Ray is not installed, this host is not part of the cluster, or the cluster cannot be
            reached.
    """
    if not address:
        raise ClusterError(
            "CLIPFARM_ENGINE is ray, and RAY_ADDRESS does not say which cluster; set it to HOST:PORT of the"
            " head, and join this host by `ray start --address=HOST:PORT --num-cpus=0`"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ClusterError(
            "CLIPFARM_ENGINE is ray, and Ray is not installed; run `pip install '.[ray]'` in ClipFarm's"
            " repository"
        ) from None
    if not _has_raylet():
        # without one Ray does not raise: it aborts the process
        raise ClusterError(
            f"this host is not part of the Ray cluster at {address}; join it by"
            f" `ray start --address={address} --num-cpus=0` (0: nothing is computed here)"
        )
    _check_reachable(address)
    main = threading.current_thread() is threading.main_thread()
    handlers = (
        {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    )
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=_own_address(address),
            )
        except Exception as error:
            raise ClusterError(
                f"the Ray cluster at {address} cannot be used ({type(error).__name__}: {error}); `ray status"
                f" --address={address}` on this host should show it"
            ) from error
    _restore(handlers)
    try:
        yield ray
    finally:
        ray.shutdown()
        _restore(handlers)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, and then say little."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"the Ray cluster at {address} cannot be used: its head cannot be reached ({error});"
            " RAY_ADDRESS must be HOST:PORT of `ray start --head --port=…`"
        ) from None


def _own_address(address: str) -> str | None:
    """This host's address as the cluster's head sees it. Ray's own guess is the way to the internet; where
    there is none, it takes this process for one of the head's."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((host, int(port)))  # sends nothing
        own: str = way.getsockname()[0]
        return None if own.startswith("127.") else own
    return None


def _has_raylet() -> bool:
    """Whether Ray runs on this host; where that cannot be seen, it is taken for granted."""
    if not _PROC.is_dir():
        return True
    for name in _PROC.glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if name.read_text().strip() == "raylet":
                return True
    return False
