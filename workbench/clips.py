"""Small clips of many kinds, encoded for real, and the same clip every time."""

from __future__ import annotations

import io
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np

RATE = 30
ENCODER_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "threads": "1"},
    "libx265": {"preset": "ultrafast"},
    "libvpx-vp9": {"deadline": "good", "cpu-used": "8", "crf": "32", "b": "0", "threads": "1"},
    "libvpx": {"deadline": "good", "cpu-used": "8", "crf": "20", "threads": "1"},
    "libsvtav1": {"preset": "12"},
}
"""Options that make an encoder quick."""

FIXED_PARAMETERS = {
    "libx264": ("x264-params", "asm=0"),
    "libx265": ("x265-params", "log-level=none:pools=none:frame-threads=1"),
    "libsvtav1": ("svtav1-params", "lp=1"),
}
"""The encoder's own parameters that make it give the same file every time; x264's assembly does not for
pictures as small as these."""


@dataclass(frozen=True)
class ClipSpec:
    """How to encode a clip; `encode` makes it."""

    codec: str = "libx264"
    container: str = "mp4"
    frames: int = 90
    gop: int = 30
    options: tuple[tuple[str, str], ...] = ()
    muxer_options: tuple[tuple[str, str], ...] = ()
    width: int = 64
    height: int = 48
    pixel_format: str = "yuv420p"
    variable_rate: bool = False
    first_pts: int = 0
    """In frames; below zero the mp4 muxer writes an edit list that hides the frames before zero."""
    streams: int = 1
    """Video streams; the second is a shorter clip with other content."""
    matrix: tuple[int, ...] | None = None
    """a, b, c, d of the display matrix, each -1, 0 or 1."""
    elst: tuple[int, int] | None = None
    """Frames that the edit list is to cut at the beginning and at the end."""
    keep: float = 1.0
    """Share of the file that is left, as after a broken upload."""
    flipped_byte: float | None = None
    """Where in the file a byte is inverted, as a share of its length."""

    def __str__(self) -> str:
        changed = (f"{k}={v}" for k, v in vars(self).items() if v != getattr(ClipSpec(), k))
        return " ".join(changed).replace("'", "") or "plain"


