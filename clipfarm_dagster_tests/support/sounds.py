"""Short sounds as WAV, the same bytes every time."""

from __future__ import annotations

import io

import numpy as np
import soundfile


def wav(seconds: float, *, seed: int = 0, rate: int = 16_000, channels: int = 1) -> bytes:
    """Noise of some seconds, 16-bit PCM."""
    shape = (round(seconds * rate), channels)
    samples = np.random.default_rng(seed).normal(0, 0.1, shape)
    with io.BytesIO() as file:
        soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
        return file.getvalue()


def loud(loudest: float) -> bytes:
    """Noise of a fifth of a second, 32-bit float, whose samples go up to `loudest`; full scale is 1."""
    samples = np.random.default_rng(0).uniform(-1, 1, 3_200) * loudest
    with io.BytesIO() as file:
        soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
        return file.getvalue()


def silence(seconds: int, rate: int, channels: int, container: str) -> bytes:
    """16-bit silence as WAV or FLAC; the latter takes few bytes, however much sound it is."""
    second = np.zeros((rate, channels), dtype=np.int16)
    with io.BytesIO() as file:
        with soundfile.SoundFile(file, "w", rate, channels, "PCM_16", format=container) as sound:
            for _ in range(seconds):
                sound.write(second)
        return file.getvalue()
