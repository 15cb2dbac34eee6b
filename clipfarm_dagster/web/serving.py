"""Serves an app on 127.0.0.1 behind the guard."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.web.guard import ADDRESS, Guard, GuardMiddleware

_LAST_ANSWERS_SECONDS = 2
"""An open page keeps a connection for ever; the server does not wait for it to be closed."""


def check_port_is_free(port: int) -> None:
    """Raise where something answers on the port.

    Raises:
        SettingsError: something does.
    """
    with socket.socket() as probe:
        if probe.connect_ex((ADDRESS, port)) == 0:
            raise SettingsError(
                f"port {port} is in use, perhaps by a server that is already running; use another --port"
            )


def serve(app: ASGIApp, guard: Guard) -> None:
    """Serve until SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored when this began
    with suppress(KeyboardInterrupt):
        uvicorn.run(
            GuardMiddleware(app, guard),
            host=ADDRESS,
            port=guard.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
        )
