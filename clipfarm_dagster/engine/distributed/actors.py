"""The actors on the nodes of a cluster: where there is room for one, which are ready, which are left out."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clipfarm_dagster.engine.distributed.node import EmbeddingNode, NodeReport, NodeSetup
from clipfarm_dagster.errors import ClipFarmError, WorkersLostError
from clipfarm_dagster.settings import Settings

LEASES_PER_ACTOR = 2
"""While one lease comes to its end, the next one fills the pipeline."""

_LOOK_FOR_NODES_SECONDS = 5.0
_START_SECONDS = 1800.0
"""A node that has not loaded its model by then, its download included, is taken for hung."""

_FAILED_STARTS = 3
"""A node on which the actor ends so often before it is ready is left out."""


@dataclass(frozen=True)
class RayOptions:
    """How a run uses a cluster."""

    address: str
    """Address of the cluster's head, `HOST:PORT`."""
    actors: int = 0
    """Actors in all; 0 is one for each GPU of a node, or one for a node without GPUs."""
    actor_cores: int = 0
    """Cores of an actor; 0 is the node's cores, shared by its actors."""
    lease_size: int = 32
    """Most items that are lent to an actor at once; what a lost node costs is at most two leases."""
    silence_seconds: float = 600.0
    """An actor that gives no result for so long is taken for hung, and ended."""

    @classmethod
    def from_settings(cls, settings: Settings) -> RayOptions:
        """The options that the settings and RAY_ADDRESS ask for."""
        return cls(
            os.environ.get("RAY_ADDRESS", ""),
            actors=settings.ray_actors,
            actor_cores=settings.ray_actor_cores,
            lease_size=settings.ray_lease_size,
            silence_seconds=settings.ray_silence_seconds,
        )


@dataclass(frozen=True)
class Place:
    """Where an actor may run."""

    node_id: str
    address: str
    slot: int
    cores: int
    gpus: float


@dataclass(eq=False)
class Actor:
    """One process on a node."""

    handle: Any
    place: Place
    asked: Any
    """Reference of its report."""
    begun: float = field(default_factory=time.monotonic)
    report: NodeReport | None = None
    """What it said of itself; None until it is ready."""
    ready: float = math.inf
    """When that was."""
    computed: int = 0
    """Items that went through its model."""

    @property
    def name(self) -> str:
        """Its node, for people."""
        host = f" ({self.report.host})" if self.report else ""
        return f"{self.place.address}{host}"


class Actors:
    """The actors of one run, as nodes come and go.

    Args:
        ray: the module, connected.
        setup: what an actor with so many cores needs.
        say: is called with a line for the log about what happens to nodes.
    """

    def __init__(
        self,
        ray: Any,
        options: RayOptions,
        setup: Callable[[int], NodeSetup],
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ray, self._options, self._setup, self._say = ray, options, setup, say
        self.by_place: dict[Place, Actor] = {}
        """Those that are ready or starting."""
        self.left_out: dict[Place, ClipFarmError] = {}
        """Why there is none in the other places."""
        self.reports: dict[Place, NodeReport] = {}
        """What was said of each place, also of those that are left out."""
        self._failed_starts: dict[Place, int] = {}
        self._looked = 0.0

    def look_for_nodes(self) -> None:
        """Start an actor wherever there is room for one."""
        if time.monotonic() - self._looked < _LOOK_FOR_NODES_SECONDS and self.by_place:
            return
        self._looked = time.monotonic()
        for place in self.places():
            if place not in self.by_place and place not in self.left_out:
                self._start(place)

    def ready(self) -> list[Actor]:
        """Those that compute."""
        return [actor for actor in self.by_place.values() if actor.report is not None]

    def become_ready(self, *, timeout: float) -> list[Actor]:
        """Those that say by now that they can compute. Others are left out, by name."""
        if not self.by_place:
            time.sleep(timeout)  # until a node comes
            return []
        self._end_slow_starts()
        asked = {actor.asked: actor for actor in self.by_place.values() if actor.report is None}
        if not asked:
            return []
        done, _ = self._ray.wait(list(asked), num_returns=1, timeout=timeout)
        ready = []
        for reference in done:
            actor = asked[reference]
            try:
                report: NodeReport = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._lose_start(actor, error)
                continue
            self.reports[actor.place] = report
            if report.problem is not None:
                self._leave_out(actor.place, named(report.problem, f"{actor.name} ({report.host})"))
                continue
            actor.report, actor.ready = report, time.monotonic()
            ready.append(actor)
        return ready

    def lose(self, actor: Actor) -> bool:
        """Give an actor up; tells whether its node was lost, too."""
        del self.by_place[actor.place]
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        self._kill(actor)
        self._looked = 0.0
        return actor.place.node_id not in alive

    def end(self) -> None:
        """End them all."""
        for actor in self.by_place.values():
            self._kill(actor)
        self.by_place.clear()

    def places(self) -> list[Place]:
        """Where an actor may run, as far as nodes are there now."""
        options = self._options
        found = []
        for node in self._ray.nodes():
            resources = node["Resources"]
            cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            if not node["Alive"] or not (cores or gpus):
                continue
            here = gpus or 1
            if options.actor_cores and not gpus:
                here = max(1, cores // options.actor_cores)
            each = options.actor_cores or max(1, cores // here)
            address = node["NodeManagerAddress"]
            found += [Place(node["NodeID"], address, slot, each, float(gpus > 0)) for slot in range(here)]
        found.sort(key=lambda place: (place.slot, place.node_id))  # spread over the nodes
        return found[: options.actors] if options.actors else found

    def _start(self, place: Place) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(
            num_cpus=0,  # what a node has is counted here
            num_gpus=place.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=LEASES_PER_ACTOR + 1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node_id, soft=False),
        )(EmbeddingNode)
        handle = remote.remote(self._setup(place.cores))
        self.by_place[place] = Actor(handle, place, handle.report.remote())

    def _end_slow_starts(self) -> None:
        now = time.monotonic()
        for actor in [actor for actor in self.by_place.values() if actor.report is None]:
            if now - actor.begun > _START_SECONDS:
                self._kill(actor)
                self._lose_start(actor, TimeoutError(f"not ready for {_START_SECONDS:g} s"))

    def _lose_start(self, actor: Actor, error: Exception) -> None:
        place = actor.place
        self.by_place.pop(place, None)
        self._failed_starts[place] = self._failed_starts.get(place, 0) + 1
        self._say(f"{actor.name}: its process ended before it was ready ({line(error)})")
        if self._failed_starts[place] >= _FAILED_STARTS:
            self._leave_out(
                place,
                WorkersLostError(
                    f"node {actor.name}: its process ended {_FAILED_STARTS} times before it was ready"
                    f" ({line(error)}); see Ray's logs on that host"
                ),
            )

    def _leave_out(self, place: Place, problem: ClipFarmError) -> None:
        self.left_out[place] = problem
        actor = self.by_place.pop(place, None)
        if actor is not None:
            self._kill(actor)
        self._say(f"left out: {problem}")

    def _kill(self, actor: Actor) -> None:
        with contextlib.suppress(Exception):  # it may have gone by itself
            self._ray.kill(actor.handle)


def named(problem: ClipFarmError, node: str) -> ClipFarmError:
    """The problem, with the node on which it came up."""
    problem.args = (f"node {node}: {problem}",)
    return problem


def line(error: Exception) -> str:
    """An error on one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
