"""`clipfarm config`: every setting's value and where it comes from."""

from __future__ import annotations

import typer

from clipfarm_dagster.cli.output import Json, console, examples, print_json, table
from clipfarm_dagster.maintenance.deployment import effective_settings, environment_that_counts
from clipfarm_dagster.settings import SETTINGS_FILE, load_settings


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm config", "clipfarm config --json"))(config)


def config(as_json: Json = False) -> None:
    """Show every setting's value and where it comes from; never a password.

    A setting comes from the environment, else from the file `clipfarm.env` in the home folder, else it has
    its default.
    """
    settings = load_settings()
    found, others = effective_settings(settings), environment_that_counts()
    if as_json:
        print_json(
            {
                "file": str(settings.home / SETTINGS_FILE),
                "settings": {one.variable: {"value": one.value, "source": one.source} for one in found},
                "environment": others,
            }
        )
        return
    out = console()
    out.print(f"Settings file: {settings.home / SETTINGS_FILE}", soft_wrap=True)
    given = [[one.variable, one.source, one.value] for one in found if one.source != "default"]
    default = [[one.variable, one.value] for one in found if one.source == "default"]
    out.print(table("Set", ["variable", "from", "value"], given))
    if others:
        out.print()
        out.print(table("Besides", ["variable", "value"], [[*pair] for pair in others.items()]))
    out.print()
    out.print(table("By default", ["variable", "value"], default))
