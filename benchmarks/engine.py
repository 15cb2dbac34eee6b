"""The engine beside a straightforward script and beside the work itself, over SeaweedFS.

For each checkpoint (`light`: one layer; `base`: all twelve) the same clips go through
  (a) `straightforward.py`, one script a stage;
  (b) the engine, both stages;
  (c) the floor: the model alone on prepared tensors, and the preparation alone, each given all cores.
Warm rates leave out start-up: imports, model load and the first item of (a); the first pass of (b). Peak
memory is the sum of the proportional set sizes of all processes, sampled.

Usage:
  python benchmarks/engine.py [--clips 24] [--checkpoints light base] [--cache FOLDER]
  python benchmarks/engine.py --text 10000     one id-list run of text items through Dagster, by step
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
SIZES = ((640, 360), (854, 480), (1280, 720), (360, 640), (480, 854))
KEYFRAMES_EVERY = (48, 60, 120, 250)
STAGES = ("video", "audio")
SAMPLED_EVERY_SECONDS = 1.0
"""Reading a process's memory stops it for some milliseconds."""


def main() -> None:
    """Run the benchmark that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--checkpoints", nargs="+", default=["light", "base"], choices=["light", "base"])
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "clipfarm-bench")
    parser.add_argument("--text", type=int, help="only this: so many text items in one id-list run")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_child(arguments.child[0], json.loads(arguments.child[1]))))
        return
    from workbench.seaweedfs import running_seaweedfs

    with tempfile.TemporaryDirectory(prefix="clipfarm-bench-") as folder:
        if arguments.text:
            _show_text_run(Path(folder), arguments.text)
            return
        clips = clips_with_sound(arguments.cache, arguments.clips)
        with running_seaweedfs(Path(folder)) as seaweedfs:
            os.environ.update(seaweedfs.server.environment)
            _upload(clips, seaweedfs.server.url)
            for name in arguments.checkpoints:
                _show(name, _compare(base_checkpoints(arguments.cache, name), seaweedfs.server, clips))


def _compare(checkpoints: dict[str, Path], server: Any, clips: list[Path]) -> dict[str, Any]:
    common = {
        "url": server.url,
        "endpoint": server.endpoint_url,
        "bucket": server.bucket,
        "video_ids": [clip.stem for clip in clips],
        "checkpoints": {stage: str(folder) for stage, folder in checkpoints.items()},
    }
    plain = [_measured("straightforward", {**common, "stage": stage}) for stage in STAGES]
    return {
        "clips": len(clips),
        "a": {
            "warm": sum(one["seconds"] for one in plain) * len(clips) / (len(clips) - 1),
            "cold": sum(one["wall"] for one in plain),
            "cpu": sum(one["cpu"] for one in plain),
            "peak": max(one["peak"] for one in plain),
            "model": sum(one["model_seconds"] for one in plain) * len(clips) / (len(clips) - 1),
        },
        "b": _measured("engine", common),
        "c": _measured("floor", common),
    }


def _show(name: str, found: dict[str, Any]) -> None:
    a, b, c, clips = found["a"], found["b"], found["c"], found["clips"]
    floor = c["model"] + c["preparation"]
    print(f"\n{name} checkpoint, {clips} clips with sound, both stages, {os.cpu_count()} cores")
    print(
        f"  (a) straightforward  {a['warm']:7.1f} s warm ({clips / a['warm']:.2f} clips a second)"
        f"  {a['cold']:7.1f} s cold  {a['cpu']:7.1f} s CPU  {a['peak'] / 1e6:6.0f} MB"
        f"  {a['model']:.1f} s in the model"
    )
    print(
        f"  (b) engine           {b['warm']:7.1f} s warm ({clips / b['warm']:.2f} clips a second)"
        f"  {b['cold']:7.1f} s cold  {b['cpu_cold']:7.1f} s CPU  {b['peak'] / 1e6:6.0f} MB"
    )
    print(
        f"  (c) model alone      {c['model']:7.1f} s   preparation alone {c['preparation']:.1f} s"
        f"   floor {floor:.1f} s"
    )
    print(
        f"  warm: {a['warm'] / b['warm']:.2f}x of (a), {floor / b['warm']:.2f} of the floor;"
        f" cold: {a['cold'] / b['cold']:.2f}x of (a); memory: {b['peak'] / a['peak']:.2f}x of (a)"
    )
    for stage, summary in b["summaries"].items():
        print(f"    {stage}: {json.dumps(summary)}")
    print(json.dumps({"checkpoint": name, **found}), file=sys.stderr)


# children: one process (tree) for each way


def _child(way: str, given: dict[str, Any]) -> dict[str, Any]:
    if way == "straightforward":
        from benchmarks import straightforward

        return straightforward.run(
            given["stage"],
            Path(given["checkpoints"][given["stage"]]),
            given["endpoint"],
            given["bucket"],
            given["video_ids"],
        )
    return _engine_passes(given) if way == "engine" else _floor(given)


def _engine_passes(given: dict[str, Any]) -> dict[str, Any]:
    cold_start = time.perf_counter()
    _engine_pass(given)
    cold = time.perf_counter() - cold_start
    cpu_cold = session_cpu_and_memory(os.getsid(0))[0]
    start = time.perf_counter()
    summaries = _engine_pass(given)
    return {
        "warm": time.perf_counter() - start,
        "cold_loop": cold,
        "cpu_cold": sum(cpu_cold.values()),
        "summaries": summaries,
    }


_encoders: dict[str, Any] = {}


def _encoder(stage: str, given: dict[str, Any]) -> Any:
    from clipfarm_dagster.modalities.registry import load_encoder
    from clipfarm_dagster.settings import load_settings
    from clipfarm_dagster.stages import Stage

    if stage not in _encoders:
        with tempfile.TemporaryDirectory() as home:
            settings = load_settings(
                home=home, device="cpu", **{stage: {"model": given["checkpoints"][stage]}}
            )
            _encoders[stage] = load_encoder(Stage(stage), settings)
    return _encoders[stage]


def _engine_pass(given: dict[str, Any]) -> dict[str, Any]:
    """Both stages, one after the other, from an empty ledger."""
    from clipfarm_dagster.engine.engine import EngineOptions, LocalComputing, embed_items
    from clipfarm_dagster.ledger.ledger import Ledger
    from clipfarm_dagster.ledger.rows import WorkItem
    from clipfarm_dagster.modalities.registry import stage_contract
    from clipfarm_dagster.settings import load_settings
    from clipfarm_dagster.stages import Stage
    from clipfarm_dagster.store import ObjectStore
    from clipfarm_dagster.store.keys import Keys

    summaries = {}
    with tempfile.TemporaryDirectory() as home:
        for stage in map(Stage, STAGES):
            settings = load_settings(
                home=home, device="cpu", **{str(stage): {"model": given["checkpoints"][stage]}}
            )
            ledger = Ledger.open(stage, state_url="", sqlite_path=Path(home) / f"{stage}.sqlite")
            progress = embed_items(
                [WorkItem(video_id, {}, "", "") for video_id in given["video_ids"]],
                contract=stage_contract(stage, settings),
                computing=LocalComputing(partial(_encoder, stage, given)),
                store=ObjectStore.open(given["url"]),
                keys=Keys(),
                ledger=ledger,
                options=EngineOptions.from_settings(settings),
                on_recorded=lambda outcomes: None,
            )
            ledger.close()
            assert progress.outcomes == {"success": len(given["video_ids"])}, progress.outcomes
            summaries[str(stage)] = progress.summary()
    return summaries


def _floor(given: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the engine's own model and preparation, each alone, with an item for each core at a time."""
    from concurrent.futures import ThreadPoolExecutor

    from clipfarm_dagster.engine.local.preparation import Limits, preparation
    from clipfarm_dagster.stages import Stage
    from clipfarm_dagster.store import ObjectStore
    from clipfarm_dagster.store.keys import Keys

    cores, found = len(os.sched_getaffinity(0)), {"model": 0.0, "preparation": 0.0}
    store = ObjectStore.open(given["url"])
    for stage in STAGES:
        encoder = _encoder(stage, given)
        raw = [store.get(Keys().raw(Stage(stage), video_id)).data for video_id in given["video_ids"]]
        with preparation(encoder.preparer, Limits(600, 2**33), workers=cores) as prepare:
            for future in [prepare.submit(raw[0], {}) for _ in range(2 * cores)]:  # warm
                prepare.result(future)
            start = time.perf_counter()
            prepared = [
                prepare.result(future).prepared for future in [prepare.submit(data, {}) for data in raw]
            ]
            found["preparation"] += time.perf_counter() - start
        with ThreadPoolExecutor(cores) as threads:
            list(threads.map(lambda item: encoder.encode([item]), prepared[:cores]))  # noqa: B023
            start = time.perf_counter()
            list(threads.map(lambda item: encoder.encode([item]), prepared))  # noqa: B023
            found["model"] += time.perf_counter() - start
    return found


