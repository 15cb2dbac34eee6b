"""Fixtures of the engine tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint, minilm_folder
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.bench import Bench, bench
from clipfarm_dagster_tests.support.faults import FaultyPreparer


@pytest.fixture(scope="session")
def audio_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A small wav2vec2 with random weights, through the real loader."""
    folder = make_audio_checkpoint(tmp_path_factory.mktemp("audio"), hidden_size=64, intermediate_size=64)
    settings = load_settings(home=tmp_path_factory.mktemp("home"), audio={"model": str(folder)}, device="cpu")
    return load_encoder(Stage.AUDIO, settings)


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The real MiniLM."""
    home = tmp_path_factory.mktemp("home")
    settings = load_settings(home=home, text={"model": str(minilm_folder())}, device="cpu")
    return load_encoder(Stage.TEXT, settings)


@pytest.fixture
def audio(audio_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """An empty audio stage over a folder, whose preparer breaks where a raw object asks for it."""
    monkeypatch.setattr(audio_encoder, "preparer", FaultyPreparer(audio_encoder.preparer))
    with bench(audio_encoder, ObjectStore.open(str(tmp_path / "store")), tmp_path) as made:
        yield made


@pytest.fixture
def text(
    text_encoder: Encoder, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """An empty text stage over a folder, and over S3; many batches of a few items."""
    monkeypatch.setattr(text_encoder, "batch_size", 16)
    with bench(text_encoder, store, tmp_path) as made:
        yield made
