"""How long the delta of a stage will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Estimate:
    """Seconds that a delta takes one item after another, at the rates seen before."""

    seconds: float
    """At the median rate."""
    low: float
    """At the rate that a tenth of the items beat."""
    high: float
    """At the rate that a tenth of the items miss."""


def estimate_seconds(seen: Mapping[Stage, Sequence[float]], delta: Mapping[Stage, int]) -> Estimate | None:
    """How long a delta takes, from the seconds that recent items of the same stages took.

    Args:
        seen: seconds of single items, by stage.
        delta: number of items to do, by stage.

    Returns:
        None if a stage with work has never been timed.
    """
    import numpy as np

    todo = {stage: count for stage, count in delta.items() if count}
    if any(len(seen.get(stage, ())) == 0 for stage in todo):
        return None
    low, middle, high = sum(
        (count * np.quantile(seen[stage], [0.1, 0.5, 0.9]) for stage, count in todo.items()), np.zeros(3)
    )
    return Estimate(float(middle), float(low), float(high))
