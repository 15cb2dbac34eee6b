"""A corpus under fire: videos that change all the time, readers that look, workers that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.demo.corpus import demo_videos
from clipfarm_dagster.errors import ClipFarmError, ObjectMissingError
from clipfarm_dagster.explore.search import search
from clipfarm_dagster.manifests.refresh import fused_file, stored_manifest
from clipfarm_dagster.orchestration.candidates import under_way
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import from_npy, vector_sha256
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript


@dataclass(frozen=True)
class Fire:
    """How much of it there is."""

    videos: int
    changing: int
    kills_at_work: int
    kills_at_cut_over: int
    seconds_between_changes: float
    seconds_until_killed: tuple[float, float]
    usual: int
    """New videos that are to be served before the models change; with 0, none come at all."""
    migrated: tuple[Stage, ...] = (Stage.VIDEO, Stage.TEXT)
    s3: bool = True


class World:
    """Videos, some of which change all the time, and new ones that come."""

    def __init__(self, corpus: Corpus, fire: Fire) -> None:
        self.corpus, self.fire, self.made = corpus, fire, 0
        self.came: dict[str, float] = {}
        """When each new video was there."""
        self._media = list(demo_videos(4))
        self._rows: dict[str, dict[str, str]] = {}
        for number in range(fire.videos):
            self._add(f"v{number:04}")
        self.stable = sorted(self._rows)[fire.changing :]
        self._restless = sorted(self._rows)[: fire.changing]
        put_metadata(corpus, self._rows.values())

    def _add(self, video_id: str) -> None:
        media = self._media[len(self._rows) % len(self._media)]
        raw = ((Stage.VIDEO, media.mp4), (Stage.AUDIO, media.wav))
        self.corpus.store.put_many([(self.corpus.keys.raw(stage, video_id), data) for stage, data in raw])
        put_transcript(self.corpus, video_id, f"said in {video_id}")
        captured = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=len(self._rows))
        self._rows[video_id] = metadata_row(video_id, captured_at=captured.isoformat())

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Change something all the time."""
        over, chance = threading.Event(), random.Random(self.made)

        def change() -> None:
            while not over.wait(self.fire.seconds_between_changes):
                video_id = chance.choice(self._restless)
                match chance.randrange(3 if self.fire.usual else 2):
                    case 0:
                        self._rows[video_id]["title"] = f"title {self.made}"
                    case 1:
                        put_transcript(self.corpus, video_id, f"said now: {self.made}")
                    case _:
                        video_id = f"new{self.made:04}"
                        self._add(video_id)
                put_metadata(self.corpus, self._rows.values())
                if video_id.startswith("new"):
                    self.came[video_id] = time.monotonic()
                self.made += 1

        thread = threading.Thread(target=change)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Process:
    """One that was started, and may be killed."""

    def __init__(self, number: int, answers: Any) -> None:
        self._number, self._answers = number, answers
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code; None as long as it works."""
        if self._code is None and select.select([self._answers], [], [], 0.02)[0]:
            self._code = int(self._answers.readline())
        return self._code

    def kill(self) -> int:
        """End it as `kill -9` does; returns its exit code."""
        os.kill(self._number, signal.SIGKILL)
        while (code := self.poll()) is None:
            pass
        return code


class Worker:
    """Starts processes that work on a corpus, one after the other; see `fire_run`."""

    def __init__(self, folder: Path, corpus: Corpus, seconds_until_killed: tuple[float, float]) -> None:
        self._log, self._stop, self._said = folder / "model.log", folder / "stop", folder / "said.txt"
        self._corpus, self._chance, self._seconds = corpus, random.Random(1), seconds_until_killed
        self._log.touch()
        command = [sys.executable, "-m", "clipfarm_dagster_tests.support.fire_run"]
        self._starter = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self.kills = 0

    def close(self) -> None:
        """Start no more processes."""
        with self._starter:  # which closes its pipes, and waits
            pass

    def calls(self) -> Counter[tuple[str, str]]:
        """Items that went through a model, by stage and contract id."""
        return Counter((stage, i) for stage, i in map(str.split, self._log.read_text().splitlines()))

    def work_until(self, until: Callable[[], bool]) -> None:
        """Sync until something holds, and be killed then."""
        process = self._sync()
        while process.poll() is None:
            if until():
                self._kill(process)
                return
        raise AssertionError(self._told())

    def killed_at_work(self) -> None:
        """Sync, and be killed some time later."""
        kill_at = time.monotonic() + self._chance.uniform(*self._seconds)
        self.work_until(lambda: time.monotonic() > kill_at)

    def killed_at_cut_over(self, stages: Sequence[Stage], over: Callable[[], bool]) -> None:
        """Sync, and be killed within a cut-over, unless all are over."""
        self.work_until(lambda: over() or self._caught(stages))

    def finish(self) -> None:
        """Sync until nothing is left to do."""
        self._stop.touch()
        self._ends_well(self._sync())
        self._stop.unlink()

    def rolled_back(self, stage: Stage) -> None:
        """Go back, be killed on the way, go on and be killed again, and go on to the end."""
        for command in ("roll-back", "finish"):
            process = self._start(command, str(stage))
            while process.poll() is None:
                if self._caught([stage]):
                    self._kill(process)
                    break
        self._ends_well(self._start("finish", str(stage)))

    def _caught(self, stages: Sequence[Stage]) -> bool:
        serving = self._corpus.serving.read()
        if not any(under_way(serving.get(stage)) for stage in stages):
            return False
        time.sleep(self._chance.uniform(0, 0.5))
        return True

    def _kill(self, process: Process) -> None:
        if process.poll() is not None or process.kill() != -signal.SIGKILL:
            assert process.poll() == 0, self._told()
        else:
            self.kills += 1

    def _ends_well(self, process: Process) -> None:
        while (code := process.poll()) is None:
            pass
        assert code == 0, self._told()

    def _sync(self) -> Process:
        return self._start("sync", str(self._log), str(self._stop))

    def _start(self, *command: str) -> Process:
        self._said.unlink(missing_ok=True)
        asked = {"environment": dict(os.environ), "command": command, "said": str(self._said)}
        assert self._starter.stdin is not None
        assert self._starter.stdout is not None
        self._starter.stdin.write(json.dumps(asked).encode() + b"\n")
        return Process(int(self._starter.stdout.readline()), self._starter.stdout)

    def _told(self) -> str:
        return self._said.read_text()[-3000:] if self._said.exists() else ""


@dataclass
class Readers:
    """Somebody who reads what is published, from another home folder."""

    violations: list[str] = field(default_factory=list)
    polls: int = 0
    generations: dict[str, list[str]] = field(default_factory=dict)
    """Contract ids as they were seen one after the other, of each manifest, and of each stage when fused."""
    sha256s: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """Of the vectors that do not change, by stage, contract id and `video_id`."""
    waited: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Contract id under which a new video was first seen in the manifest of texts, and how late."""

    def saw(self, what: str, contract_id: str) -> None:
        """Note which generation was read."""
        seen = self.generations.setdefault(what, [])
        if seen[-1:] != [contract_id]:
            seen.append(contract_id)

    def lags(self, contract_id: str) -> list[float]:
        """How late new videos were seen while a generation served, ascending, in seconds."""
        return sorted(seconds for seen, seconds in self.waited.values() if seen == contract_id)


