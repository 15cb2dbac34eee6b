"""Computes items on a Ray cluster: lends them to an actor on each node, and gives on what comes back.

Actors compute, this process writes. An outcome counts once, whichever actor gives it. What is lost with an
actor goes out again (see `leases`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clipfarm_dagster.engine.distributed.cluster import connected
from clipfarm_dagster.engine.distributed.leases import Lease, LeaseBook
from clipfarm_dagster.engine.distributed.node import Batch, EmbeddingNode, NodeModel, NodeReport, NodeSetup
from clipfarm_dagster.engine.options import EngineOptions
from clipfarm_dagster.engine.outcomes import ItemResult, OutcomeKind
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.errors import ClipFarmError, ClusterError, WorkersLostError
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract

LEASES_PER_ACTOR = 2
"""While one lease comes to its end, the next one fills the pipeline."""

_WAIT_SECONDS = 1.0
_LOOK_FOR_NODES_SECONDS = 5.0
_NODES_SECONDS = 60.0
"""Without any node that could compute, a run waits so long for one."""

_START_SECONDS = 1800.0
"""A node that has not loaded its model by then, its download included, is taken for hung."""

_FAILED_STARTS = 3
"""A node on which the actor ends so often before it is ready is left out."""

_ENDS_IN_A_ROW = 20
"""If processes end so often and not one item is computed in between, it is not the items."""


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
class _Place:
    """Where an actor may run."""

    node_id: str
    address: str
    slot: int
    cores: int
    gpus: float


@dataclass(eq=False)
class _Actor:
    handle: Any
    place: _Place
    asked: Any
    """Reference of its report."""
    begun: float = field(default_factory=time.monotonic)
    report: NodeReport | None = None

    @property
    def name(self) -> str:
        host = f" ({self.report.host})" if self.report else ""
        return f"{self.place.address}{host}"


@dataclass(eq=False)
class _Running:
    lease: Lease
    actor: _Actor
    heard: float = field(default_factory=time.monotonic)


class RayComputing:
    """Computes on the nodes of a cluster; see `Computing` for what its methods do.

    Args:
        load: loads and checks the model on a node; must be picklable.
        on_node: is called with what each node says of itself that computes.
        say: is called with a line for the log about what happens to nodes.
    """

    def __init__(
        self,
        ray_options: RayOptions,
        load: Callable[[], NodeModel],
        *,
        workers: int = 0,
        on_node: Callable[[NodeReport], None] = lambda report: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ray_options, self._load = ray_options, load
        self._workers, self._on_node, self._say = workers, on_node, say
        self._stack = contextlib.ExitStack()
        self._actors: dict[_Place, _Actor] = {}
        self._failed_starts: dict[_Place, int] = {}
        self._left_out: dict[_Place, ClipFarmError] = {}
        self._looked = 0.0
        self._running: dict[Any, _Running] = {}
        """By the generator of references to its batches."""
        self._ends_in_a_row = 0

    def begin(
        self, contract: Contract, store: ObjectStore, keys: Keys, options: EngineOptions, progress: Progress
    ) -> None:
        """Connect, and wait until a node is ready.

        Raises:
            ClusterError: the cluster cannot be used, or no node has come that computes.
            ModelUnavailableError, DriftError: no node has the model, or it moved on all of them.
        """
        self._contract, self._store_url, self._keys, self._progress = contract, store.url, keys, progress
        self._options = replace(options, workers=self._workers)
        self._ray = self._stack.enter_context(connected(self._ray_options.address))
        until = time.monotonic() + _NODES_SECONDS
        while not any(actor.report for actor in self._actors.values()):
            self._look_for_nodes()
            self._become_ready(timeout=_WAIT_SECONDS)
            if self._actors:
                until = time.monotonic() + _NODES_SECONDS  # a model may take long to load
            elif self._left_out:
                raise self._why_left_out()
            elif time.monotonic() > until:
                raise ClusterError(
                    f"the Ray cluster at {self._ray_options.address} has had no node with processor cores for"
                    f" {_NODES_SECONDS:g} s; start one by `ray start --address={self._ray_options.address}`"
                )

    def compute(
        self,
        items: Sequence[WorkItem],
        *,
        give: Callable[[ItemResult], None],
        meanwhile: Callable[[], None],
        every_seconds: float,
    ) -> None:
        """Lend the items out until each has its result.

        Raises:
            ClusterError: the last node was lost, and no other has come.
            WorkersLostError: the processes on the nodes end whatever they compute.
            StoreUnavailableError, ModelUnavailableError: as a node has met them.
        """
        by_id = {item.video_id: item for item in items}
        self._book = LeaseBook(by_id, size=self._ray_options.lease_size, per_actor=LEASES_PER_ACTOR)
        self._give = give
        for actor in self._actors.values():
            if actor.report:
                self._book.add_actor(actor)
        empty_since: float | None = None
        while self._book.open:
            self._look_for_nodes()
            for actor in self._become_ready(timeout=0 if self._running else _WAIT_SECONDS):
                self._book.add_actor(actor)
            for lease in self._book.next_leases():
                self._lend(lease, by_id)
            self._take_batches(min(_WAIT_SECONDS, every_seconds))
            self._end_silent()
            meanwhile()
            if self._actors:
                empty_since = None
            else:
                empty_since = empty_since or time.monotonic()
                if time.monotonic() - empty_since > _NODES_SECONDS:
                    raise self._why_left_out()

    def end(self) -> None:
        """End the actors and leave the cluster."""
        for actor in self._actors.values():
            self._kill(actor)
        self._actors.clear()
        self._running.clear()
        self._stack.close()

    # nodes come and go

    def _look_for_nodes(self) -> None:
        """Start an actor wherever there is room for one."""
        if time.monotonic() - self._looked < _LOOK_FOR_NODES_SECONDS and self._actors:
            return
        self._looked = time.monotonic()
        for place in self._places():
            if place not in self._actors and place not in self._left_out:
                self._start_actor(place)

    def _places(self) -> list[_Place]:
        options = self._ray_options
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
            found += [_Place(node["NodeID"], address, slot, each, float(gpus > 0)) for slot in range(here)]
        found.sort(key=lambda place: (place.slot, place.node_id))  # spread over the nodes
        return found[: options.actors] if options.actors else found

    def _start_actor(self, place: _Place) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        setup = NodeSetup(self._contract, self._load, self._store_url, self._keys, self._options, place.cores)
        remote = self._ray.remote(
            num_cpus=0,  # what a node has is counted here
            num_gpus=place.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=LEASES_PER_ACTOR + 1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node_id, soft=False),
        )(EmbeddingNode)
        handle = remote.remote(setup)
        self._actors[place] = _Actor(handle, place, handle.report.remote())

    def _become_ready(self, *, timeout: float) -> list[_Actor]:
        """Actors that say by now that they can compute. Others are left out, by name."""
        if not self._actors:
            time.sleep(timeout)  # until a node comes
            return []
        self._end_slow_starts()
        asked = {actor.asked: actor for actor in self._actors.values() if actor.report is None}
        if not asked:
            return []
        done, _ = self._ray.wait(list(asked), num_returns=1, timeout=timeout)
        ready = []
        for reference in done:
            actor = asked[reference]
            try:
                report = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._lose_start(actor, error)
                continue
            if report.problem is not None:
                self._leave_out(actor.place, _named(report.problem, f"{actor.name} ({report.host})"))
                continue
            actor.report = report
            self._on_node(report)
            self._say(f"{actor.name} computes")
            self._count_widths()
            ready.append(actor)
        return ready

    def _count_widths(self) -> None:
        """Say how many processes or threads work on each step, on all nodes that compute."""
        widths = Counter[str]()
        for actor in self._actors.values():
            if actor.report is not None:
                widths.update(actor.report.widths)
        self._progress.widths = dict(widths)

    def _kill(self, actor: _Actor) -> None:
        with contextlib.suppress(Exception):  # it may have gone by itself
            self._ray.kill(actor.handle)

    def _end_slow_starts(self) -> None:
        now = time.monotonic()
        for actor in [actor for actor in self._actors.values() if actor.report is None]:
            if now - actor.begun > _START_SECONDS:
                self._kill(actor)
                self._lose_start(actor, TimeoutError(f"not ready for {_START_SECONDS:g} s"))

    def _lose_start(self, actor: _Actor, error: Exception) -> None:
        place = actor.place
        self._actors.pop(place, None)
        self._failed_starts[place] = self._failed_starts.get(place, 0) + 1
        self._say(f"{actor.name}: its process ended before it was ready ({_line(error)})")
        if self._failed_starts[place] >= _FAILED_STARTS:
            self._leave_out(
                place,
                WorkersLostError(
                    f"node {actor.name}: its process ended {_FAILED_STARTS} times before it was ready"
                    f" ({_line(error)}); see Ray's logs on that host"
                ),
            )

    def _leave_out(self, place: _Place, problem: ClipFarmError) -> None:
        self._left_out[place] = problem
        actor = self._actors.pop(place, None)
        if actor is not None:
            self._kill(actor)
        self._say(f"left out: {problem}")

    def _why_left_out(self) -> ClipFarmError:
        problems = list(self._left_out.values())
        if not problems:
            return ClusterError(
                f"the last node of the Ray cluster at {self._ray_options.address} was lost, and no other came"
                f" within {_NODES_SECONDS:g} s; what was recorded stands, the rest is done by the next run"
            )
        first = problems[0]
        if len(problems) > 1:
            first.args = (f"{first} (and so with {len(problems) - 1} more)",)
        return first

    # items go out and come back

    def _lend(self, lease: Lease, by_id: dict[str, WorkItem]) -> None:
        actor = lease.actor
        assert isinstance(actor, _Actor)
        items = [by_id[video_id] for video_id in lease.video_ids]
        batches = actor.handle.compute.options(num_returns="streaming").remote(items)
        self._running[batches] = _Running(lease, actor)

    def _take_batches(self, timeout: float) -> None:
        if not self._running:
            return
        waiting = list(self._running)
        done, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        if not done:
            done, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout)
        for batches in done:
            running = self._running.get(batches)
            if running is None:  # lost meanwhile, with its actor
                continue
            try:
                batch = self._ray.get(next(batches))
            except StopIteration:
                del self._running[batches]
                self._book.end(running.lease)
            except self._ray.exceptions.RayTaskError:
                raise  # of our own code on the node
            except self._ray.exceptions.RayError as error:
                self._lose(running.actor, error)
            else:
                running.heard = time.monotonic()
                self._take(batch, running.actor)

    def _take(self, batch: Batch, actor: _Actor) -> None:
        for step, seconds in batch.seconds.items():
            self._progress.add(step, seconds)
        self._progress.worker_peak_bytes = max(self._progress.worker_peak_bytes, batch.worker_peak_bytes)
        for result in batch.results:
            if self._book.settle(result.video_id):
                self._ends_in_a_row = 0
                nodes = self._progress.nodes
                nodes[actor.name] = nodes.get(actor.name, 0) + 1
                self._give(result)
        if batch.problem is not None:
            raise _named(batch.problem, actor.name)

    def _lose(self, actor: _Actor, error: Exception) -> None:
        """An actor is gone: take back what it had, and blame an item that has ended it."""
        if self._actors.get(actor.place) is not actor:
            return
        del self._actors[actor.place]
        for batches in [batches for batches, one in self._running.items() if one.actor is actor]:
            del self._running[batches]
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        with_node = actor.place.node_id not in alive
        what = "the node was lost" if with_node else f"its process ended ({_line(error)})"
        blamed = self._book.lose_actor(actor, with_node=with_node)
        self._say(f"{actor.name}: {what}; what it had in hand goes out again")
        for video_id in blamed:
            self._say(f"{video_id}: ends the process that computes it")
            problem = f"the process that computed it alone on {actor.name} ended: {_line(error)}"
            self._give(ItemResult(video_id=video_id, kind=OutcomeKind.FAILED, error=problem, used_model=True))
        self._kill(actor)
        self._looked = 0.0
        if not with_node:
            self._ends_in_a_row += 1
            if self._ends_in_a_row >= _ENDS_IN_A_ROW:
                raise WorkersLostError(
                    f"the processes on the nodes ended {self._ends_in_a_row} times, and nothing was computed"
                    f" meanwhile; the last one on {actor.name}: {_line(error)}; see Ray's logs on that host"
                )

    def _end_silent(self) -> None:
        limit, now = self._ray_options.silence_seconds, time.monotonic()
        for actor in list(self._actors.values()):
            # while one lease waits for the model, the other one of its actor may keep it busy
            heard = [running.heard for running in self._running.values() if running.actor is actor]
            if heard and now - max(heard) > limit:
                self._lose(actor, TimeoutError(f"no result for {limit:g} s"))


def _named(problem: ClipFarmError, node: str) -> ClipFarmError:
    problem.args = (f"node {node}: {problem}",)
    return problem


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
