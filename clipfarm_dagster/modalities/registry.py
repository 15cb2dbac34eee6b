"""All modalities, and the way from settings to a contract, or to an encoder with its model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint, resolve_checkpoint
from clipfarm_dagster.errors import ModelUnavailableError, SettingsError
from clipfarm_dagster.modalities.audio.modality import AUDIO
from clipfarm_dagster.modalities.encoder import Encoder, one_thread
from clipfarm_dagster.modalities.modality import Modality
from clipfarm_dagster.modalities.text.modality import TEXT
from clipfarm_dagster.modalities.video.modality import VIDEO
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract

MODALITIES: dict[Stage, Modality] = {modality.stage: modality for modality in (VIDEO, AUDIO, TEXT)}
"""The modality of every stage."""


def stage_checkpoint(stage: Stage, settings: Settings) -> Checkpoint:
    """The checkpoint that the settings ask for, its revision exact. Loads no model.

    Raises:
        SettingsError: the revision is a branch or tag, and CLIPFARM_FROZEN forbids those.
        ModelUnavailableError: the checkpoint cannot be found, or its branch not be looked up.
    """
    chosen = settings.stage(stage)
    return resolve_checkpoint(
        stage,
        chosen.model,
        chosen.revision,
        frozen=settings.frozen,
        record=settings.home_files.model_revisions,
    )


def stage_contract(stage: Stage, settings: Settings) -> Contract:
    """The contract that the settings ask for. Loads no model; raises what `stage_checkpoint` raises."""
    return MODALITIES[stage].contract(settings, stage_checkpoint(stage, settings))


def load_encoder(stage: Stage, settings: Settings) -> Encoder:
    """Load a stage's model as the settings say, onto their device.

    Raises:
        SettingsError: the revision is a branch or tag, and CLIPFARM_FROZEN forbids those; or the device
            cannot be used here.
        ModelUnavailableError: it is neither cached nor reachable, or its weights do not fit.
    """
    from safetensors import SafetensorError

    checkpoint = stage_checkpoint(stage, settings)
    folder = checkpoint.download()
    try:
        with quiet_transformers():
            return _load(settings, checkpoint, folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelUnavailableError(
            f"the {stage} model {checkpoint.model_name} at {checkpoint.revision} cannot be loaded from"
            f" {folder} ({type(error).__name__}: {error}); it must hold a config.json and .safetensors"
            " weights"
        ) from error


def _load(settings: Settings, checkpoint: Checkpoint, folder: Path) -> Encoder:
    import torch

    # oneDNN keeps machine code for each length of sound that it meets, 1,024 pieces of up to a megabyte where
    # nothing is said; it reads this when it makes the first
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # cuDNN convolves float32 in TF32 by default, which moves vectors by a thousand times float32's rounding
    torch.backends.cudnn.allow_tf32 = False
    modality, device = MODALITIES[checkpoint.stage], resolve_device(settings.device)
    with one_thread(device):
        return modality.load(modality.contract(settings, checkpoint), settings, checkpoint, folder, device)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal; `check_weights` judges the weights itself."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def resolve_device(device: str) -> str:
    """`device` as torch names it; `auto` is the GPU where there is one, else the CPU.

    Raises:
        SettingsError: torch knows no such device, or cannot use it here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        cause = (str(error).strip().splitlines() or ["no message"])[0]
        raise SettingsError(
            f"the device {device!r} cannot be used here ({cause}); set CLIPFARM_DEVICE to `auto`, `cpu`, or"
            " a GPU that torch sees, such as `cuda` or `cuda:1`"
        ) from None
    return device
