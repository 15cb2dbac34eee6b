"""`clipfarm erase`: shows, asks, erases, proves, and certifies."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

Command = Callable[..., Ended]
GONE, KEPT = "clip-0001", "clip-0002"


@pytest.fixture
def synced(corpus: Corpus, clipfarm: Command) -> Command:
    """The command, over two videos that have text vectors."""
    put_metadata(corpus, [metadata_row(video_id) for video_id in (GONE, KEPT)])
    for video_id in (GONE, KEPT):
        put_transcript(corpus, video_id, f"said in {video_id}")
    assert clipfarm("sync", "--stage", "text", "--json").code == 0
    return clipfarm


class Person(io.StringIO):
    """Somebody at a terminal, who answers."""

    def isatty(self) -> bool:
        return True


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_shows_what_there_is_and_changes_nothing(corpus: Corpus, synced: Command, tmp_path: Path):
    before = contents(Path(corpus.store.url))

    shown = synced("erase", GONE, "--dry-run")
    told = synced("erase", GONE, "--dry-run", "--json")

    assert (shown.code, told.code) == (0, 0)
    assert "1 vector," in shown.output
    assert "nothing was changed" in shown.output
    there = told.json["there"]
    assert (there["vectors"], there["raw_objects"], there["raw_objects_kept"]) == (1, 0, 1)
    assert (there["ledger_rows"], there["dagster"]["partitions"]) == (1, 1)
    assert contents(Path(corpus.store.url)) == before
    checked = synced("erase", "--check", GONE, "--json")
    assert (checked.code, checked.json["tombstones"]) == (1, [None])
    assert contents(Path(corpus.store.url)) == before


def test_nothing_goes_without_being_asked_for(
    corpus: Corpus, synced: Command, monkeypatch: pytest.MonkeyPatch
):
    before = contents(Path(corpus.store.url))

    assert synced("erase", GONE).code == 2  # nobody is there to answer
    refused = synced("erase", GONE, "--json")
    assert (refused.code, refused.output) == (2, "")
    assert "--yes" in refused.errors
    for wrong in (["../x"], [GONE, "--dry-run", "--check"], []):
        assert synced("erase", *wrong).code == 2
    for answer in ("n\n", "\n"):
        monkeypatch.setattr(sys, "stdin", Person(answer))
        ended = synced("erase", GONE)
        assert ended.code == 2
        assert "Erase 1 video for good? There is 1 vector" in ended.errors
        assert "nothing was changed" in ended.errors
    assert contents(Path(corpus.store.url)) == before
    monkeypatch.setattr(sys, "stdin", Person("y\n"))
    assert synced("erase", GONE).code == 0
    assert corpus.store.head(corpus.keys.embedding(Stage.TEXT, GONE)) is None


def test_it_erases_proves_and_certifies(corpus: Corpus, synced: Command, tmp_path: Path):
    file = tmp_path / "certificate.json"

    ended = synced("erase", GONE, GONE, "--yes", "--raw", "--certificate", str(file))

    assert ended.code == 0, ended.errors
    assert "1 video erased: 1 vector, 1 raw object," in ended.output
    assert "Nothing is left within reach" in ended.output
    assert "clipfarm export" in ended.output
    assert "looking for what is left" in ended.errors
    certificate = json.loads(file.read_text())
    [tombstone] = corpus.tombstones.read().erasures
    assert certificate["tombstones"] == [tombstone]
    assert certificate["complete"]
    assert certificate["removed"]["vectors"] == 1
    assert certificate["traces"] == certificate["refused"] == []
    assert GONE not in file.read_text() + ended.output
    assert any("still has 1 of the videos" in line for line in certificate["out_of_reach"])
    checked = synced("erase", "--check", GONE)
    assert checked.code == 0
    assert tombstone in checked.output
    assert synced("erase", GONE, "--yes", "--json").json["complete"]
    assert synced("sync", "--stage", "text", "--json").json["stages"]["text"]["model_calls"] == 0
    with corpus.ledger(Stage.TEXT) as ledger:
        assert ledger.counts() == {"success": 1}


def test_what_is_left_is_an_exit_code_and_a_line(corpus: Corpus, synced: Command):
    assert synced("erase", GONE, "--yes").code == 0
    forgotten = corpus.settings.home / "notes.txt"
    forgotten.write_text(f"about {GONE}")
    put_transcript(corpus, GONE, "again")

    checked = synced("erase", "--check", GONE)

    assert checked.code == 1
    assert "notes.txt" in checked.output
    assert GONE not in checked.output.partition("Left in")[2]
    assert synced("erase", "--check", GONE, "--raw", "--json").json["left"]["raw_objects"] == 1
    assert synced("erase", GONE, "--yes", "--json").code == 1
