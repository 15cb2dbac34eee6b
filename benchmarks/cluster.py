"""A Ray cluster of this host beside the local engine on the same cores, and one driver beside many nodes.

For each stage the same items are computed by the local engine and by the cluster, in turns. The work phase is
from the first recorded batch to the last. The driver's processor time is that of the run's own process, from
the first outcome on. Memory is the sum of the proportional set sizes of all processes.

`--simulate` gives one driver 1 to 64 actors whose model sleeps in place of computing, and shows where the
driver becomes the limit: efficiency is the rate per actor beside that of one. All begin at the same time.

Usage:
  python benchmarks/cluster.py [--clips 24] [--copies 4] [--texts 2000] [--rounds 2] [--cache FOLDER]
  python benchmarks/cluster.py --simulate 1 4 16 64 [--seconds-an-item 0.5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
ITEMS_PER_ACTOR = 60


@dataclass
class Measured:
    """One run."""

    items: int
    began: float = field(default_factory=time.perf_counter)
    times: list[tuple[float, int, float]] = field(default_factory=list)
    """When batches were recorded, how many items they had, and this process's processor time by then."""
    peak: int = 0

    def record(self, outcomes: Sequence[Any]) -> None:
        assert all(outcome.succeeded for outcome in outcomes), [o.row.error for o in outcomes]
        self.times.append((time.perf_counter(), len(outcomes), time.process_time()))

    @property
    def first(self) -> float:
        """Seconds until the first outcome."""
        return self.times[0][0] - self.began

    @property
    def rate(self) -> float:
        """Items a second in the work phase."""
        return self._worked() / (self.times[-1][0] - self.times[0][0])

    @property
    def driver_milliseconds(self) -> float:
        """Processor time of this process for an item of the work phase."""
        return (self.times[-1][2] - self.times[0][2]) / self._worked() * 1000

    def _worked(self) -> int:
        return sum(count for _, count, _ in self.times[1:])


