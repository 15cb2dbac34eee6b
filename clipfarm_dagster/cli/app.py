"""Puts the subcommands together, and turns errors into one clear line and an exit code."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Callable

import dagster as dg
import typer
from rich.console import Console

from clipfarm_dagster.cli import (
    atlas,
    canary,
    demo,
    dev,
    erasing,
    manifests,
    migrate,
    nodes,
    planning,
    reconcile,
    searching,
    state,
    sync,
    transfer,
)
from clipfarm_dagster.cli.output import VisibleFormatter, error_console
from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.orchestration.full_disk import disk_line
from clipfarm_dagster.orchestration.interrupts import EXIT_CODE

app = typer.Typer(
    name="clipfarm",
    help="Keeps the video, audio and text embeddings of short videos up to date.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
planning.register(app)
sync.register(app)
manifests.register(app)
state.register(app)
searching.register(app)
transfer.register(app)
atlas.register(app)
canary.register(app)
nodes.register(app)
migrate.register(app)
reconcile.register(app)
erasing.register(app)
demo.register(app)
dev.register(app)


def run(interrupted: Callable[[], bool]) -> int:
    """Run the command that the process was started for; returns its exit code.

    0: all well; 1: items failed or bad; 2: the command could not do its work; 130: it was interrupted, as
    `interrupted` may be the only one to know.
    """
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(VisibleFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    # what of Dagster is beta is used knowingly, and its warnings would hide the command's own words
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    stderr = error_console()
    try:
        return app(standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        return EXIT_CODE
    except Exception as error:
        if interrupted():
            return EXIT_CODE
        return _tell(error, stderr)


def _tell(error: Exception, stderr: Console) -> int:
    """Say what went wrong; returns the exit code."""
    if line := disk_line(error):
        stderr.print(f"clipfarm: {line}", soft_wrap=True)
    elif isinstance(error, (ClipFarmError, OSError)):  # the latter: a folder that cannot be made
        stderr.print(f"clipfarm: {error}", soft_wrap=True)
    elif isinstance(error, typer.TyperException):  # the command line itself is wrong
        if message := error.format_message():  # there is none where the help was all that was wanted
            stderr.print(f"clipfarm: {message} (see --help)", soft_wrap=True)
    else:
        stderr.print("".join(traceback.format_exception(error)), soft_wrap=True, end="")
        stderr.print("clipfarm: stopped by an internal error, shown above; please report it")
    return 2
