"""What people see of texts that are not the program's own."""

from __future__ import annotations

from rich.console import Console

from clipfarm_dagster.cli.output import table


def test_a_table_shows_texts_as_they_are():
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table("Nearest to 'rain [b]'", ["title"], [["rain [official video]"], ["rain [/i]"]]))

    lines = [line.strip() for line in capture.get().splitlines()]
    assert lines == ["Nearest to 'rain [b]'", "title", "rain [official video]", "rain [/i]"]
