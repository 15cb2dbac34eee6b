"""`clipfarm nodes`: what each node of a cluster would be for a run, before there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import typer

from clipfarm_dagster.cli.output import (
    Json,
    Stages,
    console,
    error_console,
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.errors import ClusterError
from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    from clipfarm_dagster.corpus.nodes import Node, NodeStage

_WAYS_OUT = {
    "other": "give that host the same model, settings and version of ClipFarm as this one",
    "no model": "download the model there, or set CLIPFARM_{stage}_MODEL_PATH there before `ray start`",
    "drifts": "give that host the versions of the libraries that the others have",
    "unusable": "mend that",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm nodes", "clipfarm nodes --stage video --json"))(nodes)


def nodes(stage: Stages = None, as_json: Json = False) -> None:
    """Ask each node of the cluster for its model, compare its canary, and see how fast it is.

    The cluster is the one at RAY_ADDRESS; with CLIPFARM_ENGINE=local, this machine is the one node.

    Exit code 2 means that a run would leave a node out.
    """
    from clipfarm_dagster.corpus.nodes import inspect_nodes
    from clipfarm_dagster.engine.distributed.facts import NodeFacts

    corpus = open_corpus()
    progress = error_console()

    def say(line: str) -> None:
        if not as_json:
            progress.print(f"clipfarm: {line}", soft_wrap=True)

    asked = stage or list(Stage)
    found = inspect_nodes(corpus, asked, say)
    address = os.environ.get("RAY_ADDRESS") if corpus.settings.engine == "ray" else None
    if as_json:
        print_json({"cluster": address, "nodes": [_as_json(node) for node in found]})
    else:
        own = NodeFacts.of_this_process().versions
        rows = []
        for node in found:
            cells = [_about(node, own), *(_shown(node.stages.get(name)) for name in asked)]
            rows += [list(line) for line in zip_longest(*cells, fillvalue="")]
        title = "This machine" if address is None else f"Nodes of the Ray cluster at {address}"
        console().print(table(title, ["node", *map(str, asked)], rows))
    if left_out := [node for node in found if node.left_out]:
        raise ClusterError(_left_out(left_out, len(found)) if address else _unusable(left_out[0]))


def _unusable(node: Node) -> str:
    problems = [f"{name}: {stage.problem}" for name, stage in node.stages.items() if stage.problem]
    return f"runs could not compute on this machine. {'. '.join(problems)}"


def _left_out(left_out: Sequence[Node], nodes: int) -> str:
    reasons = [
        f"{name}: {stage.problem}; {_WAYS_OUT[stage.verdict].format(stage=name.upper())}"
        for node in left_out
        for name, stage in node.stages.items()
        if stage.problem is not None
    ]
    return (
        f"{len(left_out)} of {nodes} nodes would be left out of runs. {'. '.join(reasons)}."
        " `ray stop` on a host takes it out of the cluster"
    )


def _as_json(node: Node) -> dict[str, Any]:
    facts = node.facts
    return {
        "node": node.name,
        "device": node.device,
        "free_memory_bytes": None if facts is None else facts.free_memory_bytes,
        "versions": None if facts is None else dict(facts.versions),
        "left_out": node.left_out,
        "stages": {
            str(name): {
                "model": str(stage.verdict),
                "canary": None if stage.canary is None else dict(stage.canary),
                "items_per_second": stage.items_per_second,
                "problem": stage.problem,
            }
            for name, stage in node.stages.items()
        },
    }


def _about(node: Node, own: Mapping[str, str]) -> list[str]:
    """Lines about a node; `own` are this machine's versions."""
    lines = [node.name, (node.device or "no model was loaded").partition(",")[0]]
    if node.facts is not None:
        if node.facts.free_memory_bytes is not None:
            lines.append(f"{node.facts.free_memory_bytes / 1e9:.1f} GB of memory free")
        theirs = node.facts.versions
        lines += [
            f"{name} {theirs.get(name, 'absent')}, here {own.get(name, 'absent')}"
            for name in sorted({*theirs, *own})
            if theirs.get(name) != own.get(name)
        ]
    return lines


def _shown(stage: NodeStage | None) -> list[str]:
    if stage is None:  # the node came meanwhile, or went
        return ["not asked"]
    lines = [f"{stage.verdict} contract" if stage.verdict in ("same", "other") else str(stage.verdict)]
    if stage.canary is not None:
        vector = stage.canary.get("hardware")
        lines.append("new canary" if not stage.canary else f"canary {f'{vector:.0e}' if vector else 'same'}")
    if stage.items_per_second is not None:
        lines.append(f"{stage.items_per_second:.3g} a second")
    return lines
