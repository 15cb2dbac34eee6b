"""How long the delta of a stage will take, here and on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipfarm_dagster.planning.rates import Rate
from clipfarm_dagster.stages import Stage

SETTLED_PER_SECOND = 400.0
"""Results of a stage that one run's process stores and records in a second, however many nodes compute
(measured: docs/cluster.md)."""


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


@dataclass(frozen=True)
class FleetStage:
    """One stage's delta on some nodes of one kind."""

    items: int
    rate: Rate | None
    """What is recorded of one node; None where nothing is."""
    hours: float | None


@dataclass(frozen=True)
class FleetEstimate:
    """How long deltas take on some nodes of one kind, one stage after the other."""

    kind: str
    stages: Mapping[str, FleetStage]

    @property
    def hours(self) -> float | None:
        """Hours of all stages; None if one is not known."""
        hours = [stage.hours for stage in self.stages.values()]
        return None if None in hours else sum(hour for hour in hours if hour is not None)


def estimate_fleet(
    delta: Mapping[str, int], recorded: Mapping[str, Sequence[Rate]], nodes: int
) -> list[FleetEstimate]:
    """How long deltas take on `nodes` nodes, for each kind of node of which a rate is recorded.

    Args:
        delta: items to do, by stage.
        recorded: rates of the same stages.
    """
    todo = {stage: count for stage, count in delta.items() if count}
    kinds = dict.fromkeys(rate.kind for stage in todo for rate in recorded.get(stage, ()))
    return [
        FleetEstimate(
            kind, {stage: _on(nodes, kind, items, recorded.get(stage, ())) for stage, items in todo.items()}
        )
        for kind in kinds
    ]


def _on(nodes: int, kind: str, items: int, recorded: Sequence[Rate]) -> FleetStage:
    rate = next((rate for rate in recorded if rate.kind == kind), None)
    if rate is None:
        return FleetStage(items, None, None)
    together = min(nodes * rate.per_second, SETTLED_PER_SECOND)
    return FleetStage(items, rate, items / together / 3600)
