"""What the pages name is there: links, headings, files, modules and make targets."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from clipfarm_dagster_tests.support.media import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
FOLDERS = ("clipfarm_dagster", "clipfarm_dagster_tests", "workbench", "benchmarks", "scripts", "docs")

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def _prose(page: Path) -> str:
    """A page's text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", _prose(page))


def _anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and GitLab link to them."""
    headings = re.findall(r"^#+ +(.+?) *$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _recipe(target: str) -> list[str]:
    """The commands of a make target."""
    makefile = (REPOSITORY / "Makefile").read_text()
    found = re.search(rf"^{target}:.*\n((?:\t.+\n)+)", makefile, re.MULTILINE)
    assert found, target
    return [line.strip() for line in found[1].splitlines()]


@page
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        address = urlsplit(link)
        target = page.parent / address.path if address.path else page
        if address.scheme:
            continue
        if not target.exists() or (address.fragment and address.fragment not in _anchors(target)):
            broken.append(link)

    assert broken == []


@page
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = [span for span in _code_spans(page) if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w/.-]*", span)]

    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@page
def test_every_module_that_is_named_exists(page: Path) -> None:
    named = [span for span in _code_spans(page) if re.fullmatch(r"clipfarm_dagster(\.[a-z_0-9]+)+", span)]

    assert [name for name in named if importlib.util.find_spec(name) is None] == []


@page
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))

    assert named <= targets


def test_pre_commit_runs_what_make_lint_runs() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]

    assert [hook["entry"] for hook in hooks] == _recipe("lint")
    assert {hook["language"] for hook in hooks} == {"system"}


def test_the_packages_of_the_architecture_are_those_that_imports_are_checked_for() -> None:
    drawn = re.search(
        r"^```text\n(cli .*?)^```", (REPOSITORY / "docs/architecture.md").read_text(), re.M | re.S
    )
    assert drawn
    lines = [re.split(r" {2,}", line)[0] for line in drawn[1].splitlines()]
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    [rooms] = [each for each in config["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]

    assert lines == rooms["layers"]
