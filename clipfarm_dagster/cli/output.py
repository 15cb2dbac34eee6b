"""What the subcommands share: the `--json` option, tables, and the Dagster instance they work with."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import dagster as dg
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")
]
Stages = Annotated[
    list[Stage] | None,
    typer.Option("--stage", help="Only this stage; may be given several times. All by default."),
]


def console() -> Console:
    """The console for people; on standard output, without markup: texts are shown as they are."""
    return Console(highlight=False, markup=False)


def print_json(answer: Any) -> None:
    """Print the one JSON object of a command."""
    print(json.dumps(answer, ensure_ascii=False))


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table whose first column is text and whose numbers line up on the right."""
    made = Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2)
    )
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(row[i].replace(",", "").isdigit() for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))  # as they are: a title may hold what looks like markup
    return made


def dagster_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance of `DAGSTER_HOME`, else ClipFarm's own in the home folder, made when new.

    Raises:
        SettingsError: `DAGSTER_HOME` leads to no instance.
    """
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(ensure_instance(settings.home / "dagster"))
    try:
        return dg.DagsterInstance.get()
    except dg.DagsterError as error:
        raise SettingsError(str(error)) from error
