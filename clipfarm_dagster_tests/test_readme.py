"""What the README promises of commands and settings is what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import typer
from typer.core import TyperGroup

from clipfarm_dagster.cli.app import app
from clipfarm_dagster.settings import Settings, settings_table
from clipfarm_dagster_tests.support.dg_project import check_defs, project_environment, run_dg

LOAD_FOLDER = """
from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
"""What `dg` scaffolds as a project's definitions."""

KITCHEN = """
[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "kitchen"
"""

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_three_ways_into_a_project_of_ones_own_load_as_they_are_written(tmp_path: Path) -> None:
    section = README.split("## In your own Dagster project\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    (_, workspace), (_, merged), (_, component) = blocks
    assert [language for language, _ in blocks] == ["yaml", "python", "yaml"]
    for path, text in {
        "workspace.yaml": workspace,
        "studio/__init__.py": "",
        "studio/definitions.py": merged,
        "pyproject.toml": KITCHEN,
        "kitchen/__init__.py": "",
        "kitchen/definitions.py": LOAD_FOLDER,
        "kitchen/defs/__init__.py": "",
        "kitchen/defs/recipes/defs.yaml": component,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    validate = ["-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    done = subprocess.run(
        [sys.executable, *validate],
        cwd=tmp_path,
        env=project_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Validation successful for code location studio.definitions" in done.stdout
    assert "Validation successful for code location clipfarm_dagster.definitions" in done.stdout
    check_defs(tmp_path)
    listed = json.loads(run_dg(tmp_path, "list", "defs", "--json"))
    assert "recipes/video_embedding" in {asset["asset_key"] for asset in listed["assets"]}
    assert [sensor["name"] for sensor in listed["sensors"]] == [
        "recipes__embedding_sensor",
        "recipes__manifest_sensor",
    ]


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
