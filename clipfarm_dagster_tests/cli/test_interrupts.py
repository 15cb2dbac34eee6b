"""Ctrl-C: a terminal sends SIGINT to the command and to all that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.media import REPOSITORY
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript, wav

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

ITEMS = 200
PROGRAM = "from clipfarm_dagster.cli import main; main()"
LAST_WORDS = "clipfarm: interrupted; what was finished is recorded"
PATIENCE = 120


class Sync:
    """`clipfarm sync` of one stage in a process group of its own, as in the foreground of a terminal."""

    def __init__(self, stage: Stage, log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "sync", "--stage", str(stage)],
                env={"PYTHONPATH": str(REPOSITORY), **os.environ},
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self._process.poll() is None, self.errors()
            assert time.monotonic() < deadline, self.errors()
            time.sleep(0.02)

    def interrupt(self) -> int:
        """Press Ctrl-C; the exit code."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(PATIENCE)

    def maps(self) -> str:
        """What is mapped into the process; see proc(5)."""
        return Path(f"/proc/{self._process.pid}/maps").read_text()

    def errors(self) -> str:
        return self._log.read_text()


def done(corpus: Corpus, stage: Stage) -> int:
    with corpus.ledger(stage) as ledger:
        return ledger.counts().get(Status.SUCCESS, 0)


@pytest.fixture
def environment(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Dagster instance in the environment; returns where it lies."""
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "20")
    monkeypatch.setenv("DAGSTER_HOME", str(ensure_instance(tmp_path / "dagster")))
    return tmp_path / "dagster"


def put_corpus(corpus: Corpus, stage: Stage, items: int = ITEMS) -> None:
    ids = [f"v{number:04}" for number in range(items)]
    put_metadata(corpus, [metadata_row(video_id) for video_id in ids])
    for video_id in ids:
        if stage == Stage.AUDIO:
            corpus.store.put(corpus.keys.raw(Stage.AUDIO, video_id), wav())
        else:
            put_transcript(corpus, video_id, f"said in {video_id}")


@pytest.mark.parametrize("stage", [Stage.AUDIO, Stage.TEXT])
def test_ctrl_c_in_the_middle_of_a_sync_ends_it_with_one_line_and_keeps_what_was_done(
    corpus: Corpus, environment: Path, tmp_path: Path, stage: Stage, clipfarm: Callable[..., Ended]
):
    put_corpus(corpus, stage)
    sync = Sync(stage, tmp_path / "errors")
    sync.wait_until(lambda: done(corpus, stage) > 0)

    assert sync.interrupt() == 130, sync.errors()

    assert "Traceback" not in sync.errors()
    assert sync.errors().strip().splitlines()[-1] == LAST_WORDS
    finished = done(corpus, stage)
    assert 0 < finished < ITEMS
    again = clipfarm("sync", "--stage", str(stage), "--json").json["stages"][str(stage)]
    assert (again["success"], again["model_calls"]) == (ITEMS - finished, ITEMS - finished)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc, which tells the moment")
@pytest.mark.parametrize("library", ["pydantic_core", "libarrow.", "duckdb", "libtorch_cpu"])
def test_ctrl_c_ends_a_sync_with_one_line_however_early(
    corpus: Corpus, environment: Path, tmp_path: Path, library: str
):
    """As soon as a library is in the process: while it imports, plans, or loads a model."""
    put_corpus(corpus, Stage.TEXT, 40)
    sync = Sync(Stage.TEXT, tmp_path / "errors")
    sync.wait_until(lambda: library in sync.maps())

    assert sync.interrupt() == 130, sync.errors()

    assert sync.errors().strip().splitlines()[-1] == LAST_WORDS
    assert "Traceback" not in sync.errors()
