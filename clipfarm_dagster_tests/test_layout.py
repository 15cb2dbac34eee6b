"""The rules of the tree that import-linter does not check: no loose modules, and files that fit a head."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from clipfarm_dagster_tests.support.media import REPOSITORY

PACKAGE = REPOSITORY / "clipfarm_dagster"
LONGEST_FILE = 450
LONG_FUNCTION = 60
LONG_SHARE = 0.01


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def test_loose_modules_are_few_and_known():
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert loose == {"definitions", "errors", "settings", "stages", "timestamps"}


def test_no_file_is_long():
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines())
        for path in modules(
            "clipfarm_dagster", "clipfarm_dagster_tests", "benchmarks", "scripts", "workbench"
        )
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_few_functions_are_long():
    lengths = {
        f"{path.stem}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in modules("clipfarm_dagster")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = [name for name, length in lengths.items() if length > LONG_FUNCTION]
    assert len(long) <= LONG_SHARE * len(lengths), long


def test_rooms_import_only_the_rooms_below_them():
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-logo"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout
