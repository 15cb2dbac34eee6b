"""How `clipfarm plan --nodes` shows what a delta takes on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from clipfarm_dagster.cli.output import table
from clipfarm_dagster.planning.estimate import FleetEstimate, FleetStage


@dataclass(frozen=True)
class Fleet:
    """Some nodes and a delta."""

    nodes: int
    price: float | None
    """What one node costs an hour."""
    delta: Mapping[str, int]
    """Items to do, by stage."""
    estimates: Sequence[FleetEstimate]
    """One for each kind of node of which something is recorded."""

    @property
    def unknown(self) -> list[str]:
        """Stages with work of which no run has recorded how fast a node was."""
        known = {name for one in self.estimates for name, stage in one.stages.items() if stage.rate}
        return [name for name, items in self.delta.items() if items and name not in known]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "nodes": self.nodes,
            "price": self.price,
            "unknown": self.unknown,
            "kinds": [
                {
                    "kind": one.kind,
                    "hours": one.hours,
                    "cost": self._cost(one.hours),
                    "stages": {
                        name: {
                            "items": stage.items,
                            "items_per_second": stage.rate and stage.rate.per_second,
                            "known_from_items": stage.rate and round(stage.rate.items),
                            "hours": stage.hours,
                            "cost": self._cost(stage.hours),
                        }
                        for name, stage in one.stages.items()
                    },
                }
                for one in self.estimates
            ],
        }

    def show(self, out: Console) -> None:
        """Print it for people."""
        if not any(self.delta.values()):
            out.print("\nNothing to embed: no time on any node")
        for one in self.estimates:
            nodes = "1 node" if self.nodes == 1 else f"{self.nodes:,} nodes"
            out.print(f"\nOn {nodes} with {one.kind}", soft_wrap=True)
            rows = [self._row(name, stage) for name, stage in one.stages.items()]
            if len(rows) > 1:
                rows.append(["together", "", "", *self._time_and_cost(one.hours)])
            columns = ["stage", "to embed", "a node's rate", "time"] + ["cost"] * (self.price is not None)
            out.print(table(None, columns, rows))
        if self.unknown:
            out.print(
                f"\nNo run has recorded how fast a node is with {' and '.join(self.unknown)}. Embed a few"
                " hundred videos on one node of the kind that you mean to take (`clipfarm sync` over a part"
                " of the CSV); each run records the rates of its nodes.",
                soft_wrap=True,
            )

    def _row(self, name: str, stage: FleetStage) -> list[str]:
        rate = "unknown"
        if stage.rate is not None:
            rate = f"{stage.rate.per_second:.3g} a second (of {stage.rate.items:,.0f})"
        return [name, f"{stage.items:,}", rate, *self._time_and_cost(stage.hours)]

    def _time_and_cost(self, hours: float | None) -> list[str]:
        time = "unknown" if hours is None else shown_duration(hours * 3600)
        cost = self._cost(hours)
        return [time] if self.price is None else [time, "unknown" if cost is None else f"{cost:,.2f}"]

    def _cost(self, hours: float | None) -> float | None:
        return None if self.price is None or hours is None else hours * self.nodes * self.price


def shown_duration(seconds: float) -> str:
    """Seconds in a unit that fits."""
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
