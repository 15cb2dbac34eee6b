"""What the subcommands share: the `--json` option, tables, and the Dagster instance they work with."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipfarm_dagster.errors import ClipFarmError, SettingsError
from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    import dagster as dg

    from clipfarm_dagster.corpus import Corpus
    from clipfarm_dagster.settings import Settings

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


def examples(*lines: str) -> str:
    """Command lines at the end of a help text."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


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


class _Table(Table):
    """A table with columns that are not broken, though the terminal be narrower."""

    least_width = 0


class _PlainConsole(Console):
    """A console without markup that shows what it is given as text as it is, and obeys none of it."""

    def __init__(self, *, stderr: bool) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts line by line, and what else rich can print; a table as wide as what must stay whole."""
        texts = (_visible_lines(o) if isinstance(o, str) else o for o in objects)
        there = self.width
        self.width = max([there, *(o.least_width for o in objects if isinstance(o, _Table))])
        super().print(*texts, **options)
        self.width = there


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


_WHOLE = ("generation", "video_id", "variable")
"""Columns that a narrow terminal does not break: people copy what stands in them."""
_LEAST_COLUMN = 12
"""Characters to which other columns may be narrowed."""


def table(title: str | None, columns: list[str], rows: list[list[str]]) -> Table:
    """A table whose first column is text and whose numbers line up on the right."""
    made = _Table(
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
        widest = max((cell_len(visible(text)) for text in [column, *(row[i] for row in rows)]), default=0)
        made.least_width += (widest if column in _WHOLE else min(widest, _LEAST_COLUMN)) + 2
    for row in rows:
        made.add_row(*(Text(visible(cell)) for cell in row))  # not markup, though a title may look like it
    return made


_SPEAK_AFTER_SECONDS = 3.0


def open_corpus(settings: Settings | None = None) -> Corpus:
    """The corpus of the settings, its bucket asked once; a person is told if no answer comes for a while.

    Raises:
        SettingsError: a setting is unusable.
        StoreError: the store cannot be read, or its folder not be created.
    """
    from clipfarm_dagster.corpus import Corpus

    corpus = Corpus.open(settings)
    if (place := corpus.store.endpoint) is not None:
        with _told_when_slow(
            f"no answer yet from {corpus.store.url} at {place}; still trying, up to a minute"
        ):
            corpus.store.head(corpus.keys.corpus_id())
    return corpus


@contextmanager
def _told_when_slow(what: str) -> Iterator[None]:
    """Say something on standard error if the block takes longer than a person waits without a word."""
    timer = Timer(_SPEAK_AFTER_SECONDS, lambda: error_console().print(f"clipfarm: {what}", soft_wrap=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def home_left_alone(settings: Settings) -> Iterator[Settings]:
    """The settings; where the home folder has no ledgers yet, with a temporary one in its place. Opening
    them makes copies of the store's, and what only looks should change nothing."""
    if settings.home_files.state.is_dir():
        yield settings
        return
    with TemporaryDirectory(prefix="clipfarm-plan-") as folder:
        yield settings.model_copy(update={"home": Path(folder)})


def dagster_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance of `DAGSTER_HOME`, else ClipFarm's own in the home folder, made when new.

    Raises:
        SettingsError: `DAGSTER_HOME` leads to no instance.
    """
    import dagster as dg  # the commands that need no Dagster do not wait for it

    from clipfarm_dagster.instance import ensure_instance

    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(ensure_instance(settings.home_files.dagster))
    try:
        return dg.DagsterInstance.get()
    except dg.DagsterError as error:
        raise SettingsError(str(error)) from error
