"""Computes items on a Ray cluster: lends them to an actor on each node, and gives on what comes back.

Actors compute, this process writes. An outcome counts once, whichever actor gives it. What is lost with an
actor goes out again (see `leases`).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clipfarm_dagster.engine.distributed.actors import (
    LEASES_PER_ACTOR,
    Actor,
    Actors,
    Place,
    RayOptions,
    line,
    named,
)
from clipfarm_dagster.engine.distributed.cluster import connected
from clipfarm_dagster.engine.distributed.leases import Lease, LeaseBook
from clipfarm_dagster.engine.distributed.node import Batch, NodeModel, NodeReport, NodeSetup
from clipfarm_dagster.engine.node_kind import NodeWork, node_kind
from clipfarm_dagster.engine.options import EngineOptions
from clipfarm_dagster.engine.outcomes import ItemResult, OutcomeKind
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.errors import ClipFarmError, ClusterError, WorkersLostError
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract

_WAIT_SECONDS = 1.0
_NODES_SECONDS = 60.0
"""Without any node that could compute, a run waits so long for one."""

_ENDS_IN_A_ROW = 20
"""If processes end so often and not one item is computed in between, it is not the items."""


@dataclass(eq=False)
class _Running:
    lease: Lease
    actor: Actor
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
        self._running: dict[Any, _Running] = {}
        """By the generator of references to its batches."""
        self._ends_in_a_row = 0
        self._worked: dict[Place, tuple[Actor, int, float]] = {}
        """The last actor of each place, items that went through the models of all, and their seconds."""

    def begin(
        self, contract: Contract, store: ObjectStore, keys: Keys, options: EngineOptions, progress: Progress
    ) -> None:
        """Connect, and wait until a node is ready.

        Raises:
            ClusterError: the cluster cannot be used, or no node has come that computes.
            ModelUnavailableError, DriftError: no node has the model, or it moved on all of them.
        """
        self._progress = progress
        options = replace(options, workers=self._workers)
        self._ray = self._stack.enter_context(connected(self._ray_options.address))

        def setup(cores: int) -> NodeSetup:
            return NodeSetup(contract, self._load, store.url, keys, options, cores)

        self._actors = Actors(self._ray, self._ray_options, setup, say=self._say)
        self._stack.callback(self._actors.end)
        until = time.monotonic() + _NODES_SECONDS
        while not self._actors.ready():
            self._actors.look_for_nodes()
            self._become_ready(timeout=_WAIT_SECONDS)
            if self._actors.by_place:
                until = time.monotonic() + _NODES_SECONDS  # a model may take long to load
            elif self._actors.left_out:
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
        self._begun = time.monotonic()
        self._book = LeaseBook(by_id, size=self._ray_options.lease_size, per_actor=LEASES_PER_ACTOR)
        self._give = give
        for actor in self._actors.ready():
            self._book.add_actor(actor)
        empty_since: float | None = None
        while self._book.open:
            self._actors.look_for_nodes()
            for actor in self._become_ready(timeout=0 if self._running else _WAIT_SECONDS):
                self._book.add_actor(actor)
            for lease in self._book.next_leases():
                self._lend(lease, by_id)
            self._take_batches(min(_WAIT_SECONDS, every_seconds))
            self._end_silent()
            meanwhile()
            if self._actors.by_place:
                empty_since = None
            else:
                empty_since = empty_since or time.monotonic()
                if time.monotonic() - empty_since > _NODES_SECONDS:
                    raise self._why_left_out()
        for actor in self._actors.ready():
            self._add_work(actor)
        self._tell_work()

    def end(self) -> None:
        """End the actors and leave the cluster."""
        self._running.clear()
        self._stack.close()

    # nodes come and go

    def _become_ready(self, *, timeout: float) -> list[Actor]:
        ready = self._actors.become_ready(timeout=timeout)
        for actor in ready:
            assert actor.report is not None
            self._on_node(actor.report)
            self._say(f"{actor.name} computes")
        if ready:
            self._count_widths()
        return ready

    def _count_widths(self) -> None:
        """Say how many processes or threads work on each step, on all nodes that compute."""
        widths = Counter[str]()
        for actor in self._actors.ready():
            assert actor.report is not None
            widths.update(actor.report.widths)
        self._progress.widths = dict(widths)

    def _add_work(self, actor: Actor) -> None:
        """Add how long an actor has computed, up to now, to that of its place."""
        seconds = time.monotonic() - max(actor.ready, self._begun)
        computed, before = self._worked.get(actor.place, (actor, 0, 0.0))[1:]
        self._worked[actor.place] = actor, computed + actor.computed, before + seconds

    def _tell_work(self) -> None:
        nodes: dict[str, list[tuple[Actor, int, float]]] = {}
        for place, one in self._worked.items():
            nodes.setdefault(place.node_id, []).append(one)
        for processes in nodes.values():
            actor = processes[0][0]
            assert actor.report is not None
            environment = json.loads(actor.report.environment)
            kind = node_kind(environment, actor.place.cores, len(processes))
            computed = sum(computed for _, computed, _ in processes)
            seconds = sum(seconds for _, _, seconds in processes) / len(processes)
            self._progress.work[actor.name] = NodeWork(kind, computed, seconds)

    def _why_left_out(self) -> ClipFarmError:
        problems = list(self._actors.left_out.values())
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
        assert isinstance(actor, Actor)
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

    def _take(self, batch: Batch, actor: Actor) -> None:
        for step, seconds in batch.seconds.items():
            self._progress.add(step, seconds)
        self._progress.worker_peak_bytes = max(self._progress.worker_peak_bytes, batch.worker_peak_bytes)
        for result in batch.results:
            if self._book.settle(result.video_id):
                self._ends_in_a_row = 0
                nodes = self._progress.nodes
                nodes[actor.name] = nodes.get(actor.name, 0) + 1
                actor.computed += result.used_model
                self._give(result)
        if batch.problem is not None:
            raise named(batch.problem, actor.name)

    def _lose(self, actor: Actor, error: Exception) -> None:
        """An actor is gone: take back what it had, and blame an item that has ended it."""
        if self._actors.by_place.get(actor.place) is not actor:
            return
        for batches in [batches for batches, one in self._running.items() if one.actor is actor]:
            del self._running[batches]
        with_node = self._actors.lose(actor)
        self._add_work(actor)
        what = "the node was lost" if with_node else f"its process ended ({line(error)})"
        blamed = self._book.lose_actor(actor, with_node=with_node)
        self._say(f"{actor.name}: {what}; what it had in hand goes out again")
        for video_id in blamed:
            self._say(f"{video_id}: ends the process that computes it")
            problem = f"the process that computed it alone on {actor.name} ended: {line(error)}"
            self._give(ItemResult(video_id=video_id, kind=OutcomeKind.FAILED, error=problem, used_model=True))
        if not with_node:
            self._ends_in_a_row += 1
            if self._ends_in_a_row >= _ENDS_IN_A_ROW:
                raise WorkersLostError(
                    f"the processes on the nodes ended {self._ends_in_a_row} times, and nothing was computed"
                    f" meanwhile; the last one on {actor.name}: {line(error)}; see Ray's logs on that host"
                )

    def _end_silent(self) -> None:
        limit, now = self._ray_options.silence_seconds, time.monotonic()
        for actor in list(self._actors.by_place.values()):
            # while one lease waits for the model, the other one of its actor may keep it busy
            heard = [running.heard for running in self._running.values() if running.actor is actor]
            if heard and now - max(heard) > limit:
                self._lose(actor, TimeoutError(f"no result for {limit:g} s"))
