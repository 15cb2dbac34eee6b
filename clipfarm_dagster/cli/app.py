"""Puts the subcommands together, and turns errors into one clear line and an exit code.

The module of a command is imported when the command is called: Dagster alone takes longer to import than a
person waits for a help text.
"""

from __future__ import annotations

import copy
import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from clipfarm_dagster.cli.output import VisibleFormatter, error_console, examples
from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.orchestration.interrupts import EXIT_CODE

if TYPE_CHECKING:
    from rich.console import Console

COMMANDS = {
    "plan": ("planning", "Show what would be embedded now, and why, by stage. Changes nothing."),
    "sync": ("sync", "Embed everything that is new or changed, through Dagster, in this process."),
    "manifests": (
        "manifests",
        "Bring manifests and fused vectors up to date with the ledgers, through Dagster, in this process.",
    ),
    "status": (
        "state",
        "Show what the ledgers hold, by stage and status, failures with causes, notes, and erased videos.",
    ),
    "verify": (
        "state",
        "Read every vector that a ledger calls a success, and check that it exists and is intact.",
    ),
    "retry": ("state", "Retry failed, invalid and quarantined videos now, and forget their failures."),
    "search": (
        "searching",
        "Find videos by words, over the text vectors, or by similarity to another video.",
    ),
    "duplicates": ("searching", "List pairs of nearly identical videos."),
    "export": (
        "transfer",
        "Write a modality's vectors, with their video_ids and their contract, to one file.",
    ),
    "import": ("transfer", "Store vectors that were made elsewhere, and record how they were made."),
    "atlas": (
        "atlas",
        "Serve a map of the fused vectors on 127.0.0.1, with title, text and thumbnail, until interrupted.",
    ),
    "canary": (
        "canary",
        "Embed a fixed input per stage and compare it, step by step, with the baseline in the store.",
    ),
    "nodes": (
        "nodes",
        "Ask each node of the cluster for its model, compare its canary, and see how fast it is.",
    ),
    "migrate": (
        "migrate",
        "Change a model without a gap: see how far its vectors are, compare, switch, go back, drop.",
    ),
    "reconcile": (
        "reconcile",
        "Tell Dagster about successes that it does not know of because of a crash. Embeds nothing.",
    ),
    "erase": (
        "erasing",
        "Erase videos for good: vectors, rows, events and caches; keep them away; and look for what is left.",
    ),
    "config": ("config", "Show every setting's value and where it comes from; never a password."),
    "doctor": ("doctor", "Check everything that embedding needs, and say what to do about what is wrong."),
    "demo": (
        "demo",
        "Make a dozen clips and small models, then let the real sensor and assets embed them.",
    ),
    "dev": ("dev", "Serve Dagster's UI on 127.0.0.1, with its daemon, until interrupted."),
}
"""Each command's module in this package, and the first paragraph of its help."""


class CommandGroup(TyperGroup):
    """Knows the commands by name; has a command's module imported when that command is resolved."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the first argument names, loaded."""
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = self.loaded(args[0])
        return super().resolve_command(ctx, args)

    def loaded(self, name: str) -> Any:
        """A command, with the option -v, which each of them takes."""
        part = typer.Typer()
        import_module(f"clipfarm_dagster.cli.{COMMANDS[name][0]}").register(part)
        command = typer.main.get_group(part).commands[name]
        [verbose] = [option for option in self.params if option.name == "verbose"]
        verbose = copy.copy(verbose)
        verbose.expose_value = False
        for each in [command, *getattr(command, "commands", {}).values()]:
            each.params.append(verbose)
        return command


app = typer.Typer(
    name="clipfarm",
    cls=CommandGroup,
    help="Keeps the video, audio and text embeddings of short videos up to date.",
    epilog=examples("clipfarm doctor", "clipfarm plan --stage text", "clipfarm --install-completion"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _named_only() -> None:
    """In place of a command that is not loaded."""


for _name, (_, _summary) in COMMANDS.items():
    app.command(_name, help=_summary)(_named_only)


def _tell_version(wanted: bool) -> None:
    if wanted:
        python = ".".join(map(str, sys.version_info[:3]))
        typer.echo(f"clipfarm {version('clipfarm-dagster')} (Dagster {version('dagster')}, Python {python})")
        raise typer.Exit


def _be_verbose(wanted: bool) -> bool:
    if wanted:
        logging.getLogger("clipfarm_dagster").setLevel(logging.INFO)
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            callback=_be_verbose,
            help="Show the log of runs, and where an error comes from, on standard error.",
        ),
    ] = False,
) -> None:
    pass


def run(interrupted: Callable[[], bool]) -> int:
    """Run the command that the process was started for; returns its exit code.

    0: all well; 1: items failed or bad; 2: the command could not do its work; 130: it was interrupted, as
    `interrupted` may be the only one to know.
    """
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(VisibleFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    # what of Dagster is beta is used knowingly, and its warnings would hide the command's own words
    warnings.filterwarnings("ignore", message=r".* is currently in beta")
    stderr = error_console()
    try:
        return app(standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_CODE
    except BaseException as error:
        if interrupted() or _is_dagsters_interrupt(error):
            return EXIT_CODE
        if not isinstance(error, Exception):
            raise
        return _tell(error, stderr)


def _is_dagsters_interrupt(error: BaseException) -> bool:
    dagster = sys.modules.get("dagster")
    return dagster is not None and isinstance(error, dagster.DagsterExecutionInterruptedError)


def _tell(error: Exception, stderr: Console) -> int:
    """Say what went wrong; returns the exit code."""
    from clipfarm_dagster.orchestration.full_disk import disk_line

    verbose = logging.getLogger("clipfarm_dagster").isEnabledFor(logging.INFO)
    if isinstance(error, typer.TyperException):  # the command line itself is wrong
        if message := error.format_message():  # there is none where the help was all that was wanted
            stderr.print(f"clipfarm: {message} (see --help)", soft_wrap=True)
        return 2
    line = disk_line(error)
    if line is None and isinstance(error, (ClipFarmError, OSError)):  # the latter: a folder cannot be made
        line = str(error)
    if line is None or verbose:
        stderr.print("".join(traceback.format_exception(error)), soft_wrap=True, end="")
    stderr.print(
        f"clipfarm: {line or 'stopped by an internal error, shown above; please report it'}", soft_wrap=True
    )
    return 2
