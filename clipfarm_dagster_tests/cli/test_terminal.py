"""No text of others steers the terminal that a command prints to: control characters are made visible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.cli.output import visible
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.corpora import embed
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

TITLE = "\x1b]0;x\x07Rain \x9b31m\u202eegdelwonk\u2066 \r[b]hidden\x08\x7f\nover"
SHOWN = r"\x1b]0;x\x07Rain \x9b31m\u202eegdelwonk\u2066 \r[b]hidden\x08\x7f\nover"

COMMAND = "from clipfarm_dagster.cli import main; main()"


def steering(text: str) -> set[str]:
    """What could steer a terminal, besides the ends of lines."""
    return {c for c in text if c != "\n" and visible(c) != c}


def test_a_title_is_shown_with_its_control_characters_visible(corpus: Corpus, clipfarm: Any):
    put_metadata(corpus, [metadata_row("v1", title=TITLE), metadata_row("v2")])
    embed(corpus, Stage.TEXT, ["v1", "v2"])

    for arguments in (
        ("search", "--like", "v2"),
        ("duplicates", "--modality", "text", "--threshold", "-1"),
        ("plan", "--explain", "v1"),
    ):
        ended = clipfarm(*arguments)
        assert ended.code == 0
        assert not steering(ended.output)
        assert SHOWN in ended.output.replace("\n", ""), arguments


def test_causes_and_ids_are_shown_so_too(corpus: Corpus, clipfarm: Any):
    put_metadata(corpus, [metadata_row("v1")])
    row = LedgerRow(video_id="v1", status=Status.INVALID_RAW_OBJECT, error=TITLE, source_hash="s")
    with corpus.ledger(Stage.AUDIO) as ledger:
        ledger.record([row, replace(row, video_id="v\x1b[2J")])

    for code, arguments in (
        (0, ("status",)),
        (1, ("retry", "w\x1b[2J")),
        (2, ("plan", "--explain", "v\x1b[2J")),
    ):
        ended = clipfarm(*arguments)
        assert ended.code == code
        assert not steering(ended.output + ended.errors)
        assert r"\x1b[2J" in ended.output + ended.errors
    assert SHOWN in clipfarm("status").output.replace("\n", "")


@pytest.mark.parametrize("name", [b"\x1b[2J", b"\xc2\x9b2J", b"\xe2\x80\xae", b"\xff"])
def test_an_error_on_stderr_is_shown_so_too(corpus: Corpus, name: bytes, tmp_path: Path):
    file = os.fsencode(tmp_path) + b"/no-such-" + name + b".npz"
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, "import", file, "--modality", "text"],
        capture_output=True,
        timeout=300,
    )

    told = ended.stderr.decode()  # it is UTF-8
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert told.startswith("clipfarm: ")
    assert visible(os.fsdecode(b"no-such-" + name)) in told.replace("\n", "")
    assert not steering(told)


def test_json_is_the_same_and_steers_nothing(corpus: Corpus, clipfarm: Any):
    put_metadata(corpus, [metadata_row("v1", title=TITLE + "Ünï 你好"), metadata_row("v2")])
    embed(corpus, Stage.TEXT, ["v1", "v2"])

    ended = clipfarm("search", "--like", "v2", "--json")

    assert not steering(ended.output)
    assert "Ünï 你好" in ended.output
    assert json.loads(ended.output)["results"][0]["title"] == TITLE + "Ünï 你好"