# measuring a process tree


def _measured(way: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a child says, with its wall time, its tree's CPU time and its tree's peak memory."""
    command = [sys.executable, __file__, "--child", way, json.dumps(given)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    cpu: dict[int, float] = {}
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, env=environment, start_new_session=True)
        while process.poll() is None:
            now, memory = session_cpu_and_memory(process.pid)
            cpu, peak = {**cpu, **now}, max(peak, memory)
            time.sleep(SAMPLED_EVERY_SECONDS)
        if process.returncode:
            raise SystemExit(f"{way} failed")
        wall = time.perf_counter() - start
        output.seek(0)
        said = json.loads(output.read().splitlines()[-1])
    found = {"wall": wall, "cpu": sum(cpu.values()), "peak": peak, **said}
    if "warm" in said:
        found["cold"] = wall - said["warm"]
    return found


def session_cpu_and_memory(session: int) -> tuple[dict[int, float], int]:
    """CPU seconds of each process of a session, and the sum of their proportional set sizes in bytes."""
    ticks, cpu, memory = os.sysconf("SC_CLK_TCK"), {}, 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                cpu[int(folder.name)] = (int(fields[11]) + int(fields[12])) / ticks
                rollup = (folder / "smaps_rollup").read_text()
                memory += int(rollup.split("\nPss:")[1].split()[0]) * 1024
    return cpu, memory


# what is embedded


def clips_with_sound(cache: Path, count: int) -> list[Path]:
    """Clips of 8 to 45 seconds with their sound as WAV beside them, made once."""
    from clipfarm_dagster.demo.corpus import encode_mp4, encode_wav

    folder = cache / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        clip = folder / f"clip-{number:02}.mp4"
        if clip.exists():
            continue
        rng = np.random.default_rng(number)
        seconds, rate = 8 + 37 * number / max(1, count - 1), (22_050, 44_100, 48_000)[number % 3]
        size, fps = SIZES[number % len(SIZES)], (24, 25, 30)[number % 3]
        phase = np.cumsum(rng.normal(0, 0.02, round(seconds * rate)))
        sound = (np.sin(phase) * 0.5).astype(np.float32)
        mp4 = encode_mp4(
            _frames(rng, size, round(seconds * fps)),
            size=size,
            frames_per_second=fps,
            sound=sound,
            sample_rate=rate,
            keyframe_every=KEYFRAMES_EVERY[number % len(KEYFRAMES_EVERY)],
            b_frames=2,
        )
        clip.with_suffix(".wav").write_bytes(encode_wav(sound, rate))
        clip.write_bytes(mp4)
    return sorted(folder.glob("*.mp4"))[:count]


def _frames(rng: np.random.Generator, size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    """A textured scene that drifts, under a bright square that moves on its own."""
    width, height = size
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3))
    scene = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    scene = (scene * 0.7 + rng.integers(0, 8, (height, width, 3))).astype(np.uint8)
    for n in range(count):
        frame = np.roll(scene, (n // 2, n), axis=(0, 1))
        top, left = (7 * n) % (height - 64), (11 * n) % (width - 64)
        frame[top : top + 64, left : left + 64] = (255, 240, 200)
        yield frame


def base_checkpoints(cache: Path, name: str) -> dict[str, Path]:
    """VideoMAE and wav2vec2 of base size with random weights; `light` has one layer of the twelve."""
    from clipfarm_dagster.demo import checkpoints

    layers = {"light": 1, "base": 12}[name]
    made = {stage: cache / f"{stage}-{name}" for stage in STAGES}
    if not (made["video"] / "config.json").exists():
        checkpoints.make_video_checkpoint(made["video"], layers=layers, intermediate_size=3072)
    if not (made["audio"] / "config.json").exists():
        plan = checkpoints.make_audio_checkpoint(cache / "plan", layers=1)
        config = json.loads((plan / "config.json").read_text())
        config |= {"num_hidden_layers": layers, "intermediate_size": 3072, "num_conv_pos_embeddings": 128}
        (plan / "config.json").write_text(json.dumps(config))
        checkpoints.make_checkpoint_from_config(plan, made["audio"])
    return made


def _upload(clips: list[Path], url: str) -> None:
    from clipfarm_dagster.stages import Stage
    from clipfarm_dagster.store import ObjectStore
    from clipfarm_dagster.store.keys import Keys

    store = ObjectStore.open(url)
    for clip in clips:
        store.put(Keys().raw(Stage.VIDEO, clip.stem), clip.read_bytes())
        store.put(Keys().raw(Stage.AUDIO, clip.stem), clip.with_suffix(".wav").read_bytes())


# text items through Dagster


def _show_text_run(folder: Path, count: int) -> None:
    """One id-list run, from launch to done, on the shipped instance."""
    import dagster as dg

    from clipfarm_dagster.definitions import build_definitions
    from clipfarm_dagster.demo.checkpoints import minilm_folder
    from clipfarm_dagster.instance import ensure_instance
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
    from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
    from clipfarm_dagster.settings import load_settings
    from clipfarm_dagster.stages import Stage
    from clipfarm_dagster.store import ObjectStore
    from clipfarm_dagster.store.keys import Keys

    os.environ |= {
        "CLIPFARM_HOME": str(folder),
        "CLIPFARM_TEXT_MODEL": str(minilm_folder()),
        "DAGSTER_HOME": str(ensure_instance(folder / "dagster")),
    }
    store, ids = ObjectStore.open(load_settings().store_url), [f"video-{n:06}" for n in range(count)]
    words = ["sea", "city", "fire", "tram", "wave", "ball", "light", "slow", "quick", "old", "the", "now"]
    rng = np.random.default_rng(0)
    rows = ["video_id,captured_at,title,description,query"]
    raw = []
    for video_id in ids:
        title, described, query, said = (
            " ".join(rng.choice(words, size)) for size in rng.integers((3, 8, 2, 20), (10, 25, 5, 80))
        )
        rows.append(f"{video_id},2026-01-01T00:00:00Z,{title},{described},{query}")
        raw.append((Keys().raw(Stage.TEXT, video_id), json.dumps({"transcript": said}).encode()))
    store.put(Keys().metadata(), "\n".join(rows).encode())
    store.put_many(raw)

    latest: dict[str, Any] = {}
    definitions = build_definitions(
        resource_overrides={"progress": lambda stage, progress: latest.update(progress=progress)}
    )
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, ids)
        start, cpu = time.perf_counter(), time.process_time()
        result = definitions.resolve_job_def(DEFAULT_NAMES.embedding_job(Stage.TEXT)).execute_in_process(
            instance=instance,
            run_config={
                **id_list_run_config(DEFAULT_NAMES, Stage.TEXT, ids),
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            tags=id_list_run_tags(DEFAULT_NAMES, Stage.TEXT, ids),
        )
        total, used = time.perf_counter() - start, time.process_time() - cpu
    summary = latest["progress"].summary()
    bookkeeping = (summary["seconds_ledger"] + summary["seconds_report"]) * 1000 / count
    assert result.success
    print(f"{count} text items in one id-list run: {total:.1f} s from launch to done, {used:.1f} s CPU")
    print(f"  bookkeeping (ledger and Dagster): {bookkeeping:.2f} ms an item")
    print(f"  {json.dumps(summary)}")


if __name__ == "__main__":
    main()
