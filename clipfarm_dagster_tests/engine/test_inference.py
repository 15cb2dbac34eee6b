"""How a batch size is found, and how threads share a model."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from clipfarm_dagster.engine.local.inference import LARGEST_BATCH, BatchSize, ModelThreads
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.errors import ModelUnavailableError
from clipfarm_dagster.modalities.encoder import Prepared
from clipfarm_dagster.vectors.npy import VectorProblem, l2_normalise


def found(seconds_of: Any, start: int = 8) -> int:
    """The size that is settled on where a batch of n takes `seconds_of(n)`."""
    size = BatchSize(start, grows=True)
    for _ in range(20):
        size.took(size.current, seconds_of(size.current))
    return size.current


def test_a_batch_grows_while_that_pays():
    # a fixed cost for each batch is spread over more items, up to what the device does side by side
    assert found(lambda n: 1.0 + 0.1 * max(n, 32) / 32) == 512
    assert found(lambda n: 0.1 + 0.1 * n) in (8, 16)
    assert found(lambda n: max(n, 64)) == 64


def test_a_batch_has_an_upper_bound():
    assert found(lambda n: 1.0) == LARGEST_BATCH


def test_a_size_that_was_set_stays():
    size = BatchSize(8, grows=False)
    size.took(8, 0.001)
    assert size.current == 8


def test_the_last_few_items_say_nothing_about_a_batch():
    size = BatchSize(8, grows=True)
    size.took(3, 100.0)
    size.took(8, 1.0)
    assert size.current == 16


def test_after_a_batch_that_did_not_fit_smaller_ones_are_kept_to():
    size = BatchSize(8, grows=True)
    size.took(8, 1.0)
    size.took(16, 1.5)
    size.did_not_fit(32)
    assert size.current == 16
    size.took(16, 0.001)
    assert size.current == 16
    for _ in range(9):
        size.did_not_fit(size.current)
    assert size.current == 1


@dataclass
class SmallDevice:
    """An encoder of plain numbers whose device holds some items at a time."""

    holds: int
    batch_size: int = 8
    finds_batch_size: bool = True
    device: str = "cpu"
    sizes: list[int] = field(default_factory=list)
    broken: bool = False

    def encode(self, batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
        self.sizes.append(len(batch))
        if self.broken:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        if len(batch) > self.holds:
            raise torch.OutOfMemoryError("out of memory")
        if any(item.inputs < 0 for item in batch):
            raise ValueError("negative")
        return np.array([[item.inputs] for item in batch], dtype=np.float32)


def run(device: SmallDevice, numbers: Sequence[float]) -> tuple[list[Any], ModelThreads]:
    model = ModelThreads(device, threads=1, progress=Progress(0))  # type: ignore[arg-type]
    inferred = model.submit([Prepared(number, None) for number in numbers]).result()
    model.close()
    return list(inferred.vectors), model


@pytest.mark.parametrize("holds", [1, 3, 8])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(holds: int):
    device = SmallDevice(holds)

    vectors, model = run(device, range(8))

    assert [int(vector[0]) for vector in vectors] == list(range(8))
    assert model.batch_size.current <= max(holds, 1) or holds == 8
    assert device.batch_size == model.batch_size.current


def test_an_item_on_which_the_model_fails_is_told_from_its_batch():
    vectors, model = run(SmallDevice(holds=8), [0, 1, -1, 3])

    assert [isinstance(vector, ValueError) for vector in vectors] == [False, False, True, False]
    assert model.batch_size.current == 8


class GivesVectors(SmallDevice):
    """Scales to unit length, as the encoders do."""

    def encode(self, batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
        return l2_normalise(np.array([[item.inputs, 1.0] for item in batch]))


def test_a_vector_that_is_not_finite_is_told_from_its_batch():
    vectors, _ = run(GivesVectors(holds=8), [0, 1, float("nan"), 3, float("inf")])

    assert [isinstance(vector, VectorProblem) for vector in vectors] == [False, False, True, False, True]
    assert np.isfinite([vectors[0], vectors[1], vectors[3]]).all()


def test_a_device_that_fails_costs_no_item_an_attempt():
    with pytest.raises(ModelUnavailableError, match="the device cpu fails: an illegal memory access"):
        run(SmallDevice(holds=8, broken=True), range(4))


def test_an_item_that_fits_nowhere_fails_alone():
    vectors, _ = run(SmallDevice(holds=0), [1, 2])

    assert all(isinstance(vector, torch.OutOfMemoryError) for vector in vectors)


class Activation:
    """What a forward pass keeps on the device."""


@dataclass
class KeepsActivations(SmallDevice):
    """Fails while the activations of a failed attempt still take its memory."""

    made: list[weakref.ref[Activation]] = field(default_factory=list)

    def encode(self, batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
        assert [kept() for kept in self.made] == [None] * len(self.made)
        activation = Activation()
        self.made.append(weakref.ref(activation))
        return super().encode(batch)


@pytest.mark.parametrize("numbers", [range(8), [0, 1, -1, 3]], ids=["out of memory", "another failure"])
def test_a_failed_attempt_holds_no_memory_while_its_halves_run(numbers: Sequence[int]):
    vectors, _ = run(KeepsActivations(holds=4), numbers)

    wrong = [vector for vector in vectors if isinstance(vector, Exception)]
    assert [str(error) for error in wrong] == ["negative"] * sum(number < 0 for number in numbers)


def test_each_thread_keeps_to_one_stream(monkeypatch: pytest.MonkeyPatch):
    made, entered = [], []

    def new_stream(device: str) -> int:
        made.append(device)
        return len(made)

    def enter(stream: int) -> contextlib.AbstractContextManager[None]:
        entered.append(stream)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    model = ModelThreads(SmallDevice(holds=8, device="cuda:0"), threads=1, progress=Progress(0))  # type: ignore[arg-type]
    for number in range(5):
        model.submit([Prepared(number, None)]).result()
    model.close()

    assert (made, entered) == (["cuda:0"], [1] * 5)