@contextlib.contextmanager
def reading(world: World, folder: Path) -> Iterator[Readers]:
    """Read all the time, until the block ends."""
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
            over.wait(0.2)

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

    for stage in world.fire.migrated:
        came, now = list(world.came.items()), time.monotonic()
        manifest, _ = stored_manifest(corpus, stage)
        contract_id, table = manifest.contract.id, manifest.table
        readers.saw(str(stage), contract_id)
        sha256s = dict(zip(table["video_id"].to_pylist(), table["artifact_sha256"].to_pylist(), strict=True))
        check_stable(world, readers, str(stage), contract_id, sha256s)
        if stage == Stage.TEXT:
            for video_id, since in came:
                if video_id in sha256s:
                    readers.waited.setdefault(video_id, (contract_id, now - since))
        for video_id in chance.sample(world.stable, min(5, len(world.stable))):
            if not leads_to_its_vector(corpus, stage, video_id):
                readers.violations.append(f"{stage}: {video_id}'s key leads to another vector")
    fused = pq.read_table(fused_file(corpus, "concat").path)
    ids = fused["video_id"].to_pylist()
    for stage in world.fire.migrated:
        found = set(fused[f"{stage}_contract_id"].to_pylist())
        if len(found) != 1:
            readers.violations.append(f"fused rows are of the {stage} contracts {found}")
            continue
        [contract_id] = found
        readers.saw(f"fused {stage}", contract_id)
        sha256s = dict(zip(ids, fused[f"{stage}_artifact_sha256"].to_pylist(), strict=True))
        check_stable(world, readers, str(stage), contract_id, sha256s)
    if len(search(corpus, like=chance.choice(world.stable), top=3)) != 3:
        readers.violations.append("search found fewer")


def check_stable(
    world: World, readers: Readers, stage: str, contract_id: str, sha256s: dict[str, str]
) -> None:
    """All videos that do not change are there, each with one vector under one contract for ever."""
    if lacking := set(world.stable) - sha256s.keys():
        readers.violations.append(f"{stage}: {len(lacking)} rows are gone, such as {min(lacking)}")
    for video_id in world.stable:
        if video_id in sha256s:
            first = readers.sha256s.setdefault((stage, contract_id, video_id), sha256s[video_id])
            if first != sha256s[video_id]:
                readers.violations.append(f"{stage}: {video_id} has another vector of {contract_id}")


def leads_to_its_vector(corpus: Corpus, stage: Stage, video_id: str) -> bool:
    """Whether a manifest leads to the vector that it names, or was replaced meanwhile by one that does."""
    import pyarrow.compute as pc

    last = None
    for _ in range(5):
        manifest, etag = stored_manifest(corpus, stage)
        if etag == last:
            return False
        [row] = manifest.table.filter(pc.equal(manifest.table["video_id"], video_id)).to_pylist()
        try:
            vector = from_npy(corpus.store.get(row["embedding_key"]).data)
        except ObjectMissingError:
            pass
        else:
            if vector_sha256(vector) == row["artifact_sha256"]:
                return True
        last = etag
    return False
