"""From a decoded frame to upright RGB pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.modalities.video.clip_file import check_pixels

if TYPE_CHECKING:
    import av
    import numpy as np


def rgb_converter(max_pixels: int | None) -> Callable[[av.VideoFrame], np.ndarray]:
    """A function from a decoded frame to upright RGB, in the size of the first frame that it was given.

    uint8 (height, width, 3). swscale's bilinear default, as PyAV's `to_ndarray(format="rgb24")`.

    Raises (the function):
        InvalidRawObjectError: the frame has more pixels than `max_pixels`.
    """
    from av.video.reformatter import Interpolation, VideoReformatter

    reformatter, miniatures = VideoReformatter(), VideoReformatter()
    upright_size: tuple[int, int] | None = None

    def convert(frame: av.VideoFrame) -> np.ndarray:
        nonlocal upright_size
        check_pixels(frame.width, frame.height, max_pixels)
        transpose, flips = _orientation(_display_matrix(frame, miniatures))
        if upright_size is None:
            upright_size = (frame.height, frame.width) if transpose else (frame.width, frame.height)
        width, height = reversed(upright_size) if transpose else upright_size
        rgb = reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR, threads=1
        ).to_ndarray()
        if transpose:
            rgb = rgb.transpose(1, 0, 2)
        return rgb[flips]

    return convert


def _display_matrix(frame: av.VideoFrame, miniatures: Any) -> Any:
    """The frame's display matrix as a buffer of nine int32, or None.

    Read from a copy of 2x2 pixels. PyAV's `side_data` and its frame refer to each other, so the picture of a
    frame that was asked for it lives until Python's next garbage collection. The decoder then takes other
    buffers for its later pictures, and a damaged one shows what its buffer held before.
    """
    from av.video.reformatter import Interpolation

    _tolerate_unknown_side_data()
    miniature = miniatures.reformat(frame, 2, 2, "gray", interpolation=Interpolation.POINT, threads=1)
    return miniature.side_data.get("DISPLAYMATRIX")


def _tolerate_unknown_side_data() -> None:
    """Let PyAV list side data of a type that FFmpeg knows and PyAV does not: stereo views, LCEVC."""
    from av.sidedata import sidedata

    known: Any = sidedata.Type
    if "_missing_" in vars(known):
        return

    def unknown(kind: Any, value: int) -> Any:
        member = object.__new__(kind)
        member._name_, member._value_ = f"UNKNOWN_{value}", value
        return member

    known._missing_ = classmethod(unknown)


def _orientation(matrix: Any) -> tuple[bool, tuple[slice, slice]]:
    """Whether rows and columns are to be swapped, then which axes (rows, columns) to be reversed.

    The display matrix is 3x3, row by row: it takes a pixel (x, y) to (m0 x + m3 y, m1 x + m4 y), in
    16.16 fixed point. The cases are those of ffmpeg's automatic rotation (`fftools/ffmpeg_filter.c`),
    which takes angles within one degree of a quarter turn as that turn.
    """
    import numpy as np

    keep, flip = slice(None), slice(None, None, -1)
    if matrix is None:
        return False, (keep, keep)
    m0, m1, _, m3, m4 = (int(m) for m in islice(np.frombuffer(matrix, np.int32), 5))
    x_scale, y_scale = math.hypot(m0, m3), math.hypot(m1, m4)
    if not x_scale or not y_scale:
        return False, (keep, keep)
    degrees = abs(math.degrees(math.atan2(m1 / y_scale, m0 / x_scale)))
    if abs(degrees - 90) < 1:
        return True, (flip if m1 < 0 else keep, flip if m3 < 0 else keep)
    if abs(degrees - 180) < 1 or degrees < 1:
        return False, (flip if m4 < 0 else keep, flip if m0 < 0 else keep)
    return False, (keep, keep)
