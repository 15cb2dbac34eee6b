"""What a modality is: all that differs from one stage to another, besides its name and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.modalities.encoder import Encoder, Preparer
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract


@dataclass(frozen=True, kw_only=True)
class CanaryInput:
    """The fixed input that tells whether an encoder still makes the vectors that it made before.

    A tolerance is the most that a step's output may deviate from the baseline's: the L2 norm of the
    difference over that of the baseline.
    """

    file: str
    """Name of the raw object in `canary/inputs`. Its bytes never change; baselines belong to them."""
    decoded_tolerance: float
    prepared_tolerance: float


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality. Its raw objects' suffix stands with the stage's name, its settings in `Settings`."""

    stage: Stage
    embedding_description: str
    """What Dagster's UI says of the embeddings, Markdown; the first line is its summary;
    `{folder}` stands for where their objects lie."""
    raw_description: str
    """What Dagster's UI says of the raw objects."""

    preprocess_name: str
    preprocess_version: str
    """Raised by hand whenever the same bytes and settings would give another model input."""
    preprocess_params: Callable[[Settings], Mapping[str, Any]]
    """The settings of preparation that decide a vector."""
    pooling: Callable[[Settings], str]
    deciding_settings: Callable[[Contract], Mapping[str, Any]]
    """The inverse of these two: the stage's settings, by name, that give a contract's parameters and
    pooling."""
    load: Callable[[Contract, Settings, Checkpoint, Path, str], Encoder]
    """Loads the model of a contract from a checkpoint's folder onto a device."""
    dimension: Callable[[Checkpoint], int | None]
    """Numbers of a vector, by the checkpoint's configuration; None where that does not tell."""

    previewer: Callable[[Settings], Preparer]
    """Prepares an item so that its preview is right, without a model; what else it gives is of no use."""

    isolated: bool
    """Whether native code decodes foreign bytes, which belongs in a process of its own, however few."""
    worker_imports: tuple[str, ...]
    """Modules that preparation needs; its worker processes share them."""
    size_limits: tuple[str, ...] = ("max_object_bytes",)
    """Settings that limit the bytes of a raw object; the smallest counts."""
    canary: CanaryInput

    def contract(self, settings: Settings, checkpoint: Checkpoint) -> Contract:
        """The contract that the settings ask for, over a checkpoint."""
        return Contract(
            stage=self.stage,
            model_name=checkpoint.model_name,
            model_revision=checkpoint.revision,
            preprocess_name=self.preprocess_name,
            preprocess_version=self.preprocess_version,
            preprocess_params=self.preprocess_params(settings),
            pooling=self.pooling(settings),
            dtype=settings.stage(self.stage).dtype,
        )
