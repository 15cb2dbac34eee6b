"""What all stages have in common: a preparer, that any process can run, and an encoder with a model."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from clipfarm_dagster.vectors.contract import Contract

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
        """Vectors of a batch: float32 (items, dimension), of unit L2 norm.

        Raises:
            InvalidRawObjectError: the model cannot read an item, through the fault of its raw object.
        """

    def trace(self, raw: bytes, metadata: Mapping[str, str]) -> Trace:
        """One input after each step, as `preparer` and `encode` take it there."""

    def parameters(self) -> Iterator[torch.Tensor]:
        """The model's weights as loaded, in the order of its layers."""


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """On the CPU, each of torch's operators on one thread: while a model is loaded, and while it runs.

    How an operator is cut among threads moves the last digits of its sums, and a vector's bytes should not
    depend on a machine's cores. Whole items side by side use the cores better anyway.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        if device == "cpu":
            torch.set_num_threads(1)  # of this thread
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def inference(device: str) -> Iterator[None]:
    """How `encode` runs its model: without gradients, and on the CPU each operator on one thread."""
    import torch

    with one_thread(device), torch.inference_mode():
        yield


def to_device(inputs: np.ndarray[Any, Any], model: torch.nn.Module) -> torch.Tensor:
    """Inputs on a model's device, in its precision; to a GPU through pinned memory, without waiting."""
    import torch

    # copied, since torch aligns its memory and NumPy does not; the last digits of a sum can depend on that
    weight, tensor = next(model.parameters()), torch.from_numpy(inputs).clone()
    if weight.device.type != "cuda":
        return tensor.to(weight.device, weight.dtype)
    return tensor.pin_memory().to(weight.device, non_blocking=True).to(weight.dtype)
