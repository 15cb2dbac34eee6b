"""What the subcommands share: the `--json` option, tables, and the Dagster instance they work with."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Annotated, Any

import dagster as dg
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipfarm_dagster.errors import ClipFarmError, SettingsError
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
Generation = Annotated[
    str,
    typer.Option(
        metavar="CONTRACT_ID",
        help="Read this generation, not the one that serves; the id's first characters are enough.",
    ),
]
AllowPartial = Annotated[
    bool,
    typer.Option("--allow-partial", help="With --generation: also if it lacks videos that are served."),
]


# C0, DEL and C1 controls, what ends lines or turns the order of letters round, and half surrogate pairs
# (bytes of the command line that are no UTF-8): a terminal acts on these, or cannot be sent them
_STEERING = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STEERING_IN_LINES = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""A text for a terminal, each character that would steer it written as in Python: ESC as `\x1b`.

    Titles, ids, file names and causes of errors are others' texts.
    """
    return _STEERING.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _visible_lines(text: str) -> str:
    return _STEERING_IN_LINES.sub(_escaped, text)


class VisibleFormatter(logging.Formatter):
    """Formats log records for a terminal, line by line, as `visible` does."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        return _visible_lines(super().format(record))


class _PlainConsole(Console):
    """A console without markup that shows what it is given as text as it is, and obeys none of it."""

    def __init__(self, *, stderr: bool) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts line by line, and what else rich can print."""
        texts = (_visible_lines(o) if isinstance(o, str) else o for o in objects)
        super().print(*texts, **options)


def console() -> Console:
    """The console for people; on standard output, without markup: texts are shown as they are."""
    return _PlainConsole(stderr=False)


def error_console() -> Console:
    """The same on standard error."""
    return _PlainConsole(stderr=True)


def print_json(answer: Any) -> None:
    """Print the one JSON object of a command."""
    # a terminal acts on these even in JSON, where an escape means the same
    print(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(answer, ensure_ascii=False)))


def confirmed(question: str) -> None:
    """Ask a person on standard error whether to go on; returns only then.

    Raises:
        ClipFarmError: the answer is no, or there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise ClipFarmError("this removes things for good, and nobody is there to ask; give --yes")
    if not typer.confirm(visible(question), err=True):
        raise ClipFarmError("nothing was changed")


_WHOLE = ("generation",)
"""Columns that a narrow terminal does not break: people copy what stands in them."""


def table(title: str | None, columns: list[str], rows: list[list[str]]) -> Table:
    """A table whose first column is text and whose numbers line up on the right."""
    made = Table(
        title=None if title is None else Text(visible(title)),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2),
    )
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(row[i].replace(",", "").isdigit() for row in rows)
        made.add_column(
            visible(column), justify="right" if numeric else "left", overflow="fold", no_wrap=column in _WHOLE
        )
    for row in rows:
        made.add_row(*(Text(visible(cell)) for cell in row))  # not markup, though a title may look like it
    return made


def dagster_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance of `DAGSTER_HOME`, else ClipFarm's own in the home folder, made when new.

    Raises:
        SettingsError: `DAGSTER_HOME` leads to no instance.
    """
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(ensure_instance(settings.home_files.dagster))
    try:
        return dg.DagsterInstance.get()
    except dg.DagsterError as error:
        raise SettingsError(str(error)) from error
