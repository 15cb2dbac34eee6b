"""`clipfarm dev`: Dagster's own UI and daemon over the same data."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import yaml

from clipfarm_dagster.cli.output import examples
from clipfarm_dagster.cli.services import Service, run_services
from clipfarm_dagster.instance import WORKSPACE, ensure_instance
from clipfarm_dagster.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm dev", "clipfarm dev --port 3001"))(dev)


def dev(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 3000) -> None:
    """Serve Dagster's UI on 127.0.0.1, with its daemon, until interrupted."""
    from clipfarm_dagster.web.serving import check_port_is_free

    settings = load_settings()
    check_port_is_free(port)  # a second daemon would run all the same
    environment = {**os.environ, "CLIPFARM_HOME": str(settings.home)}
    environment.setdefault("DAGSTER_HOME", str(ensure_instance(settings.home_files.dagster)))
    print(
        f"Dagster's UI: http://127.0.0.1:{port}  (data: {settings.home}, store: {settings.store_url})",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="clipfarm-") as folder:
        run_services(dagster_services(port, Path(folder)), environment)


def dagster_services(port: int, folder: Path) -> list[Service]:
    """What `dagster dev` would start: one code server for all, the daemon, and the UI, ours behind its guard.

    `folder` takes the code server's socket, and the workspace file that names it.
    """
    target = yaml.safe_load(WORKSPACE.read_text(encoding="utf-8"))["load_from"][0]["python_module"]
    socket, workspace = folder / "code", folder / "workspace.yaml"
    location = {"socket": str(socket), "location_name": target["location_name"]}
    workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": location}]}), encoding="utf-8")
    code_server = ["dagster", "code-server", "start", "--socket", str(socket), "--log-level", "warning"]
    code_server += ["--module-name", target["module_name"], "--location-name", target["location_name"]]
    daemon = ["dagster._daemon", "run", "--workspace", str(workspace)]
    ui = ["clipfarm_dagster.web.dagster_ui", str(port), str(workspace)]
    return [
        Service("the code server", [sys.executable, "-m", *code_server], ready=socket),
        Service("Dagster's daemon", [sys.executable, "-m", *daemon]),
        Service("Dagster's UI", [sys.executable, "-m", *ui]),
    ]