def picture(index: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """A textured scene that moves a few pixels per frame: uint8 RGB (height, width, 3)."""
    rng = np.random.default_rng(seed)
    scene = rng.integers(0, 256, (height // 4 + 40, width // 4 + 40, 3), dtype=np.uint8)
    scene = scene.repeat(4, axis=0).repeat(4, axis=1)
    top, left = (2 * index) % 97, (3 * index) % 131
    rgb = scene[top : top + height, left : left + width].copy()
    rgb[index % height, :, index % 3] = 255  # no two neighbours alike
    return rgb


@contextmanager
def _scheduling_kept() -> Iterator[None]:
    """Undo what SVT-AV1 does to the thread that calls it: where it may, it gives it real-time priority, in
    which three spinning OpenMP threads stop two cores for ever."""
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before:
            os.sched_setscheduler(0, before, parameters)


@_scheduling_kept()
def encode(spec: ClipSpec) -> bytes:
    """The clip's file."""
    file = io.BytesIO()
    container_options = dict(spec.muxer_options)
    with av.open(file, "w", format=spec.container, options=container_options) as container:
        streams = []
        for number in range(spec.streams):
            stream = container.add_stream(spec.codec, rate=RATE)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = spec.width >> number, spec.height >> number
            stream.pix_fmt = spec.pixel_format
            stream.gop_size = spec.gop
            stream.codec_context.thread_count = 1
            stream.options = dict(_options(spec))
            if spec.matrix:
                a, b, c, d = (m * 65536 for m in spec.matrix)
                stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
            streams.append(stream)
        for number, stream in enumerate(streams):
            for index in range(spec.frames >> number):
                rgb = picture(index, stream.width, stream.height, seed=number)
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                frame.pts = spec.first_pts + (index + index * index // 7 if spec.variable_rate else index)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    data = file.getvalue()
    if spec.elst:
        data = _cut_by_edit_list(data, *spec.elst)
    if spec.flipped_byte is not None:
        at = int(len(data) * spec.flipped_byte)
        data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
    return data[: int(len(data) * spec.keep)]


def _options(spec: ClipSpec) -> dict[str, str]:
    options = {**ENCODER_OPTIONS.get(spec.codec, {}), **dict(spec.options)}
    name, fixed = FIXED_PARAMETERS.get(spec.codec, ("", ""))
    if name:
        options[name] = f"{fixed}:{options[name]}" if name in options else fixed
    return options


def _cut_by_edit_list(data: bytes, head: int, tail: int) -> bytes:
    """Change the first edit (ISO/IEC 14496-12, 8.6.6) so that it hides frames at both ends."""
    at = data.index(b"elst") + 4
    version, entries = data[at], struct.unpack_from(">I", data, at + 4)[0]
    assert (version, entries) == (0, 1), "one edit of version 0 is what the muxer writes"
    duration, media_time = struct.unpack_from(">Ii", data, at + 8)
    movie_scale = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    media_scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    duration -= (head + tail) * movie_scale // RATE
    media_time += head * media_scale // RATE
    return data[: at + 8] + struct.pack(">Ii", duration, media_time) + data[at + 16 :]


def concatenated_sizes() -> bytes:
    """An MPEG transport stream whose pictures change from 64x48 to 96x80 after 20 frames."""
    small = ClipSpec(container="mpegts", frames=20, gop=10)
    return encode(small) + encode(replace(small, width=96, height=80, first_pts=20))


FRAGMENTED = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)
HEADER_FIRST = (("moov_size", "12000"),)
"""Room for the header before the data, so that a truncated file still opens."""
B_PYRAMID = (("bf", "4"), ("b_strategy", "0"), ("b-pyramid", "normal"))
OPEN_GOP = (("bf", "3"), ("b_strategy", "0"), ("x264-params", "open-gop=1"))


def _every_kind() -> Iterator[ClipSpec]:
    gops = (1, 2, 5, 12, 30, 100, 300)
    b_frames: tuple[tuple[tuple[str, str], ...], ...] = (
        (("bf", "0"),),
        (("bf", "2"), ("b_strategy", "0"), ("b-pyramid", "none")),
        B_PYRAMID,
        OPEN_GOP,
    )
    for gop, options in itertools.product(gops, b_frames):
        yield ClipSpec(gop=gop, options=options, frames=320 if gop == 300 else 120)
    x265 = (
        "bframes=0",
        "bframes=4:open-gop=0",
        "bframes=4:open-gop=1",
        "bframes=8:rc-lookahead=20:open-gop=1",
    )
    for gop, params in itertools.product(gops, x265):
        frames = 320 if gop == 300 else 100
        yield ClipSpec("libx265", gop=gop, options=(("x265-params", params),), frames=frames)
    yield ClipSpec("libx265", gop=6, options=(("x265-params", "bframes=4:temporal-layers=1"),), frames=100)
    yield ClipSpec("libx265", gop=6, options=(("x265-params", "bframes=4:open-gop=0:radl=2"),), frames=100)
    for gop, lag, container in itertools.product(gops, ("0", "16"), ("webm", "mp4")):
        options = (("lag-in-frames", lag), ("auto-alt-ref", "1"))
        yield ClipSpec("libvpx-vp9", container, gop=gop, options=options, frames=150 if gop == 300 else 60)
    for gop, refresh, container in itertools.product(gops, ("1", "2"), ("mp4", "matroska")):
        options = (("svtav1-params", f"irefresh-type={refresh}"),)
        yield ClipSpec("libsvtav1", container, gop=gop, options=options, frames=310 if gop == 300 else 60)


def _every_trait() -> Iterator[ClipSpec]:
    bases = (
        ClipSpec(gop=5, options=B_PYRAMID),
        ClipSpec(gop=40, options=B_PYRAMID),
        ClipSpec("libx265", gop=5, frames=80),
        ClipSpec("libvpx-vp9", gop=4, frames=80),
        ClipSpec("libsvtav1", gop=4, frames=80),
    )
    for base in bases:
        deep = "yuv420p" if base.codec == "libvpx-vp9" else "yuv420p10le"
        yield replace(base, pixel_format=deep, width=66)
        yield replace(base, variable_rate=True)
        yield replace(base, first_pts=40)
        yield replace(base, first_pts=-7)
        yield replace(base, first_pts=-30)
        yield replace(base, container="matroska")
        yield replace(base, container="mp4", muxer_options=FRAGMENTED)
        yield replace(base, streams=2)
        yield replace(base, matrix=(0, 1, -1, 0))
        yield replace(base, frames=11)
        yield replace(base, frames=1)
        yield replace(base, muxer_options=HEADER_FIRST, keep=0.6)
        yield replace(base, muxer_options=HEADER_FIRST, keep=0.99)
        yield replace(base, container="matroska", keep=0.5)
        if base.codec != "libsvtav1":
            yield replace(base, width=63, height=49, pixel_format="yuv444p")
    for base in bases[:2]:
        yield replace(base, elst=(10, 0))
        yield replace(base, elst=(0, 20))
        yield replace(base, elst=(33, 21))
        yield replace(base, options=(*B_PYRAMID, ("x264-params", "annexb=1")), container="mpegts")
        yield replace(base, options=(*B_PYRAMID, ("x264-params", "interlaced=1")), height=64)
        yield replace(base, options=(*B_PYRAMID, ("x264-params", "intra-refresh=1")), frames=60)
        yield replace(base, pixel_format="yuvj420p")
        yield replace(base, pixel_format="gray")
        yield replace(base, pixel_format="yuv422p10le")
    yield ClipSpec("libvpx-vp9", "webm", gop=4, pixel_format="yuva420p", options=(("auto-alt-ref", "0"),))
    for codec, container in (
        ("libvpx", "webm"),
        ("mpeg4", "mp4"),
        ("mpeg4", "avi"),
        ("mpeg2video", "mpeg"),
        ("mpeg2video", "mpegts"),
        ("libx264", "flv"),
        ("libx264", "avi"),
        ("libx265", "mpegts"),
    ):
        yield ClipSpec(codec, container, gop=6, frames=60)
    yield ClipSpec("mpeg4", "mp4", gop=6, options=(("bf", "2"),))
    yield ClipSpec("mjpeg", "mov", pixel_format="yuvj420p", frames=40)
    yield ClipSpec("prores_ks", "mov", pixel_format="yuv422p10le", frames=40)
    yield ClipSpec("ffv1", "matroska", gop=5, frames=40)


def _drawn(how_many: int, seed: int) -> Iterator[ClipSpec]:
    """Kinds and traits mixed at random."""
    rng = np.random.default_rng(seed)
    kinds = list(_every_kind())

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    for _ in range(how_many):
        base: ClipSpec = kinds[rng.integers(len(kinds))]
        changes: dict[str, Any] = {
            "frames": int(rng.integers(17, 130)),
            "gop": int(rng.integers(1, 60)),
            "variable_rate": chance(0.3),
            "first_pts": int(rng.integers(-20, 30)) if chance(0.5) else 0,
            "streams": 2 if chance(0.2) else 1,
            "keep": float(rng.uniform(0.3, 1)) if chance(0.2) else 1.0,
        }
        if base.container == "mp4":
            changes["muxer_options"] = FRAGMENTED if chance(0.2) else HEADER_FIRST
        yield replace(base, **changes)


CLIPS = (*_every_kind(), *_every_trait(), *_drawn(60, seed=4))
