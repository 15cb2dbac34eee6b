"""What the nodes of a test's cluster load: real models, that break where a raw object asks for it."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipfarm_dagster.canary.environment import current_environment
from clipfarm_dagster.engine.distributed.node import NodeModel
from clipfarm_dagster.modalities.encoder import Encoder, Prepared, Preparer
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.faults import FaultyPreparer

KILLS_THE_MODEL = "clipfarm test: kills the model's process"
HANGS_THE_MODEL = "clipfarm test: hangs the model"


@dataclass(frozen=True)
class MarkingPreparer:
    """Prepares, and marks what breaks the model."""

    inner: Preparer

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        prepared = self.inner(raw, metadata, preview=preview)
        for mark in (KILLS_THE_MODEL, HANGS_THE_MODEL):
            if mark.encode() in raw:
                return replace(prepared, note=mark)
        return prepared


def breaking(encoder: Encoder) -> Encoder:
    """The encoder, whose process ends or hangs with what was marked."""
    encode = encoder.encode

    def broken(batch: Sequence[Prepared]) -> Any:
        marks = {prepared.note for prepared in batch}
        if KILLS_THE_MODEL in marks:
            os.kill(os.getpid(), signal.SIGSEGV)  # Ray's handler of it lets other threads go on for a moment
        while marks & {KILLS_THE_MODEL, HANGS_THE_MODEL}:
            time.sleep(1)
        return encode(batch)

    encoder.preparer = MarkingPreparer(FaultyPreparer(encoder.preparer))  # type: ignore[misc]
    encoder.encode = broken  # type: ignore[method-assign]
    return encoder


def node_loader(stage: Stage, model: Path, home: Path, **stage_settings: Any) -> Callable[[], NodeModel]:
    """What loads a breaking encoder on a node."""
    return functools.partial(_load, stage, str(model), str(home), stage_settings)


def _load(stage: Stage, model: str, home: str, stage_settings: Mapping[str, Any]) -> NodeModel:
    settings = load_settings(home=home, device="cpu", **{stage: {"model": model, **stage_settings}})
    encoder = load_encoder(stage, settings)
    environment = current_environment(encoder.device)
    return NodeModel(breaking(encoder), environment.id, environment.to_json())
