"""The encoder of a generation, proved to be the one that the corpus knows: on this machine, and on nodes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipfarm_dagster.canary.check import Report, check_before_writing
from clipfarm_dagster.canary.environment import Environment, current_environment
from clipfarm_dagster.checkpoints.content_check import check_content
from clipfarm_dagster.engine.distributed.node import NodeModel
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder, stage_checkpoint
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore

_OF_THE_DRIVER = {"home", "state_url", "metadata_url", "allowed_hosts"}
"""Settings that are of no use to a node, or that hold a password."""


def checked_encoder(
    stage: Stage,
    settings: Settings,
    store: ObjectStore,
    *,
    load: Callable[[Stage, Settings], Encoder] = load_encoder,
    on_loaded: Callable[[Environment], None] = lambda environment: None,
    on_canary: Callable[[Report], None] | None = None,
) -> Encoder:
    """An encoder, its files compared with those that the corpus knows, its canary with the baseline.

    Args:
        on_loaded: is called with the environment before the canary is compared.
        on_canary: is called with the comparison, which is then made though this environment was compared
            before.

    Raises:
        ModelUnavailableError: it cannot be loaded, or has other files than the corpus knows it with.
        DriftError: it no longer makes the vectors that it made before.
    """
    check_content(stage_checkpoint(stage, settings), store, settings.keys)
    encoder = load(stage, settings)
    environment = current_environment(encoder.device)
    on_loaded(environment)
    report = check_before_writing(
        encoder, environment, store, settings.keys, settings.home_files, again=on_canary is not None
    )
    if on_canary is not None and report is not None:
        on_canary(report)
    return encoder


def node_model(
    stage: Stage, settings: Settings, store_url: str, *, compare: bool = False
) -> Callable[[], NodeModel]:
    """What loads a generation's model on a node; can be pickled, and holds no secret.

    Args:
        compare: whether the canary is compared though the node's environment was compared before.
    """
    told = settings.model_dump(mode="json", exclude=_OF_THE_DRIVER)
    return functools.partial(_load_on_node, stage, told, store_url, compare)


def own_model(stage: Stage, settings: Settings, store: ObjectStore) -> NodeModel:
    """The same for this machine as a run's only node, the canary compared."""
    return _as_node(stage, settings, store, compare=True)


def _load_on_node(stage: Stage, told: Mapping[str, Any], store_url: str, compare: bool) -> NodeModel:
    chosen = dict(told[stage])
    # where the model's files lie is the node's own matter
    if path := os.environ.get(f"CLIPFARM_{stage.upper()}_MODEL_PATH"):
        chosen["model_path"] = path
    home = Path(str(told["ray_node_home"])).expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    own = {"device": device} if (device := os.environ.get("CLIPFARM_DEVICE")) else {}
    settings = Settings.model_validate({**told, stage: chosen, "home": home, **own})
    return _as_node(stage, settings, ObjectStore.open(store_url), compare=compare)


def _as_node(stage: Stage, settings: Settings, store: ObjectStore, *, compare: bool) -> NodeModel:
    environments: list[Environment] = []
    reports: list[Report] = []
    encoder = checked_encoder(
        stage,
        settings,
        store,
        on_loaded=environments.append,
        on_canary=reports.append if compare else None,
    )
    canary = {str(step.step): step.deviation for report in reports for step in report.steps}
    return NodeModel(encoder, environments[0].id, environments[0].to_json(), canary if reports else None)
