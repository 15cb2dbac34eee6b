"""Worker processes under limits: what a worker is given or does to itself is told from what an item is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from clipfarm_dagster.embedding.encoder import Prepared
from clipfarm_dagster.embedding.preparation import Limits, Preparation, preparation
from clipfarm_dagster.embedding.video import FrameTransform, VideoPreparer
from clipfarm_dagster.errors import PreparationError, WorkersLostError
from clipfarm_dagster_tests.embedding.clips import ClipSpec, encode

VIDEO = VideoPreparer(
    FrameTransform({"shortest_edge": 32}, resample=2, crop_to=(32, 32)),
    frames=16,
    unknown_count="first",
    max_pixels=2**26,
    max_frames=2**20,
)


def test_a_clip_whose_frames_are_too_large_for_the_memory_is_not_called_broken():
    huge = encode(ClipSpec(frames=3, gop=3, width=4096, height=4096))
    small = encode(ClipSpec(frames=20))

    with preparation(VIDEO, Limits(seconds=60, memory_bytes=2**28), workers=1) as prepare:
        futures = [prepare.submit(clip, {}) for clip in (small, huge, small)]
        first, last = prepare.result(futures[0]), prepare.result(futures[2])
        with pytest.raises(PreparationError, match="more memory than CLIPFARM_MAX_PREPARE_BYTES=268435456"):
            prepare.result(futures[1])

    assert (first.prepared.inputs == last.prepared.inputs).all()
    assert first.prepared.note is None
    with preparation(VIDEO, Limits(seconds=60, memory_bytes=2**31), workers=1) as prepare:
        assert prepare.result(prepare.submit(huge, {})).prepared.inputs.shape == (16, 32, 32, 3)


@dataclass(frozen=True)
class TellsItsProcess:
    """A preparer that gives the number of the process that it runs in."""

    isolated: bool = True

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        return Prepared(os.getpid(), None)


def prepare_again_and_again(prepare: Preparation) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        prepare.result(prepare.submit(b"", {}))


def test_workers_that_are_lost_while_they_have_nothing_to_do_are_no_fault_of_an_item():
    with preparation(TellsItsProcess(), Limits(seconds=60, memory_bytes=2**30), workers=1) as prepare:
        process = prepare.result(prepare.submit(b"", {})).prepared.inputs
        os.kill(process, signal.SIGKILL)
        with pytest.raises(WorkersLostError, match="CLIPFARM_WORKERS"):
            prepare_again_and_again(prepare)
