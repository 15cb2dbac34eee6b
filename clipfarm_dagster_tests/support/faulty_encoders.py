"""Real models, here and on nodes, that break where a raw object asks for it, and log what they do."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from clipfarm_dagster.engine.distributed.node import NodeModel
from clipfarm_dagster.modalities.encoder import Encoder, Prepared
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.faults import FaultyPreparer


class FaultyEncoders(EncodersResource):
    """Encoders whose preparers break, and whose models write a byte to `log` for each item."""

    log: str

    def load(self, stage: Stage, settings: Settings) -> Encoder:
        """The encoder of a stage, keeping its log."""
        return _faulty(super().load(stage, settings), self.log)

    def on_nodes(self, stage: Stage, settings: Settings, store_url: str) -> Callable[[], NodeModel]:
        """The same on a node; the log lies where all of them can write it."""
        return functools.partial(_load_on_node, super().on_nodes(stage, settings, store_url), self.log)


def _load_on_node(load: Callable[[], NodeModel], log: str) -> NodeModel:
    model = load()
    return replace(model, encoder=_faulty(model.encoder, log))


def _faulty(given: Encoder, log: str) -> Encoder:
    encoder: Any = given
    if not isinstance(encoder.preparer, FaultyPreparer):
        encoder.preparer, encode = FaultyPreparer(encoder.preparer), encoder.encode
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def logged(batch: Sequence[Prepared]) -> Any:
            vectors = encode(batch)
            if threading.current_thread().name.startswith("model"):  # and not for the canary
                os.write(file, b"." * len(batch))
            return vectors

        encoder.encode = logged
    return given
