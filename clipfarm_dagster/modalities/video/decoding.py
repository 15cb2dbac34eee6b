"""A decoder's frames, with what it says of damage on the way: by its flags, its errors and its log."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clipfarm_dagster.modalities.video.picture_tails import PictureTails

if TYPE_CHECKING:
    import av

_LISTENING = threading.Lock()
_listeners = 0


@dataclass
class Decoding:
    """One pass of a decoder over packets of its stream, as ffmpeg does it: a packet that the decoder rejects
    is passed over, and where the file cannot be read further, what the decoder still holds is taken.

    The state of a pass is for one thread; a decoder is passed over once, or flushed in between.
    """

    decoder: av.VideoCodecContext
    given: int = 0
    """Frames that the decoder has given so far."""
    damaged: set[int | None] = field(default_factory=set)
    """Timestamps of those in which it reports damage."""
    rejected: list[str] = field(default_factory=list)
    """Why packets were rejected, one entry a packet."""
    unreadable: str | None = None
    """Why the file could not be read further, where it could not."""
    reported: bool = False
    """Whether the decoder has reported anything so far."""
    ending_early: set[int] = field(default_factory=set)
    """Which of the frames given, counted from 1, end early (see `picture_tails`). The pixels that are missing
    there may then differ from what they are without looking for them."""
    known_to_end_early: frozenset[int] | None = None
    """What another pass found of these; then they are not looked for."""
    _tails: PictureTails = field(default_factory=PictureTails)
    _damaged: set[int] = field(default_factory=set)
    _damaged_now: bool = False

    def frames(self, packets: Iterable[av.Packet[av.VideoStream]]) -> Iterator[tuple[av.VideoFrame, bool]]:
        """Each frame with whether the decoder reports damage in it.

        Raises:
            MemoryError: memory ran out.
        """
        import av

        look = self.known_to_end_early is None and self.decoder.name == "hevc"
        tails = self._tails if look else None
        source = iter(packets)
        while True:
            try:
                packet = next(source, None)
            except MemoryError:
                raise
            except av.error.FFmpegError as error:
                packet, self.unreadable = None, str(error.strerror)
            for frame in self._decode(packet):
                self.given += 1
                if tails is not None and tails.is_missing(frame):
                    self.reported = True
                    self.ending_early.add(self.given)
                damaged = self._damaged_now or frame.pts in self._damaged or frame.is_corrupt
                damaged = damaged or self.ends_early()
                if damaged:
                    self.damaged.add(frame.pts)
                yield frame, damaged
                if tails is not None:
                    tails.let_go(frame)
            if packet is None:
                return

    def ends_early(self) -> bool:
        """Whether the last frame given ends early."""
        return self.given in (self.known_to_end_early or self.ending_early)

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> list[av.VideoFrame]:
        import av

        frames: list[av.VideoFrame] = []
        with av.logging.Capture() as messages:
            try:
                frames = self.decoder.decode(packet)
            except MemoryError:
                raise
            except av.error.FFmpegError as error:
                self.rejected.append(str(error.strerror))
        complains = any(level <= av.logging.ERROR for level, _, _ in messages)
        self._damaged_now = complains and (packet is None or packet.pts is None)
        if complains and packet is not None and packet.pts is not None:
            self._damaged.add(packet.pts)
        self.reported = self.reported or complains or any(frame.is_corrupt for frame in frames)
        return frames


@contextmanager
def decoder_log() -> Iterator[None]:
    """Have FFmpeg's errors captured, for the time of a block; PyAV drops them otherwise.

    PyAV's switches are global. Threads may be in such blocks at the same time; the last to leave one puts the
    switches back.
    """
    global _listeners, _before
    import av

    with _LISTENING:
        if not _listeners:
            _before = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_level(av.logging.ERROR)
            av.logging.set_skip_repeated(False)  # an error of one clip is no repetition of another's
        _listeners += 1
    try:
        with av.logging.Capture():  # what is not said while decoding, such as of the container
            yield
    finally:
        with _LISTENING:
            _listeners -= 1
            if not _listeners:
                av.logging.set_level(_before[0])
                av.logging.set_skip_repeated(_before[1])


_before: tuple[int | None, bool] = (None, True)
