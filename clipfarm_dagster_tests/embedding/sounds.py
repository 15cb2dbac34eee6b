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
