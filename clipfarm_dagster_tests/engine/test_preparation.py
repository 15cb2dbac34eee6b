"""Worker processes under limits: what a worker is given or does to itself is told from what an item is."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Mapping

import av
import pytest

from clipfarm_dagster.engine.local.preparation import Limits, Preparation, preparation
from clipfarm_dagster.errors import PreparationError, WorkersLostError
from clipfarm_dagster.modalities.encoder import Prepared
from clipfarm_dagster.modalities.video.encoder import VideoPreparer
from clipfarm_dagster.modalities.video.pixels import FrameTransform
from clipfarm_dagster_tests.support.media import SHARED
from workbench.clips import ClipSpec, encode

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


class TellsItsProcess:
    """A preparer that gives the number of the process that it runs in."""

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


def test_memory_does_not_grow_with_the_number_of_frames():
    """No two frames are ever held at full size."""
    few, many = (encode(ClipSpec(frames=n, gop=n, width=2048, height=2048)) for n in (3, 20))
    peaks = []
    for clip in (few, many):
        with preparation(VIDEO, Limits(seconds=120, memory_bytes=2**31), workers=1, previews=True) as prepare:
            made = prepare.result(prepare.submit(clip, {}))
            assert made.prepared.preview
            peaks.append(made.worker_peak_bytes)
    frame = 2048 * 2048 * 3
    assert peaks[1] - peaks[0] < 8 * frame


@pytest.mark.slow
def test_a_long_clip_in_8k_fits_the_limits_that_are_set_by_default():
    """Eight frames, again and again: sixteen of 32 would take 1.6 GB at full size."""
    path = SHARED / "media" / "telling" / "3f991815fb.mp4"
    if not path.exists():
        pytest.skip("the shared media are not here")
    looped = io.BytesIO()
    with av.open(looped, "w", format="mp4") as target:
        stream, end = None, 0
        for _ in range(4):
            with av.open(str(path)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                packets = [packet for packet in source.demux(video=0) if packet.size]
                after = end + sum(packet.duration or 0 for packet in packets)
                for packet in packets:
                    packet.pts, packet.dts = (packet.pts or 0) + end, (packet.dts or 0) + end
                    packet.stream = stream
                    target.mux(packet)
                end = after
    limits = Limits(seconds=300, memory_bytes=2**31)
    with preparation(VIDEO, limits, workers=1) as prepare:
        made = prepare.result(prepare.submit(looped.getvalue(), {})).prepared
    assert made.inputs.shape == (16, 32, 32, 3)
    assert made.note is None
