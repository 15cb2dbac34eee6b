"""`clipfarm plan`: counts, explanations and estimates, for people and as JSON."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

Command = Callable[..., Ended]

SUCCESS = LedgerRow(
    video_id="a",
    status=Status.SUCCESS,
    processed_at="2026-01-01T00:00:00.000000Z",
    source_hash="s",
    metadata_hash="m",
    raw_etag="e",
    vector_source_hash="s",
    seconds=2.0,
)


def test_the_json_has_the_counts_and_nothing_else(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row("a"), metadata_row("b"), metadata_row("../evil")])
    put_transcript(corpus, "a", "said")
    with corpus.ledger(Stage.TEXT) as ledger, corpus.ledger(Stage.VIDEO) as other:
        ledger.record([replace(SUCCESS, video_id="gone")])
        other.record([replace(SUCCESS, video_id="gone")])

    ended = clipfarm("plan", "--json")

    none_skipped = {"count": 0, "examples": []}
    nothing_there = {"delta": 0, "missing_raw_object": 2, "reasons": {}, "skipped_keys": none_skipped}
    text = {
        "delta": 1,
        "missing_raw_object": 1,
        "reasons": {"new": 1},
        "skipped_keys": none_skipped,
    }
    assert ended.json == {
        "videos": 2,
        "refused": 1,
        "orphaned": 1,
        "stages": {"video": nothing_there, "audio": nothing_there, "text": text},
    }
    assert (ended.code, ended.errors) == (0, "")


def test_erased_videos_are_counted_apart_and_explained(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row("a"), metadata_row("gone")])
    put_transcript(corpus, "gone", "said")
    corpus.tombstones.add(["gone"])

    ended = clipfarm("plan", "--json").json
    told = clipfarm("plan").output
    why = clipfarm("plan", "--explain", "gone", "--json").json

    assert (ended["videos"], ended["erased"], ended["stages"]["text"]["delta"]) == (1, 1, 0)
    assert "1 more were erased" in told
    assert {stage["verdict"] for stage in why["stages"].values()} == {"erased"}


def test_odd_keys_are_skipped_and_named(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row("a"), metadata_row("b")])
    put_transcript(corpus, "a", "said")
    raw = Path(corpus.store.url) / corpus.keys.raw_folder(Stage.TEXT)
    (raw / "a\nb.json").write_bytes(b"{}")

    text = clipfarm("plan", "--json").json["stages"]["text"]
    told = clipfarm("plan")

    key = f"{corpus.keys.raw_folder(Stage.TEXT)}a\nb.json"
    assert text["skipped_keys"] == {"count": 1, "examples": [key]}
    assert (text["reasons"], text["missing_raw_object"]) == ({"new": 1}, 1)
    assert repr(key) in told.output
    synced = clipfarm("sync", "--stage", "text", "--json")
    assert (synced.code, synced.json["stages"]["text"]["success"]) == (0, 1)


def test_planning_changes_nothing(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row("a"), metadata_row("b")])
    put_transcript(corpus, "a", "said")

    assert clipfarm("plan", "--json").json == clipfarm("plan", "--json").json
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            assert ledger.counts() == {}


def test_only_the_stages_asked_for(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row("a")])

    assert set(clipfarm("plan", "--stage", "audio", "--json").json["stages"]) == {"audio"}


def test_an_estimate_follows_the_times_of_the_ledger(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row(f"v{n}") for n in range(100)])
    for n in range(100):
        put_transcript(corpus, f"v{n}", "said")
    assert "unknown: no item was timed yet" in clipfarm("plan", "--stage", "text").output

    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([replace(SUCCESS, video_id=f"old{n}", seconds=1.0 + n) for n in range(11)])

    assert "10.0 min (3.3 min to 16.7 min)" in clipfarm("plan", "--stage", "text").output


def test_explaining_shows_old_and_new_values(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row("a", title="a [new] title")])
    put_transcript(corpus, "a", "said")
    raw = corpus.store.head(corpus.keys.raw(Stage.TEXT, "a"))
    contract = corpus.contract(Stage.TEXT)
    former = replace(contract, model_revision="f" * 40)
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record_contract(former)
        # a change of models that an earlier version had begun in place
        ledger.record(
            [
                replace(SUCCESS, contract_id=former.id, vector_contract_id=former.id),
                replace(SUCCESS, video_id="b", contract_id=contract.id, vector_contract_id=contract.id),
            ]
        )

    answer = clipfarm("plan", "--explain", "a", "--json").json

    assert answer["video_id"] == "a"
    text = answer["stages"]["text"]
    changes = {change.pop("name"): change for change in text.pop("changes")}
    assert changes.pop("metadata_hash")["old"] == "m"
    assert changes == {
        "raw_etag": {"old": "e", "new": raw.etag if raw else None},
        "contract_id": {"old": former.id, "new": contract.id},
        "model_revision": {"old": "f" * 40, "new": contract.model_revision},
    }
    assert text == {
        "verdict": "source_changed",
        "status": "success",
        "next_attempt_at": None,
        "source": {"title": "a [new] title", "description": "description", "query": "query"},
    }
    assert answer["stages"]["video"]["verdict"] == "missing"

    shown = clipfarm("plan", "--explain", "a", "--stage", "text").output
    assert re.search(rf"model_revision\s+{'f' * 40}\s+{contract.model_revision}", shown)
    assert "a [new] title" in shown


def test_explaining_an_unknown_or_a_bad_id(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row("a")])

    unknown = clipfarm("plan", "--explain", "b", "--json")
    assert (unknown.code, unknown.output) == (2, "")
    assert "has no row of the video 'b'" in unknown.errors
    bad = clipfarm("plan", "--explain", "../evil", "--json")
    assert (bad.code, bad.output) == (2, "")
    assert re.fullmatch(r"clipfarm: .*evil.* refused: .*\n", bad.errors)


@pytest.mark.parametrize("command", ["plan", "sync"])
@pytest.mark.parametrize("data", [None, b"", b"video_id,title\na,b\n"])
def test_a_bad_csv_is_one_clear_line_and_exit_code_2(
    corpus: Corpus, clipfarm: Command, command: str, data: bytes | None
):
    if data is not None:
        corpus.store.put(corpus.keys.metadata(), data)

    ended = clipfarm(command, "--json")

    assert (ended.code, ended.output) == (2, "")
    assert re.fullmatch(r"clipfarm: .*shorts_metadata_horizon\.csv.*\n", ended.errors)


def test_a_misspelt_option_is_exit_code_2(clipfarm: Command):
    ended = clipfarm("plan", "--explian", "a")

    assert (ended.code, ended.output) == (2, "")
    assert ended.errors.startswith("clipfarm: No such option: --explian")
    assert clipfarm("plan", "--stage", "smell").code == 2


def test_the_installed_command_prints_one_object(corpus: Corpus):
    put_metadata(corpus, [metadata_row("a")])
    code = "from clipfarm_dagster.cli import main; main()"

    ended = subprocess.run([sys.executable, "-c", code, "plan", "--json"], capture_output=True, text=True)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert Ended(0, ended.stdout, "").json["videos"] == 1
