"""What the three stages have in common: a preparer, that any process can run, and an encoder with a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clipfarm_dagster.embedding.checkpoints import Checkpoint, resolve_checkpoint
from clipfarm_dagster.embedding.contract import Contract
from clipfarm_dagster.errors import ModelUnavailableError
from clipfarm_dagster.settings import AudioSettings, Settings, VideoSettings
from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Prepared:
    """One item, ready for the model."""

    inputs: Any
    """What the stage's encoder takes: an array, or strings."""
    batch_key: Hashable
    """Only items with equal keys may share a forward pass: nothing is ever padded to a neighbour."""
    note: str | None = None
    """What a person should know of the input, such as that a video ended early."""
    preview: str | None = None
    """Markdown that shows a person what the model is given, where asked for."""


@dataclass(frozen=True)
class Trace:
    """One input after each step on its way to a vector."""

    decoded: np.ndarray[Any, Any]
    """What was read of the bytes: frames, samples at their own rate, or characters."""
    prepared: np.ndarray[Any, Any]
    """What the model is given: pixel values, samples, or token ids."""
    vector: np.ndarray[Any, Any]
    """float32 (dimension,), of unit L2 norm."""


class Preparer(Protocol):
    """Turns a raw object into model input. Picklable, without state: worker processes run it."""

    @property
    def isolated(self) -> bool:
        """Whether it decodes foreign bytes with native code, and so belongs in a process of its own."""

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        """Prepare one item.

        Raises:
            InvalidRawObjectError: the bytes cannot be decoded, or lack what the stage needs.
        """


class Encoder(Protocol):
    """A loaded model with its preparer and contract."""

    contract: Contract
    dimension: int
    batch_size: int
    finds_batch_size: bool
    """Whether `batch_size` is but where to start from."""
    device: str

    @property
    def preparer(self) -> Preparer:
        """The preparer whose output `encode` takes."""

    def encode(self, batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
        """Vectors of a batch: float32 (items, dimension), of unit L2 norm."""

    def trace(self, raw: bytes, metadata: Mapping[str, str]) -> Trace:
        """One input after each step, as `preparer` and `encode` take it there."""

    def parameters(self) -> Iterator[torch.Tensor]:
        """The model's weights as loaded, in the order of its layers."""


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
        record=settings.home / "state" / "model_revisions.json",
    )


def stage_contract(stage: Stage, settings: Settings) -> Contract:
    """The contract that the settings ask for. Loads no model; raises what `stage_checkpoint` raises."""
    chosen, checkpoint = settings.stage(stage), stage_checkpoint(stage, settings)
    if isinstance(chosen, VideoSettings):
        from clipfarm_dagster.embedding.video import video_contract

        return video_contract(chosen, checkpoint)
    if isinstance(chosen, AudioSettings):
        from clipfarm_dagster.embedding.audio import audio_contract

        return audio_contract(chosen, checkpoint)
    from clipfarm_dagster.embedding.text import text_contract

    return text_contract(chosen, checkpoint)


def load_encoder(stage: Stage, settings: Settings) -> Encoder:
    """Load a stage's model as the settings say, onto their device.

    Raises:
        SettingsError: the revision is a branch or tag, and CLIPFARM_FROZEN forbids those.
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
    chosen, device = settings.stage(checkpoint.stage), resolve_device(settings.device)
    if isinstance(chosen, VideoSettings):
        from clipfarm_dagster.embedding.video import VideoEncoder

        limits = {"max_pixels": settings.max_pixels, "max_frames": settings.max_frames}
        return VideoEncoder(chosen, checkpoint, folder, device, **limits)
    if isinstance(chosen, AudioSettings):
        from clipfarm_dagster.embedding.audio import AudioEncoder

        return AudioEncoder(chosen, checkpoint, folder, device)
    from clipfarm_dagster.embedding.text import TextEncoder

    return TextEncoder(chosen, checkpoint, folder, device)


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


@contextlib.contextmanager
def inference(device: str) -> Iterator[None]:
    """How `encode` runs its model: without gradients, and on the CPU each operator on one thread.

    How an operator is cut among threads moves the last digits of its sums, and a vector's bytes should not
    depend on a machine's cores. Whole items side by side use the cores better anyway.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        if device == "cpu":
            torch.set_num_threads(1)  # of this thread
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def to_device(inputs: np.ndarray[Any, Any], model: torch.nn.Module) -> torch.Tensor:
    """Inputs on a model's device, in its precision; to a GPU through pinned memory, without waiting."""
    import torch

    weight, tensor = next(model.parameters()), torch.from_numpy(inputs)
    if weight.device.type != "cuda":
        return tensor.to(weight.device, weight.dtype)
    return tensor.pin_memory().to(weight.device, non_blocking=True).to(weight.dtype)


def resolve_device(device: str) -> str:
    """`device` as torch names it; `auto` is the GPU where there is one, else the CPU."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
