"""HEVC pictures whose data end before their last block.

A damaged slice may seem to end early. FFmpeg's HEVC decoder then says nothing, and the rest of the picture is
whatever its buffer held: pictures decoded before, so that a sparse decode would show something else than a
full one. Buffers begin as zeros, and here their last pixels are made zeros again before the decoder gets them
back. YUV has no picture content of that colour, so a frame that ends in it was not decoded to its end.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

_SAMPLES = 4
_MOST_FRAMES, _MOST_BYTES = 8, 2**27
"""How long frames are kept back: until the decoder has most likely done with them as references."""


class PictureTails:
    """Watches the frames of one decoder."""

    def __init__(self) -> None:
        self._kept: deque[av.VideoFrame] = deque()

    def is_missing(self, frame: av.VideoFrame) -> bool:
        """Whether the frame's last pixels were never decoded. Always False for formats that are not YUV."""
        tails = _tails(frame)
        return bool(tails) and not any(map(any, tails))

    def let_go(self, frame: av.VideoFrame) -> None:
        """Take over a frame that nobody else needs any more."""
        kept = self._kept
        kept.append(frame)
        most = min(_MOST_FRAMES, _MOST_BYTES // max(1, frame.width * frame.height))
        while len(kept) > most:
            _clear_tail(kept.popleft())


def _clear_tail(frame: av.VideoFrame) -> None:
    frame.make_writable()  # a copy, if the decoder still refers to the picture: it is never changed itself
    for tail in _tails(frame):
        tail[:] = bytes(len(tail))


def _tails(frame: av.VideoFrame) -> list[memoryview]:
    """The last samples of the last row of each of the planes; nothing where zeros may be content."""
    if not frame.format.name.startswith("yuv"):
        return []
    tails = []
    planes: Any = frame.planes
    for plane in planes[:3]:
        size = plane.width * (1 if frame.format.components[0].bits == 8 else 2)
        end = (plane.height - 1) * plane.line_size + size
        tails.append(memoryview(plane)[max(end - _SAMPLES, end - size) : end])
    return tails
