"""What the nodes of a cluster, or this machine, would be for the runs of a corpus."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from clipfarm_dagster.canary.check import canary_input
from clipfarm_dagster.corpus.checked_encoder import node_model, own_model
from clipfarm_dagster.corpus.corpus import Corpus
from clipfarm_dagster.engine.distributed.actors import RayOptions
from clipfarm_dagster.engine.distributed.cluster import connected
from clipfarm_dagster.engine.distributed.facts import NodeFacts
from clipfarm_dagster.engine.distributed.inspection import (
    Inspected,
    ProbeInput,
    inspect_cluster,
    inspect_here,
)
from clipfarm_dagster.engine.distributed.node import NodeModel, NodeSetup
from clipfarm_dagster.engine.options import EngineOptions, cores
from clipfarm_dagster.errors import ClipFarmError, DriftError, ModelDiffersError, ModelUnavailableError
from clipfarm_dagster.stages import Stage

PROBE_SECONDS = 3.0


class Verdict(StrEnum):
    """What a node's model of a stage is."""

    SAME = "same"
    """It has the run's contract, and the canary agrees."""
    OTHER = "other"
    """Its contract or its files are others."""
    NO_MODEL = "no model"
    DRIFTS = "drifts"
    """It has the contract, and makes other vectors."""
    UNUSABLE = "unusable"
    """It cannot compute for another reason."""


@dataclass(frozen=True)
class NodeStage:
    """A node in one stage."""

    verdict: Verdict
    problem: str | None
    """Why a run leaves it out."""
    canary: Mapping[str, float | None] | None
    """How far each step lies from the baseline, None for one of another shape or type; empty where there was
    no baseline before."""
    items_per_second: float | None
    """Of the canary's input, on all of the node's processes; nothing is fetched from the store."""


@dataclass
class Node:
    """One node in all stages."""

    name: str
    facts: NodeFacts | None = None
    """None if it has said nothing of itself."""
    device: str | None = None
    stages: dict[Stage, NodeStage] = field(default_factory=dict)

    @property
    def left_out(self) -> bool:
        """Whether a run of any stage would leave it out."""
        return any(stage.problem is not None for stage in self.stages.values())


def inspect_nodes(corpus: Corpus, stages: Collection[Stage], say: Callable[[str], None]) -> list[Node]:
    """Every node that runs would have, asked and tried with the contracts that serve.

    As a run does, the first one stores the canary's baseline where there is none.

    Args:
        say: is called with a line about what is done.

    Raises:
        ClusterError: the cluster cannot be used, or has no node that could compute.
        ModelUnavailableError: this machine cannot tell the contract that the nodes should have.
        LedgerError, StoreError: a ledger or the store cannot be read.
    """
    nodes: dict[str, Node] = {}
    with _inspector(corpus, say) as inspect:
        for stage in stages:
            for address, inspected in _by_address(inspect(stage)).items():
                node = nodes.setdefault(address, Node(address))
                _add(node, stage, inspected)
    return list(nodes.values())


@contextlib.contextmanager
def _inspector(corpus: Corpus, say: Callable[[str], None]) -> Iterator[Callable[[Stage], list[Inspected]]]:
    settings = corpus.settings
    with contextlib.ExitStack() as stack:
        options = replace(RayOptions.from_settings(settings), actors=0)
        ray = stack.enter_context(connected(options.address)) if settings.engine == "ray" else None

        def inspect(stage: Stage) -> list[Inspected]:
            with corpus.stage(stage) as opened:
                contract, chosen = opened.contract, opened.model_settings
            engine_options = EngineOptions.from_settings(settings)
            probe = ProbeInput(*canary_input(stage), PROBE_SECONDS)
            say(f"{stage}: load the model, compare the canary, compute for some seconds")

            def setup(load: Callable[[], NodeModel], workers: int, with_cores: int) -> NodeSetup:
                own = replace(engine_options, workers=workers)
                return NodeSetup(contract, load, corpus.store.url, corpus.keys, own, with_cores)

            if ray is None:
                load = partial(own_model, stage, chosen, corpus.store)
                return [inspect_here(setup(load, engine_options.workers, cores()), probe)]
            on_node = node_model(stage, chosen, corpus.store.url, compare=True)
            return inspect_cluster(ray, options, partial(setup, on_node, settings.workers), probe, say)

        yield inspect


def _by_address(inspected: list[Inspected]) -> dict[str, list[Inspected]]:
    """The processes of each node."""
    found: dict[str, list[Inspected]] = {}
    for one in inspected:
        found.setdefault(one.address or socket.gethostname(), []).append(one)
    return found


def _add(node: Node, stage: Stage, inspected: list[Inspected]) -> None:
    problem = next((one.problem for one in inspected if one.problem is not None), None)
    reports = [one.report for one in inspected if one.report is not None]
    rates = [one.items_per_second for one in inspected if one.items_per_second is not None]
    canary = next((report.canary for report in reports if report.canary is not None), None)
    node.stages[stage] = NodeStage(
        _verdict(problem), None if problem is None else str(problem), canary, sum(rates) if rates else None
    )
    for report in reports:
        node.facts = node.facts or report.facts
        if report.host not in node.name:
            node.name = f"{node.name} ({report.host})"
        if report.environment:
            node.device = f"{len(inspected)} × " if len(inspected) > 1 else ""
            node.device += str(json.loads(report.environment)["device"])


def _verdict(problem: ClipFarmError | None) -> Verdict:
    if problem is None:
        return Verdict.SAME
    if isinstance(problem, DriftError):
        return Verdict.DRIFTS
    if isinstance(problem, ModelDiffersError):
        return Verdict.OTHER
    return Verdict.NO_MODEL if isinstance(problem, ModelUnavailableError) else Verdict.UNUSABLE
