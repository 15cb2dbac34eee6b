"""Damaged clips: what counts as damage, and that the frames depend on the clip's bytes alone."""

from __future__ import annotations

import gc
import io
import multiprocessing
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.pool import Pool
from pathlib import Path

import av
import numpy as np
import pytest

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.video.frames import sample_frames, wanted_indices
from clipfarm_dagster_tests.support.damage import (
    SPECS,
    Seen,
    clean_clips,
    in_full,
    planned,
    variants,
)
from clipfarm_dagster_tests.support.media import SHARED
from workbench.clips import B_PYRAMID, ClipSpec, encode

FAST_VARIANTS, ALL_VARIANTS = 200, 2000
SECONDS = 120
"""Guards against a decoder that hangs."""


@contextmanager
def processes(*, fresh: bool) -> Iterator[Pool]:
    """A process that works on and on, or for each call a new one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["clipfarm_dagster_tests.support.damage", "av.logging", "av.video.reformatter"]
    )
    # some fresh ones stand ready: the pool replaces those that are used up only now and then
    with context.Pool(3, maxtasksperchild=1) if fresh else context.Pool(1) as pool:
        yield pool


def packets_of(data: bytes) -> list[tuple[int, int]]:
    """Position and size in the file of each packet of video."""
    with av.open(io.BytesIO(data), "r") as container:
        return [(p.pos or 0, p.size) for p in container.demux(video=0) if p.size]


def with_rejected(data: bytes, number: int) -> bytes:
    """The clip with one packet that any decoder rejects: the length of its first unit is absurd."""
    position, _ = packets_of(data)[number]
    return data[:position] + b"\x7f\xff\xff\xff" + data[position + 4 :]


# --- what is passed over ------------------------------------------------------------------------------


def test_decoding_goes_on_after_a_packet_that_is_rejected() -> None:
    """One of 50 frames is lost, and none but that one is missing."""
    clean = encode(ClipSpec(frames=50, gop=10, options=(("bf", "0"),)))
    whole = sample_frames(clean)
    lost = wanted_indices(50, 16)[9]
    assert lost % 10, "not a keyframe"

    sampled = sample_frames(with_rejected(clean, lost))

    assert (sampled.total, sampled.decoded) == (50, 49)
    assert sampled.indices == tuple(whole.indices[8 if i == lost else n] for n, i in enumerate(whole.indices))
    assert sampled.note is not None
    assert sampled.note.startswith("49 of 50 frames were decoded, 1 packet rejected: ")
    np.testing.assert_array_equal(sampled.frames[:9], whole.frames[:9])
    np.testing.assert_array_equal(sampled.frames[9], whole.frames[8])
    np.testing.assert_array_equal(sampled.frames[12:], whole.frames[12:])  # from the next keyframe on


def test_where_the_first_packet_is_rejected_a_later_frame_stands_in() -> None:
    clean = encode(ClipSpec("libx265", frames=40, gop=1))
    sampled = sample_frames(with_rejected(clean, 0))
    assert sampled.indices[:3] == (2, 2, 5)
    assert sampled.decoded == 39


def test_frames_that_a_decoder_still_holds_are_taken_where_the_file_ends() -> None:
    """As ffmpeg does, which drains its decoder after a read error too."""
    spec = ClipSpec(container="matroska", gop=250, options=B_PYRAMID)
    cut = encode(spec)[:-3000]
    sampled = sample_frames(cut, unknown_count="count")
    assert sampled.decoded == len(packets_of(cut))


# --- what is noted, and refused -----------------------------------------------------------------------

INTRA = ClipSpec(gop=1, width=128, height=96, options=(("x264-params", "cabac=0"),))
"""Frames of their own each, in a code where damage shows."""


def damaged_slices(data: bytes, numbers: list[int]) -> bytes:
    """The clip with the middle of some packets overwritten."""
    damaged = bytearray(data)
    for position, size in (packets_of(data)[number] for number in numbers):
        middle = range(position + size // 3, position + size * 2 // 3)
        damaged[middle.start : middle.stop] = random.Random(position).randbytes(len(middle))
    return bytes(damaged)


def test_damaged_frames_are_counted() -> None:
    clean = encode(replace(INTRA, frames=60))
    hit = list(wanted_indices(60, 16)[4:7])
    sampled = sample_frames(damaged_slices(clean, hit))
    assert sampled.damaged == 3
    assert sampled.note == "3 of 16 frames damaged"
    whole = sample_frames(clean)
    differ = [n for n in range(16) if (sampled.frames[n] != whole.frames[n]).any()]
    assert differ == [4, 5, 6]


def test_a_clip_of_damaged_frames_alone_is_refused() -> None:
    clean = encode(replace(INTRA, frames=20))
    with pytest.raises(InvalidRawObjectError, match="the decoder calls all 16 frames damaged"):
        sample_frames(damaged_slices(clean, list(range(20))))


def _ending_early() -> bytes:
    """An HEVC clip with a reference picture whose slice data end early, as its decoder takes them."""
    spec = ClipSpec("libx265", gop=250, options=(("x265-params", "bframes=4"),), width=144, height=96)
    clean = encode(spec)
    rng = random.Random(5)
    for number in range(5, 40):
        position, size = packets_of(clean)[number]
        for _ in range(20):
            damaged = bytearray(clean)
            damaged[position + rng.randrange(30, size)] ^= 1 << rng.randrange(8)
            found = planned(bytes(damaged))
            if found.note is not None and "damaged" in found.note:
                return bytes(damaged)
    raise AssertionError("no slice ended early")


def test_an_hevc_picture_that_ends_early_is_damaged_though_its_decoder_says_nothing() -> None:
    data = _ending_early()
    with av.open(io.BytesIO(data), "r") as container, av.logging.Capture() as messages:
        av.logging.set_level(av.logging.ERROR)
        frames = list(container.decode(video=0))
        av.logging.set_level(None)
    assert len(frames) == 90
    assert not messages
    assert not any(frame.is_corrupt for frame in frames)
    assert planned(data) == in_full(data)


# --- the same bytes, the same frames ------------------------------------------------------------------


def _damaged_clips() -> list[bytes]:
    clips = [
        damaged_slices(encode(spec), [7, 8, 20, 33])
        for spec in SPECS
        if spec.codec in ("libx264", "libx265") and spec.container == "mp4"
    ]
    telling = SHARED / "media" / "telling"
    names = ("fuzz_07_06_flip4.mp4", "fuzz_11_18_byte16.mp4", "fuzz_12_02_flip1.mp4")
    return clips + [(telling / name).read_bytes() for name in names if (telling / name).exists()]


def _check_same_frames(clips: list[bytes], times: int) -> None:
    """Each clip by turns, in a process of its own, and in one that has decoded all the others before."""
    first: dict[int, Seen] = {}
    with processes(fresh=True) as fresh, processes(fresh=False) as used:
        for turn in range(times * len(clips)):
            number = turn % len(clips)
            answers = [pool.apply_async(planned, (clips[number],)) for pool in (fresh, used)]
            for answer in answers:
                found = answer.get(SECONDS)
                assert found == first.setdefault(number, found)


def test_the_same_bytes_give_the_same_frames_in_fresh_and_used_processes() -> None:
    _check_same_frames(_damaged_clips(), 3)


@pytest.mark.slow
def test_the_same_bytes_give_the_same_frames_in_200_fresh_and_used_processes() -> None:
    _check_same_frames(_damaged_clips()[-3:], 200)


def test_frames_do_not_depend_on_when_python_collects_its_garbage() -> None:
    """Pictures that wait for it keep their buffers from the decoder, which then takes others."""
    path = SHARED / "media" / "telling" / "fuzz_07_06_flip4.mp4"
    if not path.exists():
        pytest.skip("the shared media are not here")
    data, before, found = path.read_bytes(), gc.get_threshold(), set()
    try:
        for threshold in (0, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150):
            gc.collect()
            gc.set_threshold(threshold, 1000, 1000)
            found.add(in_full(data).digest)
    finally:
        gc.set_threshold(*before)
    assert len(found) == 1


# --- fuzz ---------------------------------------------------------------------------------------------


def _fuzz(how_many: int, shared: Path | None, report: Callable[[str], None] = print) -> None:
    clips = clean_clips(shared)
    wrong: list[str] = []
    with processes(fresh=True) as fresh, processes(fresh=False) as used:
        for variant in variants(clips, how_many):
            data = variant.make(clips[variant.clip])
            answers = [used.apply_async(planned, (data,)), fresh.apply_async(in_full, (data,))]
            sparse, full = (answer.get(SECONDS) for answer in answers)
            if sparse.digest != full.digest:
                wrong.append(f"{variant}: {sparse} is not {full}")
                report(wrong[-1])
    assert not wrong


def test_planned_frames_of_damaged_clips_are_those_of_a_full_decode_in_a_fresh_process() -> None:
    _fuzz(FAST_VARIANTS, None)


@pytest.mark.slow
def test_planned_frames_of_two_thousand_damaged_clips() -> None:
    _fuzz(ALL_VARIANTS, SHARED)
