"""Nodes that are asked what they would be for a run, and cannot say it."""

from __future__ import annotations

import os
from pathlib import Path

from clipfarm_dagster.demo.checkpoints import minilm_folder
from clipfarm_dagster.engine.distributed.actors import RayOptions
from clipfarm_dagster.engine.distributed.cluster import connected
from clipfarm_dagster.engine.distributed.inspection import ProbeInput, inspect_cluster
from clipfarm_dagster.engine.distributed.node import NodeModel, NodeSetup
from clipfarm_dagster.errors import WorkersLostError
from clipfarm_dagster.modalities.registry import stage_contract
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.bench import KEYS, OPTIONS
from workbench.ray_cluster import Cluster


def ends_its_process() -> NodeModel:
    os._exit(1)


def test_a_node_whose_process_ends_is_named_and_ends_nothing_else(
    on_cluster: Cluster, tmp_path: Path
) -> None:
    settings = load_settings(home=tmp_path, device="cpu", text={"model": str(minilm_folder())})
    contract, said = stage_contract(Stage.TEXT, settings), list[str]()

    def setup(cores: int) -> NodeSetup:
        return NodeSetup(contract, ends_its_process, str(tmp_path), KEYS, OPTIONS, cores)

    with connected(on_cluster.address) as ray:
        options = RayOptions(on_cluster.address)
        [found] = inspect_cluster(ray, options, setup, ProbeInput(b"", {}, 1), said.append)

    assert isinstance(found.problem, WorkersLostError)
    assert "ended 3 times before it was ready" in str(found.problem)
    assert (found.report, found.items_per_second) == (None, None)
    assert len(said) == 4
