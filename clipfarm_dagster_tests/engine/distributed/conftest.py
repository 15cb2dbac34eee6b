"""A real cluster, and stages that are computed on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.demo.checkpoints import minilm_folder
from clipfarm_dagster.engine.distributed.actors import RayOptions
from clipfarm_dagster.engine.distributed.ray_computing import RayComputing
from clipfarm_dagster.engine.engine import Progress, embed_items
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.bench import KEYS, Bench, bench
from clipfarm_dagster_tests.support.nodes import node_loader
from workbench.ray_cluster import Cluster


class DistributedBench(Bench):
    """A stage whose items two actors compute."""

    cluster: Cluster
    model: Path
    home: Path
    lines: list[str]

    def run_on_nodes(self, video_ids: list[str], *, load: Any = None, **ray_options: Any) -> Progress:
        self.lines = []
        computing = RayComputing(
            replace(
                RayOptions(self.cluster.address, actors=2, actor_cores=1, lease_size=8),
                **ray_options,
            ),
            load or node_loader(self.stage, self.model, self.home),
            workers=2,
            say=self.lines.append,
        )
        return embed_items(
            self.items(video_ids),
            contract=self.encoder.contract,
            computing=computing,
            store=self.store,
            keys=KEYS,
            ledger=self.ledger,
            options=self.options,
            on_recorded=self.remember,
        )


def _bench(stage: Stage, model: Path, tmp_path: Path, cluster: Cluster) -> Iterator[DistributedBench]:
    home = tmp_path / "home"
    encoder = load_encoder(stage, load_settings(home=home, device="cpu", **{stage: {"model": str(model)}}))
    with bench(encoder, ObjectStore.open(str(tmp_path / "store")), tmp_path) as made:
        distributed = DistributedBench(made.encoder, made.store, made.ledger)
        distributed.cluster, distributed.model, distributed.home = cluster, model, home
        yield distributed


@pytest.fixture
def text(on_cluster: Cluster, tmp_path: Path) -> Iterator[DistributedBench]:
    """An empty text stage over a folder."""
    yield from _bench(Stage.TEXT, minilm_folder(), tmp_path, on_cluster)
