"""What nodes would be for a run: each is asked as a run asks it, and computes something for some seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clipfarm_dagster.engine.distributed.actors import Actors, Place, RayOptions, line
from clipfarm_dagster.engine.distributed.node import EmbeddingNode, NodeReport, NodeSetup
from clipfarm_dagster.errors import ClipFarmError, ClusterError, WorkersLostError

_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class ProbeInput:
    """What nodes compute to show how fast they are."""

    raw: bytes
    metadata: Mapping[str, str]
    seconds: float
    """How long, about."""


@dataclass(frozen=True)
class Inspected:
    """One process that a run would have."""

    address: str
    gpus: float
    report: NodeReport | None
    """What its node says of itself; None if it has said nothing."""
    items_per_second: float | None
    problem: ClipFarmError | None
    """Why a run would leave it out."""


def inspect_cluster(
    ray: Any,
    options: RayOptions,
    setup: Callable[[int], NodeSetup],
    probe: ProbeInput,
    say: Callable[[str], None],
) -> list[Inspected]:
    """All processes that a run could have on a cluster, which compute at the same time.

    Args:
        ray: the module, connected.
        setup: what a process with so many cores needs.

    Raises:
        ClusterError: no node has a processor core.
    """
    actors = Actors(ray, options, setup, say=say)
    try:
        actors.look_for_nodes()
        asked = set(actors.by_place)
        if not asked:
            raise ClusterError(
                f"the Ray cluster at {options.address} has no node with processor cores; start one by"
                f" `ray start --address={options.address}`"
            )
        gone: set[Place] = set()
        while asked - gone - actors.left_out.keys() - {actor.place for actor in actors.ready()}:
            actors.become_ready(timeout=_WAIT_SECONDS)
            actors.look_for_nodes()
            gone = asked.difference(actors.places())
        probes = {
            actor.place: actor.handle.probe.remote(probe.raw, probe.metadata, probe.seconds)
            for actor in actors.ready()
        }
        rates: dict[Place, float] = {}
        problems: dict[Place, ClipFarmError] = {
            place: ClusterError(f"node {place.address}: it was lost while it was asked") for place in gone
        }
        problems |= actors.left_out
        for place, reference in probes.items():
            try:
                rates[place] = ray.get(reference)
            except ray.exceptions.RayError as error:
                what = f"node {actors.by_place[place].name}: it does not compute the probe ({line(error)})"
                problems[place] = WorkersLostError(f"{what}; see Ray's logs on that host")
        return [
            Inspected(place.address, place.gpus, actors.reports.get(place), rates.get(place), problem)
            for place in sorted({*rates, *problems}, key=lambda place: (place.address, place.slot))
            for problem in [problems.get(place)]
        ]
    finally:
        actors.end()


def inspect_here(setup: NodeSetup, probe: ProbeInput) -> Inspected:
    """This process as the only one that computes."""
    node = EmbeddingNode(setup, owns_process=False)
    try:
        report = node.report()
        rate = None
        if report.problem is None:
            rate = node.probe(probe.raw, probe.metadata, probe.seconds)
        return Inspected("", 0.0, report, rate, report.problem)
    finally:
        node.close()
