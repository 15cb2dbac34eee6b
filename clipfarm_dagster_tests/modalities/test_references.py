"""Each stage's vector is the one that ten lines straight from the libraries give, over real media."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfarm_dagster.demo.checkpoints import make_checkpoint_from_config, minilm_folder
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.models import model_settings

# frames counted by the container, upright, and more than 16 of them: what the ten lines can sample
CLIPS = ("sample.mp4", "h265_bframes.mp4", "bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4", "sample_av1.mp4")
SOUNDS = ("LJ050-0131.wav", "3_george_0.wav")


@pytest.fixture(scope="module")
def base_models(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Stage, Path]]:
    """The full default architectures, with random weights; 750 MB that go with the module."""
    configs = {Stage.VIDEO: "videomae-base", Stage.AUDIO: "wav2vec2-base-960h"}
    folder = tmp_path_factory.mktemp("base")
    made = {
        stage: make_checkpoint_from_config(shared_folder / "checkpoints" / name, folder / name)
        for stage, name in configs.items()
    }
    yield {**made, Stage.TEXT: minilm_folder()}
    shutil.rmtree(folder)


def load(stage: Stage, models: dict[Stage, Path], tmp_path: Path, **changes: Any) -> Encoder:
    return load_encoder(stage, model_settings(models, tmp_path, **{str(stage): changes}))


def vector_of(encoder: Encoder, raw: bytes, metadata: dict[str, str]) -> np.ndarray[Any, Any]:
    [vector] = encoder.encode([encoder.preparer(raw, metadata)])
    assert isinstance(vector, np.ndarray)
    return vector


def unit(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    scaled: np.ndarray[Any, Any] = vector / np.linalg.norm(vector)
    return scaled


def assert_equal_vectors(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> None:
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) == ((768,), np.float32)
    assert float(ours.astype(np.float64) @ theirs.astype(np.float64)) > 0.999999


def reference_video(path: Path, folder: Path, pooling: str) -> np.ndarray[Any, Any]:
    import av
    import torch
    from transformers import VideoMAEImageProcessorPil, VideoMAEModel

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    taken = [frames[i] for i in np.linspace(0, len(frames) - 1, 16).astype(int)]
    pixels = VideoMAEImageProcessorPil.from_pretrained(folder)(taken, return_tensors="pt")["pixel_values"]
    model = VideoMAEModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model(pixels).last_hidden_state[0]
    pooled = (states[0] if pooling == "first_token" else states.mean(dim=0)).numpy()
    return unit(pooled)


def reference_audio(path: Path, folder: Path) -> np.ndarray[Any, Any]:
    import librosa
    import torch
    from transformers import Wav2Vec2Model, Wav2Vec2Processor

    samples, rate = librosa.load(path, sr=16_000, mono=True, duration=90)
    values = Wav2Vec2Processor.from_pretrained(folder)(samples, sampling_rate=rate, return_tensors="pt")
    model = Wav2Vec2Model.from_pretrained(folder).eval()
    with torch.inference_mode():
        pooled = model(values.input_values).last_hidden_state[0].mean(dim=0).numpy()
    return unit(pooled)


def reference_text(row: dict[str, str], transcript: str, folder: Path) -> np.ndarray[Any, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    described = f"{row['title']} [SEP] {row['description']} [SEP] {row['query']}"
    vector = np.concatenate(
        [model.encode(text, normalize_embeddings=True) for text in (described, transcript)]
    )
    return unit(vector)


@pytest.mark.parametrize("pooling", ["first_token", "mean"])
def test_video_over_real_clips(
    pooling: str, models: dict[Stage, Path], shared_folder: Path, tmp_path: Path
) -> None:
    encoder = load(Stage.VIDEO, models, tmp_path, pooling=pooling)
    for name in CLIPS:
        path = shared_folder / "media" / name
        theirs = reference_video(path, models[Stage.VIDEO], pooling)
        ours = vector_of(encoder, path.read_bytes(), {})
        assert ours.shape == theirs.shape
        assert float(ours.astype(np.float64) @ theirs.astype(np.float64)) > 0.999999


def test_video_with_the_default_architecture(
    base_models: dict[Stage, Path], shared_folder: Path, tmp_path: Path
) -> None:
    path = shared_folder / "media" / CLIPS[0]
    ours = vector_of(load(Stage.VIDEO, base_models, tmp_path), path.read_bytes(), {})
    assert_equal_vectors(ours, reference_video(path, base_models[Stage.VIDEO], "first_token"))


def test_audio_with_the_default_architecture(
    base_models: dict[Stage, Path], shared_folder: Path, tmp_path: Path
) -> None:
    encoder = load(Stage.AUDIO, base_models, tmp_path)
    if not (base_models[Stage.AUDIO] / "vocab.json").exists():
        pytest.fail("the checkpoint has no tokenizer, which Wav2Vec2Processor wants")
    for name in SOUNDS:
        path = shared_folder / "media" / name
        ours = vector_of(encoder, path.read_bytes(), {})
        assert_equal_vectors(ours, reference_audio(path, base_models[Stage.AUDIO]))


def test_the_first_seconds_of_a_long_stereo_sound(models: dict[Stage, Path], tmp_path: Path) -> None:
    import soundfile

    samples = np.random.default_rng(0).normal(0, 0.1, (44_100 * 3, 2))
    path = tmp_path / "long.wav"
    soundfile.write(path, samples, 44_100, subtype="PCM_16")
    cut = tmp_path / "cut.wav"
    soundfile.write(cut, samples[: 44_100 * 2], 44_100, subtype="PCM_16")
    ours = vector_of(load(Stage.AUDIO, models, tmp_path, max_seconds=2), path.read_bytes(), {})
    theirs = reference_audio(cut, models[Stage.AUDIO])
    assert float(ours.astype(np.float64) @ theirs.astype(np.float64)) > 0.999999


def test_text(models: dict[Stage, Path], tmp_path: Path) -> None:
    encoder = load(Stage.TEXT, models, tmp_path)
    long = "the quick brown fox jumps over the lazy dog " * 80
    for title, transcript in (("Waves at dusk", "Listen to that."), ("", ""), ("Crème brûlée 日本", long)):
        row = {"title": title, "description": "A description.", "query": "a query"}
        raw = json.dumps({"transcript": transcript}).encode()
        ours = vector_of(encoder, raw, row)
        assert_equal_vectors(ours, reference_text(row, transcript, models[Stage.TEXT]))


def test_a_sound_is_decoded_and_resampled_as_librosa_load_does(
    models: dict[Stage, Path], shared_folder: Path, tmp_path: Path
) -> None:
    import librosa
    from transformers import Wav2Vec2FeatureExtractor

    encoder = load(Stage.AUDIO, models, tmp_path)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(models[Stage.AUDIO])
    for name in SOUNDS:
        raw = (shared_folder / "media" / name).read_bytes()
        samples, _ = librosa.load(io.BytesIO(raw), sr=16_000, mono=True, duration=90)
        values = extractor(samples, sampling_rate=16_000, return_tensors="np")["input_values"][0]
        np.testing.assert_array_equal(encoder.preparer(raw, {}).inputs, values)
