"""`clipfarm dev`: Dagster's own UI and daemon over the same data."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.instance import WORKSPACE, ensure_instance
from clipfarm_dagster.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(dev)


def dev(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 3000) -> None:
    """Serve Dagster's UI on 127.0.0.1, with its daemon, until interrupted."""
    settings = load_settings()
    with socket.socket() as probe:
        # a second `dagster dev` whose port is taken would run its daemon all the same
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SettingsError(
                f"port {port} is taken, perhaps by a UI that runs already; choose another with --port"
            )
    environment = {**os.environ, "CLIPFARM_HOME": str(settings.home)}
    environment.setdefault("DAGSTER_HOME", str(ensure_instance(settings.home / "dagster")))
    print(
        f"Dagster's UI: http://127.0.0.1:{port}  (data: {settings.home}, store: {settings.store_url})",
        flush=True,
    )
    arguments = ["-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    arguments += ["-w", str(WORKSPACE)]
    os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606 - no shell is wanted
