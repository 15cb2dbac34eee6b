"""Synthesised sound: mono samples within ±1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def noise(rng: np.random.Generator, count: int, rate: int, low: float, high: float) -> NDArray[np.float32]:
    """Pink noise between two frequencies in Hz, with soft edges, of unit standard deviation."""
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / rate), 1.0)
    band = 1 / np.sqrt(frequency) / (1 + (low / frequency) ** 4) / (1 + (frequency / high) ** 4)
    phases = rng.uniform(0, 2 * np.pi, len(frequency))
    samples = np.fft.irfft(band * np.exp(1j * phases), count)
    return np.asarray(samples / samples.std(), dtype=np.float32)


def levelled(samples: NDArray[np.float64], peak: float = 0.7) -> NDArray[np.float32]:
    """Scale to a peak, with 30 ms fades at both ends so that nothing clicks."""
    fade = np.minimum(np.linspace(0, len(samples) / 1500, len(samples)), 1)
    samples = samples * fade * fade[::-1]
    return (samples * (peak / max(float(np.abs(samples).max()), 1e-9))).astype(np.float32)


def strike(time: NDArray[np.float64], at: float, frequency: float, decay: float) -> NDArray[np.float64]:
    """A struck body: a sine that dies away, from `at` seconds on."""
    since = time - at
    ringing = np.exp(-np.clip(since, 0, None) * decay) * (since >= 0)
    return ringing * np.sin(2 * np.pi * frequency * since)
