"""Which runs are dead: told by a lock that a run's process holds, from any container over the same home."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config
from clipfarm_dagster.orchestration.runs.in_flight import videos_in_flight
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.media import REPOSITORY
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from clipfarm_dagster_tests.support.runs import run_status

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

IDS = [f"v{number:03}" for number in range(300)]
PATIENCE = 120
JUDGE = """
import dagster as dg
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs
with dg.DagsterInstance.get() as instance:
    print(fail_dead_runs(instance, DEFAULT_NAMES))
"""
SYNC = [sys.executable, "-c", "from clipfarm_dagster.cli import main; main()", "sync", "--stage", "text"]


def execute_job(folder: Path, video_ids: list[str]) -> list[str]:
    """A command that executes the job as Dagster's launcher does: with the job's own executor."""
    config = folder / "run_config.json"
    config.write_text(json.dumps(id_list_run_config(DEFAULT_NAMES, Stage.TEXT, video_ids)))
    job = ["-m", "clipfarm_dagster.definitions", "-j", DEFAULT_NAMES.embedding_job(Stage.TEXT)]
    return [sys.executable, "-m", "dagster", "job", "execute", *job, "-c", str(config)]


@pytest.fixture
def own_instance(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The instance of `DAGSTER_HOME`, over a corpus that takes a while to embed."""
    put_metadata(corpus, [metadata_row(video_id) for video_id in IDS])
    for video_id in IDS:
        put_transcript(corpus, video_id, f"said in {video_id}")
    monkeypatch.setenv("DAGSTER_HOME", str(ensure_instance(tmp_path / "dagster")))
    with dg.DagsterInstance.get() as instance:
        yield instance


@contextmanager
def stopped_in_a_run(corpus: Corpus, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a command once its run has recorded vectors; it stands still."""
    environment = {"PYTHONPATH": str(REPOSITORY), **os.environ}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            with corpus.ledger(Stage.TEXT) as ledger:
                while ledger.counts().get(Status.SUCCESS, 0) == 0:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def dead_runs_as_another_container_sees_them() -> str:
    """What `fail_dead_runs` returns, as text, in a PID namespace of its own."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", JUDGE]
    environment = {"PYTHONPATH": str(REPOSITORY), **os.environ}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    return done.returncode == 0


@pytest.mark.skipif(not may_unshare(), reason="making a PID namespace takes unshare, and root")
@pytest.mark.parametrize("launcher", ["sync", "executor"])
def test_a_run_in_another_container_is_dead_when_its_process_is(
    corpus: Corpus, own_instance: dg.DagsterInstance, launcher: str, tmp_path: Path
):
    command = SYNC if launcher == "sync" else execute_job(tmp_path, IDS)
    with stopped_in_a_run(corpus, command) as process:
        [run] = own_instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))

        assert dead_runs_as_another_container_sees_them() == "[]"
        assert fail_dead_runs(own_instance, DEFAULT_NAMES) == []
        assert videos_in_flight(own_instance, DEFAULT_NAMES).serving[Stage.TEXT] == set(IDS)

        process.kill()
        process.wait()
        assert dead_runs_as_another_container_sees_them() == str([run.run_id])
    assert run_status(own_instance, run) == dg.DagsterRunStatus.FAILURE
    assert videos_in_flight(own_instance, DEFAULT_NAMES).serving[Stage.TEXT] == set()


def test_a_run_that_has_ended_leaves_no_lock(
    corpus: Corpus, own_instance: dg.DagsterInstance, tmp_path: Path
):
    for video_id in IDS[3:]:
        corpus.store.delete(corpus.keys.raw(Stage.TEXT, video_id))
    environment = {"PYTHONPATH": str(REPOSITORY), **os.environ}
    subprocess.run(execute_job(tmp_path, IDS[:3]), env=environment, check=True, capture_output=True)
    subprocess.run(SYNC, env=environment, check=True, capture_output=True)

    assert fail_dead_runs(own_instance, DEFAULT_NAMES) == []

    locks = Path(own_instance.root_directory) / "run_locks"
    assert locks.is_dir()
    assert list(locks.iterdir()) == []
