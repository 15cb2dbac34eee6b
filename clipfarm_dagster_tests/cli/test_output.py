"""What people see of texts that are not the program's own."""

from __future__ import annotations

import logging

import pytest
from rich.console import Console

from clipfarm_dagster.cli.output import VisibleFormatter, table, visible


def test_a_table_shows_texts_as_they_are():
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table("Nearest to 'rain [b]'", ["title"], [["rain [official video]"], ["rain [/i]"]]))

    lines = [line.strip() for line in capture.get().splitlines()]
    assert lines == ["Nearest to 'rain [b]'", "title", "rain [official video]", "rain [/i]"]


@pytest.mark.parametrize(
    "text", ["Ünï 你好", "👩\u200d👩\u200d👧", "שלום", "a  b\u00a0c", "e\u0301", "[b]x[/b]"]
)
def test_other_texts_are_shown_as_they_are(text: str):
    assert visible(text) == text


def test_a_log_record_is_shown_line_by_line():
    record = logging.LogRecord("library", logging.WARNING, "", 0, "one \x1b[2J\n%s", ("two \x9b2J",), None)
    assert VisibleFormatter("%(levelname)s:%(message)s").format(record) == "WARNING:one \\x1b[2J\ntwo \\x9b2J"
