"""Dagster's webserver behind the guard: `python -m clipfarm_dagster.web.dagster_ui PORT WORKSPACE_FILE`.

It is what `dagster-webserver` serves, whose own command has no place for a middleware.
"""

from __future__ import annotations

import logging
import sys

import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.cli import (
    DEFAULT_DB_STATEMENT_TIMEOUT,
    DEFAULT_POOL_MAX_OVERFLOW,
    DEFAULT_POOL_RECYCLE,
)
from dagster_webserver.version import __version__

from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.web.guard import Guard
from clipfarm_dagster.web.serving import serve

GRAPHQL = "/graphql"
_POLL_MILLISECONDS = 2000
"""How often the UI asks for news of assets; what `dagster dev` tells it."""


def main(port: int, workspace: str) -> None:
    """Serve Dagster's UI over `DAGSTER_HOME` and the code locations of a workspace file."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    guard = Guard(port, load_settings().hosts(), frozenset({GRAPHQL}))
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(
            DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW
        )
        with WorkspaceProcessContext(
            instance, version=__version__, workspace_load_target=WorkspaceFileTarget(paths=[workspace])
        ) as context:
            serve(
                create_app_from_workspace_process_context(context, live_data_poll_rate=_POLL_MILLISECONDS),
                guard,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