def main() -> None:
    """Run the benchmark that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--copies", type=int, default=4, help="ids for each clip")
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stages", nargs="+", default=["video", "audio", "text"])
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "clipfarm-bench")
    parser.add_argument("--simulate", nargs="+", type=int, metavar="ACTORS")
    parser.add_argument("--seconds-an-item", type=float, default=0.5)
    arguments = parser.parse_args()
    from workbench.ray_cluster import running_cluster

    cores = max(arguments.simulate) if arguments.simulate else len(os.sched_getaffinity(0))
    with running_cluster(cores=cores) as cluster, tempfile.TemporaryDirectory() as folder:
        os.environ.update(cluster.environment)
        if arguments.simulate:
            _simulate(Path(folder), arguments.simulate, arguments.seconds_an_item)
            return
        session = int((cluster.folder / "session").read_text())
        for stage in arguments.stages:
            _compare(stage, arguments, Path(folder), session)


def _compare(stage: str, arguments: argparse.Namespace, folder: Path, session: int) -> None:
    found: dict[str, list[Measured]] = {"local": [], "ray": []}
    for _ in range(arguments.rounds):
        for engine in found:
            found[engine].append(_run(stage, arguments, folder, engine, session))
    local, ray = found["local"], found["ray"]
    rates = {engine: statistics.median(run.rate for run in runs) for engine, runs in found.items()}
    print(
        f"{stage}: {local[0].items} items, local {rates['local']:.2f} a second, ray {rates['ray']:.2f}:"
        f" {rates['ray'] / rates['local']:.2f} of local in the work phase;"
        f" first outcome after {min(r.first for r in ray):.1f} s (local {min(r.first for r in local):.1f} s);"
        f" driver {min(run.driver_milliseconds for run in ray):.2f} ms an item;"
        f" memory {max(r.peak for r in ray) / 1e6:.0f} MB (local {max(r.peak for r in local) / 1e6:.0f} MB)",
        flush=True,
    )


def _run(stage: str, arguments: argparse.Namespace, folder: Path, engine: str, session: int) -> Measured:
    from benchmarks.engine import base_checkpoints, clips_with_sound, session_cpu_and_memory
    from clipfarm_dagster.corpus.checked_encoder import node_model
    from clipfarm_dagster.demo.checkpoints import minilm_folder
    from clipfarm_dagster.engine.distributed.actors import RayOptions
    from clipfarm_dagster.engine.distributed.ray_computing import RayComputing
    from clipfarm_dagster.engine.engine import LocalComputing
    from clipfarm_dagster.modalities.registry import load_encoder
    from clipfarm_dagster.settings import load_settings
    from clipfarm_dagster.stages import Stage

    chosen = Stage(stage)
    models = {**base_checkpoints(arguments.cache, "light"), "text": minilm_folder()}
    settings = load_settings(
        home=folder / "home",
        store_url=str(folder / stage),
        device="cpu",
        ray_node_home=str(folder / "node"),
        **{stage: {"model": str(models[stage])}},
    )
    if chosen == Stage.TEXT:
        raw = {f"text-{n}": _transcript(n) for n in range(arguments.texts)}
    else:
        clips = clips_with_sound(arguments.cache, arguments.clips)
        suffix = ".mp4" if chosen == Stage.VIDEO else ".wav"
        raw = {
            f"{clip.stem}-{copy}": clip.with_suffix(suffix).read_bytes()
            for copy in range(arguments.copies)
            for clip in clips
        }
    if engine == "local":
        computing: Any = LocalComputing(partial(load_encoder, chosen, settings))
    else:
        computing = RayComputing(
            RayOptions(os.environ["RAY_ADDRESS"]),
            node_model(chosen, settings, settings.store_url),
        )

    def memory() -> int:
        return session_cpu_and_memory(os.getsid(0))[1] + (
            session_cpu_and_memory(session)[1] if engine == "ray" else 0
        )

    return _embed(settings, chosen, raw, computing, memory)


def _embed(
    settings: Any, stage: Any, raw: dict[str, bytes], computing: Any, memory: Callable[[], int]
) -> Measured:
    """From an empty ledger."""
    from clipfarm_dagster.engine.engine import EngineOptions, embed_items
    from clipfarm_dagster.ledger.ledger import Ledger
    from clipfarm_dagster.ledger.rows import WorkItem
    from clipfarm_dagster.modalities.registry import stage_contract
    from clipfarm_dagster.store import ObjectStore

    store, keys = ObjectStore.open(settings.store_url), settings.keys
    store.put_many([(keys.raw(stage, video_id), data) for video_id, data in raw.items()])
    measured, ended = Measured(len(raw)), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            measured.peak = max(measured.peak, memory())

    watching = threading.Thread(target=watch)
    watching.start()
    with tempfile.TemporaryDirectory() as home:
        ledger = Ledger.open(stage, state_url="", sqlite_path=Path(home) / "ledger.sqlite")
        try:
            embed_items(
                [WorkItem(video_id, {}, "", "") for video_id in raw],
                contract=stage_contract(stage, settings),
                computing=computing,
                store=store,
                keys=keys,
                ledger=ledger,
                options=EngineOptions.from_settings(settings),
                on_recorded=measured.record,
            )
        finally:
            ended.set()
            watching.join()
            ledger.close()
    return measured


def _transcript(number: int) -> bytes:
    words = " ".join(f"word{(number * 7 + n) % 977}" for n in range(60))
    return b'{"transcript": "%s"}' % words.encode()


# one driver, many nodes


def _simulate(folder: Path, counts: Sequence[int], seconds: float) -> None:
    from clipfarm_dagster.demo.checkpoints import minilm_folder
    from clipfarm_dagster.engine.distributed.actors import RayOptions
    from clipfarm_dagster.engine.distributed.ray_computing import RayComputing
    from clipfarm_dagster.settings import load_settings
    from clipfarm_dagster.stages import Stage

    settings = load_settings(
        home=folder / "home", store_url=str(folder / "store"), text={"model": str(minilm_folder())}
    )
    alone: float | None = None
    for actors in counts:
        raw = {f"text-{n}": _transcript(n) for n in range(actors * ITEMS_PER_ACTOR)}
        computing = RayComputing(
            RayOptions(os.environ["RAY_ADDRESS"], actors=actors, actor_cores=1, lease_size=4),
            partial(_sleeping, str(folder / "node"), str(minilm_folder()), seconds, actors),
        )
        measured = _embed(settings, Stage.TEXT, raw, computing, lambda: 0)
        alone = alone or measured.rate / actors
        print(
            f"{actors} actors, {seconds:g} s an item: {measured.rate:.1f} items a second,"
            f" efficiency {measured.rate / actors / alone:.3f},"
            f" driver {measured.driver_milliseconds:.2f} ms an item",
            flush=True,
        )


def _sleeping(home: str, model: str, seconds: float, actors: int) -> Any:
    """A model that takes its time and no processor; its vectors are worth nothing."""
    import numpy as np

    from clipfarm_dagster.canary.environment import current_environment
    from clipfarm_dagster.engine.distributed.node import NodeModel
    from clipfarm_dagster.modalities.registry import load_encoder
    from clipfarm_dagster.settings import load_settings
    from clipfarm_dagster.stages import Stage

    settings = load_settings(home=home, device="cpu", text={"model": model, "batch_size": 1})
    encoder: Any = load_encoder(Stage.TEXT, settings)
    vector = np.full(768, 768**-0.5, dtype=np.float32)

    def encode(batch: Sequence[Any]) -> list[np.ndarray]:
        time.sleep(seconds * len(batch))
        return [vector] * len(batch)

    encoder.encode = encode
    ready = Path(home) / f"ready-{actors}"
    ready.mkdir(parents=True, exist_ok=True)
    (ready / str(os.getpid())).touch()
    while len(list(ready.iterdir())) < actors:
        time.sleep(0.2)
    environment = current_environment("cpu")
    return NodeModel(encoder, environment.id, environment.to_json())


if __name__ == "__main__":
    main()
