"""A vector depends on its input and its contract: not on its batch, the order, the workers or a resume."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfarm_dagster.engine.engine import EngineOptions, LocalComputing, embed_items
from clipfarm_dagster.errors import StoreUnavailableError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import RetryPolicy, WorkItem
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.hashing import metadata_hash
from clipfarm_dagster.vectors.npy import from_npy
from clipfarm_dagster_tests.support.models import model_settings
from clipfarm_dagster_tests.support.sounds import wav

KEYS = Keys()
BATCH_SIZES = (1, 3, 8, 32)
WORKERS = (1, 2, 4)
MAX_COSINE_DISTANCE = 1e-6


@dataclass
class Inputs:
    """Raw objects and metadata of one stage, by id."""

    raw: Mapping[str, bytes]
    metadata: Mapping[str, Mapping[str, str]]


def video_inputs(shared_folder: Path) -> Inputs:
    names = ["sample.mp4", "sample_portrait.mp4", "h265_bframes.mp4", "video_rotation_90.mp4"]
    names += ["bear-vp9-odd-dimensions.webm", "sample_android_slow_motion.mp4"]
    raw = {f"v{i}": (shared_folder / "media" / name).read_bytes() for i, name in enumerate(names)}
    return Inputs(raw, {})


def audio_inputs() -> Inputs:
    """Sounds of four lengths, several of each, at three sample rates."""
    lengths = (0.1, 0.25, 0.25, 0.4, 0.1, 0.25, 0.33, 0.25, 0.1, 0.25)
    rates = (16_000, 16_000, 44_100, 8_000)
    raw = {f"a{i}": wav(s, seed=i, rate=rates[i % 4], channels=1 + i % 2) for i, s in enumerate(lengths)}
    return Inputs(raw, {})


def text_inputs() -> Inputs:
    words = [
        "sun",
        "sea",
        "wave",
        "city",
        "night",
        "rain",
        "train",
        "song",
        "dance",
        "kitchen",
        "brown",
        "fox",
    ]
    draw = random.Random(0)
    raw, metadata = {}, {}
    for i in range(40):
        said = " ".join(draw.choices(words, k=draw.choice((0, 1, 5, 40))))
        raw[f"t{i}"] = json.dumps({"transcript": said}).encode()
        metadata[f"t{i}"] = {"title": " ".join(draw.choices(words, k=1 + i % 4)), "query": words[i % 12]}
    return Inputs(raw, metadata)


@pytest.fixture(scope="module", params=list(Stage), ids=str)
def case(
    request: pytest.FixtureRequest, models: dict[Stage, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Encoder, Inputs]:
    stage: Stage = request.param
    encoder = load_encoder(stage, model_settings(models, tmp_path_factory.mktemp("home")))
    if stage == Stage.VIDEO:
        return encoder, video_inputs(request.getfixturevalue("shared_folder"))
    return encoder, audio_inputs() if stage == Stage.AUDIO else text_inputs()


@pytest.fixture(scope="module")
def alone(case: tuple[Encoder, Inputs]) -> dict[str, np.ndarray[Any, Any]]:
    """Each input's vector, prepared and encoded without company."""
    encoder, inputs = case
    encoder.batch_size = 1
    return {
        video_id: encoder.encode([encoder.preparer(raw, inputs.metadata.get(video_id, {}))])[0]
        for video_id, raw in inputs.raw.items()
    }


def embed(
    encoder: Encoder,
    inputs: Inputs,
    store: ObjectStore,
    ledger_path: Path,
    *,
    order: Sequence[str],
    workers: int = 1,
    fail_after: int | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """The vectors in the store after a run of the engine, which breaks off after some recorded batches."""
    stage = encoder.contract.stage
    for video_id, raw in inputs.raw.items():
        store.put(KEYS.raw(stage, video_id), raw)
    ledger = Ledger.open(stage, state_url="", sqlite_path=ledger_path)
    previous = ledger.rows(order)
    items = [
        WorkItem(video_id, inputs.metadata.get(video_id, {}), metadata_hash([]), "", previous.get(video_id))
        for video_id in order
    ]
    recorded = 0

    def on_recorded(outcomes: Sequence[object]) -> None:
        nonlocal recorded
        recorded += len(outcomes)
        if fail_after is not None and recorded >= fail_after:
            raise StoreUnavailableError("the machine is switched off here")

    try:
        embed_items(
            items,
            contract=encoder.contract,
            computing=LocalComputing(lambda: encoder),
            store=store,
            keys=KEYS,
            ledger=ledger,
            options=EngineOptions(
                workers=workers,
                item_timeout_seconds=120,
                max_object_bytes=2**30,
                retry=RetryPolicy(max_attempts=1, wait_seconds=1),
            ),
            on_recorded=on_recorded,
        )
    finally:
        ledger.close()
    keys = {KEYS.embedding(stage, video_id): video_id for video_id in order}
    answers = store.get_many(list(keys))
    return {keys[key]: from_npy(answer.data) for key, answer in answers if hasattr(answer, "data")}


def assert_same(
    vectors: Mapping[str, np.ndarray[Any, Any]], alone: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    assert vectors.keys() == alone.keys()
    for video_id, vector in vectors.items():
        assert vector.dtype == alone[video_id].dtype == np.float32
        distance = 1 - float(vector.astype(np.float64) @ alone[video_id].astype(np.float64))
        assert distance <= MAX_COSINE_DISTANCE, (video_id, distance)


def assert_identical(
    vectors: Mapping[str, np.ndarray[Any, Any]], alone: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    assert_same(vectors, alone)
    for video_id, vector in vectors.items():
        np.testing.assert_array_equal(vector, alone[video_id], err_msg=video_id)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_in_any_batch(
    batch_size: int, case: tuple[Encoder, Inputs], alone: dict[str, Any], tmp_path: Path
) -> None:
    encoder, inputs = case
    encoder.batch_size = batch_size
    store = ObjectStore.open(str(tmp_path / "store"))
    order = list(inputs.raw)
    random.Random(batch_size).shuffle(order)
    vectors = embed(encoder, inputs, store, tmp_path / "ledger.sqlite", order=order)
    # a batch's products may be summed in another order than those of one item; the same shapes never are
    (assert_identical if batch_size == 1 else assert_same)(vectors, alone)


@pytest.mark.parametrize("workers", WORKERS)
def test_with_any_number_of_workers(
    workers: int, case: tuple[Encoder, Inputs], alone: dict[str, Any], tmp_path: Path
) -> None:
    encoder, inputs = case
    encoder.batch_size = 1
    store = ObjectStore.open(str(tmp_path / "store"))
    order = sorted(inputs.raw, reverse=True)
    vectors = embed(encoder, inputs, store, tmp_path / "ledger.sqlite", order=order, workers=workers)
    assert_identical(vectors, alone)


def test_after_a_break_and_a_resume(
    case: tuple[Encoder, Inputs], alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, inputs = case
    encoder.batch_size = 1
    monkeypatch.setattr("clipfarm_dagster.engine.engine.RECORD_EVERY_ITEMS", 2)
    store, ledger = ObjectStore.open(str(tmp_path / "store")), tmp_path / "ledger.sqlite"
    order = list(inputs.raw)
    with pytest.raises(StoreUnavailableError):
        embed(encoder, inputs, store, ledger, order=order, fail_after=4)
    half = store.list(KEYS.embedding_folder(encoder.contract.stage)).num_rows
    assert half >= 4
    vectors = embed(encoder, inputs, store, ledger, order=order[::-1])
    assert_identical(vectors, alone)
