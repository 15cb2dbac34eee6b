"""Lower precision against float32: cosine distance and speed, at the default architectures.

Usage: `python benchmarks/precision.py --video FOLDER --audio FOLDER [--text FOLDER]`, each the folder of a
checkpoint; prints one line a stage and precision. Random weights serve for the speed, and give the distance
its order of magnitude.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clipfarm_dagster.canary.check import canary_input
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage


def measure(stage: Stage, folder: str, dtype: str, inputs: int, device: str) -> tuple[np.ndarray, float]:
    """Vectors of some inputs in one precision, and seconds an input in the model."""
    change: Mapping[str, str] = {"model": folder, "dtype": dtype}
    settings = load_settings(home=tempfile.gettempdir(), device=device, **{str(stage): change})
    encoder = load_encoder(stage, settings)
    raw, metadata = canary_input(stage)
    items = []
    for i in range(inputs):
        item = encoder.preparer(raw, {**metadata, "title": f"{metadata['title']} {'again ' * i}"})
        if stage == Stage.VIDEO:
            item = type(item)(np.roll(item.inputs, 16 * i, axis=2), item.batch_key)
        if stage == Stage.AUDIO:  # ten seconds, each input beginning elsewhere
            item = type(item)(np.roll(np.resize(item.inputs, 160_000), 997 * i), None)
        items.append(item)
    encoder.encode(items[:1])
    start = time.perf_counter()
    vectors = [encoder.encode([item])[0] for item in items]
    return np.stack(vectors).astype(np.float64), (time.perf_counter() - start) / inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for stage in Stage:
        parser.add_argument(f"--{stage}", type=Path)
    parser.add_argument("--inputs", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(f"{'stage':6} {'dtype':9} {'s/item':>8} {'speed':>6} {'mean distance':>14} {'greatest':>9}")
    for stage in Stage:
        folder = getattr(arguments, str(stage))
        if folder is None:
            continue
        exact, slow = measure(stage, str(folder), "float32", arguments.inputs, arguments.device)
        print(f"{stage:6} {'float32':9} {slow:8.3f} {1:6.2f} {0:14.1e} {0:9.1e}")
        for dtype in ("bfloat16", "float16"):
            vectors, seconds = measure(stage, str(folder), dtype, arguments.inputs, arguments.device)
            distance = 1 - (vectors * exact).sum(axis=1)
            print(
                f"{stage:6} {dtype:9} {seconds:8.3f} {slow / seconds:6.2f} {distance.mean():14.1e}"
                f" {distance.max():9.1e}"
            )


if __name__ == "__main__":
    main()
