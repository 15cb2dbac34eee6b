"""`clipfarm sync`, `status`, `verify` and `retry`, from the first embedding to repair."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from clipfarm_dagster.cli.progress import Listener
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.engine.engine import Progress
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.locks import write_lock_held
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from clipfarm_dagster_tests.support.runs import create_run

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

Command = Callable[..., Ended]


def put_texts(corpus: Corpus, *video_ids: str) -> None:
    put_metadata(corpus, [metadata_row(video_id) for video_id in video_ids])
    for video_id in video_ids:
        put_transcript(corpus, video_id, f"said in {video_id}")


def sync_text(clipfarm: Command) -> tuple[int, dict[str, int]]:
    """Exit code and counts of the text stage, its time checked and left out."""
    ended = clipfarm("sync", "--stage", "text", "--json")
    assert set(ended.json) == {"stages"}
    counts = ended.json["stages"]["text"]
    assert counts.pop("seconds") > 0
    return ended.code, counts


def test_sync_counts_what_it_did_and_then_has_nothing_to_do(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a", "b")
    put_metadata(corpus, [metadata_row(video_id) for video_id in ("a", "b", "absent")])

    assert sync_text(clipfarm) == (0, {"success": 2, "missing_raw_object": 1, "model_calls": 2})
    assert sync_text(clipfarm) == (0, {"model_calls": 0})
    assert clipfarm("status", "--stage", "text", "--json").json == {
        "stages": {"text": {"success": 2, "missing_raw_object": 1}},
        "failures": [],
    }


def test_status_counts_erased_videos_and_names_none(corpus: Corpus, clipfarm: Command):
    erased = corpus.tombstones.add(["a", "secret-id"])
    unfinished = erased.tombstone("a")
    corpus.tombstones.finish({name: one for name, one in erased.unfinished.items() if name != unfinished})

    ended, told = clipfarm("status", "--json"), clipfarm("status")

    assert ended.json["erased"] == {"videos": 2, "unfinished": 1}
    assert "2 videos are erased, 1 of them not wholly yet; `clipfarm sync`" in told.output
    assert "secret-id" not in ended.output + told.output


def test_sync_leaves_alone_what_another_run_has_taken_meanwhile(
    corpus: Corpus, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    put_texts(corpus, "a", "b", "c")
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "1")
    job = defs.resolve_job_def(DEFAULT_NAMES.embedding_job(Stage.TEXT))
    report = Listener.__call__
    taken: list[dg.DagsterRun] = []

    def take_one_during_the_first_run(listener: Listener, stage: Stage, progress: Progress) -> None:
        report(listener, stage, progress)
        if not taken:
            run_config, status = id_list_run_config(DEFAULT_NAMES, stage, ["b"]), dg.DagsterRunStatus.STARTED
            with dg.DagsterInstance.get() as instance:
                taken.append(instance.create_run_for_job(job, run_config=run_config, status=status))

    monkeypatch.setattr(Listener, "__call__", take_one_during_the_first_run)

    assert sync_text(clipfarm) == (0, {"success": 2, "model_calls": 2})
    with corpus.ledger(Stage.TEXT) as ledger:
        assert ledger.rows("abc").keys() == {"a", "c"}


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED])
def test_sync_leaves_alone_what_a_run_has_that_has_not_started(
    corpus: Corpus, clipfarm: Command, status: dg.DagsterRunStatus
):
    put_texts(corpus, "a", "b")
    with dg.DagsterInstance.get() as instance:
        job, run_config = (
            DEFAULT_NAMES.embedding_job(Stage.TEXT),
            id_list_run_config(DEFAULT_NAMES, Stage.TEXT, ["b"]),
        )
        run = create_run(instance, job, status, run_config=run_config)

        ended = clipfarm("sync", "--stage", "text", "--json")
        assert (ended.code, ended.json["stages"]["text"]["success"]) == (0, 1)
        assert "left to other runs: 1 text;" in ended.errors
        with corpus.ledger(Stage.TEXT) as ledger:
            assert ledger.rows("ab").keys() == {"a"}

        instance.report_run_canceled(run)
    assert sync_text(clipfarm) == (0, {"success": 1, "model_calls": 1})


def test_status_waits_for_nobody_who_writes(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a")
    sync_text(clipfarm)
    started = time.monotonic()
    clipfarm("status")
    alone = time.monotonic() - started

    with write_lock_held(corpus, Stage.TEXT) as is_held:
        started = time.monotonic()
        assert clipfarm("status", "--json").code == 0
        beside = time.monotonic() - started
        assert is_held()

    assert beside < 10 * alone


def test_a_sync_waits_for_another(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a")
    program = f"""
