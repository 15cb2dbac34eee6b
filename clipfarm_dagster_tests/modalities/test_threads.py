"""No vector depends on how many threads the machine, the environment or the process gives torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.sounds import wav
from workbench.clips import ClipSpec, encode

THREADS = (1, 2, 4)

CHILD = """
import json, sys
from pathlib import Path

import torch

from clipfarm_dagster.modalities.encoder import Prepared
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage

folder = Path(sys.argv[1])
settings = load_settings(home=folder / "home", device="cpu")
made = {}
for threads in (None, *json.loads(sys.argv[2])):
    if threads is not None:
        torch.set_num_threads(threads)
    for stage in Stage:
        encoder = load_encoder(stage, settings)
        raw = (folder / stage).read_bytes()
        items = [encoder.preparer(raw, {"title": "A title", "query": "rain"})] * 3
        made[f"{stage} {threads or 'as the environment says'}"] = encoder.encode(items).tobytes().hex()
print(json.dumps(made))
"""


def vectors_of_a_fresh_process(folder: Path, checkpoints: dict[str, str], threads: int) -> dict[str, str]:
    """Each stage's vectors, as bytes in hex, by stage and by what was said to torch in the process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPFARM_")}
    environment |= {**checkpoints, "OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), json.dumps(THREADS)],
        env=environment,
        check=True,
        timeout=600,
        capture_output=True,
        text=True,
    )
    made: dict[str, str] = json.loads(ended.stdout.splitlines()[-1])
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, str]) -> dict[str, str]:
    """Vectors by stage, `OMP_NUM_THREADS`, and what was said to torch."""
    folder = tmp_path_factory.mktemp("threads")
    (folder / Stage.VIDEO).write_bytes(encode(ClipSpec(frames=20)))
    (folder / Stage.AUDIO).write_bytes(wav(2.0))
    (folder / Stage.TEXT).write_text(json.dumps({"transcript": "What is said in the rain. " * 40}))
    return {
        f"{name}, OMP_NUM_THREADS={threads}": vector
        for threads in THREADS
        for name, vector in vectors_of_a_fresh_process(folder, checkpoints, threads).items()
    }


@pytest.mark.parametrize("stage", list(Stage), ids=str)
def test_a_vector_is_the_same_to_the_byte_under_any_number_of_threads(stage: Stage, made: dict[str, str]):
    vectors = {name: vector for name, vector in made.items() if name.startswith(f"{stage} ")}

    assert len(vectors) == len(THREADS) * (1 + len(THREADS))
    assert len(set(vectors.values())) == 1, {name: vector[:24] for name, vector in vectors.items()}
