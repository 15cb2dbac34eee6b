"""What the audio preparer gives is what librosa and transformers give, bit for bit."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import soundfile
from transformers import Wav2Vec2FeatureExtractor

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.audio.encoder import AudioPreparer

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the standard library's modules that it imports
    from librosa import load as librosa_load

PREPARER = AudioPreparer(normalise=True, sample_rate=16_000, max_seconds=2.0, min_samples=400)


def encoded(samples: np.ndarray, rate: int, container: str, subtype: str) -> bytes:
    with io.BytesIO() as file:
        soundfile.write(file, samples, rate, format=container, subtype=subtype)
        return file.getvalue()


def noise(seconds: float, rate: int, channels: int) -> np.ndarray:
    return np.random.default_rng(rate + channels).normal(0, 0.1, (round(seconds * rate), channels))


@pytest.mark.parametrize("seconds", [0.1, 1.2345, 3.0])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_24")])
def test_equals_librosa_and_the_feature_extractor(
    container: str, subtype: str, rate: int, channels: int, seconds: float
):
    raw = encoded(noise(seconds, rate, channels), rate, container, subtype)
    samples, _ = librosa_load(io.BytesIO(raw), sr=16_000, mono=True, duration=2.0, res_type="soxr_hq")
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=False, do_normalize=True)
    expected = extractor(samples, sampling_rate=16_000, return_tensors="np")["input_values"][0]

    inputs = PREPARER(raw, {}).inputs

    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, expected.astype(np.float32))


def test_without_scaling_the_samples_are_librosas():
    raw = encoded(noise(1, 22_050, 2), 22_050, "WAV", "PCM_16")
    samples, _ = librosa_load(io.BytesIO(raw), sr=16_000, mono=True, duration=2.0)
    plain = AudioPreparer(normalise=False, sample_rate=16_000, max_seconds=2.0, min_samples=400)

    np.testing.assert_array_equal(plain(raw, {}).inputs, samples)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "cannot be decoded"),
        (b"RIFF", "cannot be decoded"),
        (encoded(np.zeros((0, 1)), 44_100, "WAV", "PCM_16"), "0 samples"),
        (encoded(np.zeros((100, 1)), 16_000, "WAV", "PCM_16"), "100 samples"),
        (encoded(np.full((9_000, 1), np.nan), 44_100, "WAV", "FLOAT"), "not finite"),
    ],
)
def test_a_sound_that_cannot_be_heard_is_refused(raw: bytes, problem: str):
    with pytest.raises(InvalidRawObjectError, match=problem):
        PREPARER(raw, {})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("loudest", [1e19, 3e38])
def test_a_sound_too_loud_for_its_numbers_is_refused(
    loudest: float, rate: int, channels: int, normalise: bool
):
    samples = np.random.default_rng(0).uniform(-1, 1, (30_000, channels)) * loudest
    preparer = AudioPreparer(normalise=normalise, sample_rate=16_000, max_seconds=2.0, min_samples=400)

    with pytest.raises(InvalidRawObjectError, match=r"too large .*\(full scale is 1\)"):
        preparer(encoded(samples, rate, "WAV", "FLOAT"), {})


def test_a_loud_sound_whose_numbers_suffice_is_heard():
    samples = np.random.default_rng(0).uniform(-1, 1, (30_000, 1)) * 1e9

    assert PREPARER(encoded(samples, 16_000, "WAV", "FLOAT"), {}).inputs.std() == pytest.approx(1)
