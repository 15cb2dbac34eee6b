"""What a drawn clip is before it is encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipfarm_dagster.demo.scenes.canvas import Canvas


@dataclass(frozen=True)
class Scene:
    """One clip before encoding."""

    draw: Callable[[float], Canvas]
    """Picture at a time in seconds: float32 `(height, width, 3)`, to be clipped to 0–255."""
    sound: Callable[[float, int], NDArray[np.float32]]
    """Mono samples within ±1 for a duration in seconds and a sample rate in Hz."""