import filelock, pathlib, sys, time
home = pathlib.Path({str(corpus.settings.home)!r})
home.mkdir(exist_ok=True)
with filelock.FileLock(home / "sync.lock"):
    print("working", flush=True)
    time.sleep(3)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"working\n"
        ended = clipfarm("sync", "--stage", "text", "--json")

    assert (ended.code, ended.json["stages"]["text"]["success"]) == (0, 1)
    assert ended.errors.startswith("clipfarm: waiting for another sync")
    assert "waiting" not in clipfarm("sync", "--stage", "text", "--json").errors


@pytest.mark.parametrize("name", ["DAGSTER_HOME", "CLIPFARM_HOME"])
def test_what_can_have_no_folder_is_one_clear_line_and_exit_code_2(
    corpus: Corpus, clipfarm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
):
    put_texts(corpus, "a")
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / "file" / "home"))

    ended = clipfarm("sync", "--json")

    assert (ended.code, ended.output) == (2, "")
    assert re.fullmatch(r"clipfarm: .*file/home.*\n", ended.errors)


def test_a_model_that_is_not_there_is_told_before_any_stage_begins(
    corpus: Corpus, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    put_texts(corpus, "a")
    monkeypatch.setenv("CLIPFARM_VIDEO_MODEL", "/nowhere/model")

    ended = clipfarm("sync", "--stage", "text", "--stage", "video", "--json")

    assert (ended.code, ended.output) == (2, "")
    assert "CLIPFARM_VIDEO_MODEL" in ended.errors
    assert clipfarm("status").output == "Nothing is recorded yet; `clipfarm plan` shows what there is to do\n"


def test_what_there_is_to_know_of_a_success_is_told(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a", "b")
    sync_text(clipfarm)
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([replace(ledger.rows(["b"])["b"], note="3 of 16 frames damaged")])

    told = {"stage": "text", "video_id": "b", "note": "3 of 16 frames damaged"}
    assert clipfarm("status", "--json").json["notes"] == [told]
    assert "3 of 16 frames damaged" in clipfarm("status").output


def test_a_bad_item_is_exit_code_1_and_told_with_its_cause(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a", "b")
    corpus.store.put(corpus.keys.raw(Stage.TEXT, "b"), b"{}")

    assert sync_text(clipfarm) == (1, {"success": 1, "invalid_raw_object": 1, "model_calls": 1})
    ended = clipfarm("status", "--json")
    [failure] = ended.json["failures"]
    assert "transcript" in failure.pop("error")
    assert failure == {
        "stage": "text",
        "video_id": "b",
        "status": "invalid_raw_object",
        "retry_count": 0,
    }
    assert ended.json["stages"] == {
        "video": {},
        "audio": {},
        "text": {"success": 1, "invalid_raw_object": 1},
    }
    assert ended.code == 0

    # it is left alone until somebody asks for it
    assert sync_text(clipfarm) == (0, {"model_calls": 0})
    assert clipfarm("retry", "b", "--json").json == {
        "stages": {"video": 0, "audio": 0, "text": 1},
        "not_failed": [],
    }
    assert sync_text(clipfarm) == (1, {"invalid_raw_object": 1, "model_calls": 0})


def test_lost_and_damaged_vectors_are_found_and_repaired(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a", "b", "c")
    sync_text(clipfarm)
    assert clipfarm("verify", "--json").json == {"checked": 3, "bad": []}
    keys = {video_id: corpus.keys.embedding(Stage.TEXT, video_id) for video_id in "abc"}
    before = corpus.store.get(keys["b"]).data
    corpus.store.delete(keys["a"])
    corpus.store.put(keys["b"], before[:-1])

    found = clipfarm("verify", "--json")

    assert found.code == 1
    assert found.json["checked"] == 3
    assert [(entry["stage"], entry["video_id"], entry["key"]) for entry in found.json["bad"]] == [
        ("text", "a", keys["a"]),
        ("text", "b", keys["b"]),
    ]
    assert all(entry["problem"] for entry in found.json["bad"])
    assert sync_text(clipfarm) == (0, {"model_calls": 0})

    repaired = clipfarm("verify", "--repair", "--json")
    assert (repaired.code, repaired.json) == (1, found.json)
    plan = clipfarm("plan", "--stage", "text", "--json").json
    assert plan["stages"]["text"]["reasons"] == {"artifact_lost": 2}
    assert sync_text(clipfarm) == (0, {"success": 2, "model_calls": 2})
    assert corpus.store.get(keys["b"]).data == before
    assert clipfarm("verify").code == 0


def test_retry_forgets_failures_of_the_ids_and_stages_asked_for(corpus: Corpus, clipfarm: Command):
    failed = LedgerRow(
        video_id="a",
        status=Status.QUARANTINED,
        processed_at="2026-01-01T00:00:00.000000Z",
        retry_count=5,
        error="why",
    )
    rows = [
        failed,
        replace(failed, video_id="b", status=Status.FAIL, next_attempt_at="2999", retry_count=2),
        replace(failed, video_id="c", status=Status.SUCCESS, retry_count=0),
    ]
    for stage in (Stage.TEXT, Stage.AUDIO):
        with corpus.ledger(stage) as ledger:
            ledger.record(rows)
            before = ledger.version()

    ended = clipfarm("retry", "a", "c", "--stage", "text", "--json")
    assert (ended.code, ended.json) == (1, {"stages": {"text": 1}, "not_failed": ["c"]})
    with corpus.ledger(Stage.TEXT) as ledger:
        found = ledger.rows("abc")
        assert ledger.version() != before
    assert (found["a"].status, found["a"].retry_count, found["a"].error) == (Status.FAIL, 0, "why")
    assert (found["a"].next_attempt_at or "") < "2999"
    assert (found["b"], found["c"]) == (rows[1], rows[2])

    assert clipfarm("retry", "--all", "--stage", "audio", "--json").json["stages"] == {"audio": 2}
    assert clipfarm("retry", "--all").code == 0


@pytest.mark.parametrize("arguments", [[], ["a", "--all"]])
def test_retry_wants_ids_or_all(clipfarm: Command, arguments: list[str]):
    ended = clipfarm("retry", *arguments)

    assert (ended.code, ended.output) == (2, "")
    assert ended.errors == "clipfarm: name the videos to retry, or give --all\n"


def test_a_vector_that_cannot_be_read_is_exit_code_2_and_not_taken_for_lost(
    corpus: Corpus, clipfarm: Command
):
    put_texts(corpus, "a")
    sync_text(clipfarm)
    path = Path(corpus.store.url) / corpus.keys.embedding(Stage.TEXT, "a")
    path.unlink()
    path.symlink_to(path)
    with corpus.ledger(Stage.TEXT) as ledger:
        before = ledger.rows(["a"])

        ended = clipfarm("verify", "--repair", "--json")

        assert (ended.code, ended.output) == (2, "")
        assert "a.npy" in ended.errors
        assert ledger.rows(["a"]) == before
