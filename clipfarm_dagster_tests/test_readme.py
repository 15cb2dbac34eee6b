"""What the README promises of commands and settings is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.core import TyperGroup

from clipfarm_dagster.cli.app import app
from clipfarm_dagster.settings import Settings, settings_table

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_every_command_is_documented_and_no_other():
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    commands = set(group.commands)

    assert set(re.findall(r"^\| `clipfarm ([a-z-]+)", README, re.MULTILINE)) == commands


def test_the_table_of_settings_is_the_one_that_the_settings_give():
    begin, end = "<!-- settings: begin -->\n", "<!-- settings: end -->"
    table = README[README.index(begin) + len(begin) : README.index(end)]

    assert table == settings_table()


def test_every_setting_has_a_description():
    assert "| |" not in settings_table()
    assert "`CLIPFARM_HOME`" in settings_table()
    assert len(settings_table().splitlines()) - 2 > len(Settings.model_fields)


def test_the_pinned_models_of_the_readme_are_the_defaults():
    for stage in (Settings().video, Settings().audio, Settings().text):
        assert f"`{stage.model}`" in README
        assert f"`{stage.revision}`" in README
