"""What helps a person at the terminal: help with examples, version, completion, widths, and words in time."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from clipfarm_dagster.cli.app import COMMANDS, CommandGroup, app
from clipfarm_dagster_tests.cli.test_terminal import COMMAND

PROGRAM = [sys.executable, "-c", COMMAND]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine counts."""
    for name in [name for name in os.environ if name.startswith(("CLIPFARM_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def on_terminal(columns: int, *arguments: str) -> str:
    """What a terminal of so many columns is sent."""
    own, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm"},
    )
    os.close(theirs)
    sent = b""
    try:
        while part := os.read(own, 65536):
            sent += part
    except OSError:  # on Linux the end of a terminal's output is an error
        pass
    finally:
        os.close(own)
        process.wait()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent.decode()).replace("\r\n", "\n")


def command_names() -> list[str]:
    group = loaded_group()
    names = []
    for name in COMMANDS:
        command = group.loaded(name)
        names += [f"{name} {sub}" for sub in getattr(command, "commands", {})] or [name]
    return names


def loaded_group() -> CommandGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, CommandGroup)
    return group


def test_help_imports_no_large_module():
    program = (
        "import sys; sys.argv = ['clipfarm', '--help']; from clipfarm_dagster.cli import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, sep='\\n', file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)

    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)
    heavy = {"dagster", "sqlalchemy", "numpy", "pydantic", "pydantic_settings", "obstore", "boto3", "torch"}
    assert not heavy & set(done.stderr.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_itself(name: str):
    first_paragraph = (loaded_group().loaded(name).help or "").split("\n\n")[0]

    assert " ".join(first_paragraph.split()) == COMMANDS[name][1]


@pytest.mark.parametrize("name", ["", *command_names(), "migrate"])
def test_each_help_has_examples_that_can_be_typed(name: str):
    command: Any = loaded_group() if not name else loaded_group().loaded(name.split()[0])
    if " " in name:
        assert isinstance(command, TyperGroup)
        command = command.commands[name.split()[1]]
    title, *lines = (command.epilog or "").splitlines()

    assert title == "Examples:"
    assert lines
    for line in lines:
        assert len(line) < 80
        program, *arguments = shlex.split(line)
        assert program == "clipfarm"
        assert name.split() == arguments[: len(name.split())]
        parse(arguments)


def parse(arguments: list[str]) -> None:
    """Have a command line parsed, and nothing done. Raises what the command would."""
    group = loaded_group()
    context = group.make_context("clipfarm", ["--show-completion"], resilient_parsing=True)
    command: Any = group
    while isinstance(command, TyperGroup) and not arguments[0].startswith("-"):
        _, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command = found
    command.make_context("command", list(arguments), parent=context, resilient_parsing=command is group)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("arguments", ["--help", "search --help", "config"])
def test_a_terminal_shows_whole_lines(columns: int, arguments: str):
    sent = on_terminal(columns, *arguments.split())

    words = {"--help": "doctor", "search --help": "-k", "config": "CLIPFARM_FETCH_TIMEOUT_SECONDS"}
    lines = [line for line in sent.splitlines() if not line.startswith("Settings file:")]  # a path is whole
    assert words[arguments] in sent
    assert max(map(len, lines)) <= columns


def test_the_version_is_told():
    assert re.fullmatch(
        r"clipfarm \d+\.\d+\.\d+ \(Dagster 1\.\S+, Python 3\.\S+\)\n", run("--version").stdout
    )


def test_a_shell_completes_commands_and_options():
    def completed(words: str) -> set[str]:
        environment = {"_CLIPFARM_COMPLETE": "complete_bash", "COMP_WORDS": words}
        program = f"import sys; sys.argv[0] = 'clipfarm'; {COMMAND}"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **environment, "COMP_CWORD": str(len(words.split(" ")) - 1)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return set(done.stdout.split())

    assert completed("clipfarm s") == {"sync", "status", "search"}
    assert completed("clipfarm migrate r") == {"roll-back"}
    assert completed("clipfarm plan --stage t") == {"text"}
    assert "--show-completion" in run("--help").stdout


def test_verbose_shows_where_an_error_comes_from_before_or_after_the_command():
    quiet = run("plan", CLIPFARM_STORE_URL="https://user:secret@host")
    before = run("-v", "plan", CLIPFARM_STORE_URL="https://user:secret@host")
    after = run("plan", "--verbose", CLIPFARM_STORE_URL="https://user:secret@host")

    for ended in (quiet, before, after):
        assert ended.returncode == 2
        assert "secret" not in ended.stdout + ended.stderr
        assert ended.stderr.splitlines()[-1].startswith("clipfarm: the store's URL (https://…)")
    assert len(quiet.stderr.splitlines()) == 1
    assert before.stderr.startswith("Traceback")
    assert after.stderr.startswith("Traceback")


def test_a_store_that_does_not_answer_is_told_while_it_is_waited_for():
    environment = {
        **os.environ,
        "CLIPFARM_STORE_URL": "s3://bucket",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # the port of discarding, which nothing listens at
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    with subprocess.Popen([*PROGRAM, "plan"], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            told = process.stderr.readline()
            assert process.poll() is None
        finally:
            process.kill()

    assert told.startswith("clipfarm: no answer yet from s3://bucket at http://127.0.0.1:9;")


def test_planning_and_configuration_create_nothing(tmp_path: Path):
    for command in ("plan", "config"):
        run(command)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "store").mkdir()
    assert "metadata" in run("plan", CLIPFARM_STORE_URL="store").stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
