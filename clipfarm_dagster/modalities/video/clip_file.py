"""A clip's bytes as an opened container, and the one video stream that counts in it."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, cast

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.video.sample_entries import encrypted_tracks

if TYPE_CHECKING:
    import av

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg"
"""FFmpeg's names of the demuxers that may open a clip: none of them opens a second file by itself, as
playlists (HLS, DASH, concat) do."""

_SMALL_BYTES, _BYTES_A_BYTE = 2**26, 64
"""What reading a file's header may need: an index takes some 24 bytes for each frame, which takes at least
one byte in the file; and the decoders that look at the first packets take something besides."""


@dataclass(frozen=True)
class ClipFile:
    """An open container with its video stream; the stream's decoder runs on one thread, and has not begun."""

    container: av.container.InputContainer
    stream: av.VideoStream

    @property
    def decoder(self) -> av.VideoCodecContext:
        """The stream's decoder."""
        return self.stream.codec_context

    def declared_frames(self) -> int | None:
        """Frames that the container says it will present; None where it does not say."""
        if not self.stream.frames:
            return None
        if self.container.format.name.startswith("mov"):
            # The mov demuxer's index has been cut by the edit list; the declared count has not.
            return sum(1 for entry in self.stream.index_entries if not entry.is_discard)
        return int(self.stream.frames)

    def packets(self) -> Iterator[av.Packet[av.VideoStream]]:
        """The stream's packets in file order, without the empty one that stands for the end.

        Raises:
            InvalidRawObjectError: a packet is encrypted.
            av.error.FFmpegError: the file cannot be read further.
        """
        for packet in self.container.demux(self.stream):
            if packet.size:
                if packet.has_sidedata("encryption_info"):
                    raise _encrypted()
                yield packet


@contextmanager
def open_clip(data: bytes, max_pixels: int | None) -> Iterator[ClipFile]:
    """Open a file, and find the stream that ffmpeg itself would choose; a cover picture is never chosen.

    No other file and no network is ever opened.

    Raises:
        InvalidRawObjectError: the bytes cannot be opened, hold no video stream that can be decoded, hold an
            encrypted one, or its pictures are over the limit.
        MemoryError: memory ran out.
    """
    import av

    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    if max_pixels is not None:
        options["max_pixels"] = str(max_pixels)
    try:
        container = av.open(
            io.BytesIO(data), "r", options=options, io_open=_refuse, metadata_errors="replace"
        )
    except MemoryError as error:
        if not _can_allocate(_SMALL_BYTES + _BYTES_A_BYTE * len(data)):
            raise
        cause = "its header asks for more memory than a file of this size can need"
        raise InvalidRawObjectError(f"cannot open the file ({len(data)} bytes): {cause}") from error
    except av.error.FFmpegError as error:
        no_demuxer = error.errno == errno.EINVAL
        cause = f"its format is not one of {CONTAINERS}" if no_demuxer else str(error.strerror)
        raise InvalidRawObjectError(f"cannot open the file ({len(data)} bytes): {cause}") from error
    with container:
        stream = _chosen(container)
        if stream is None:
            raise InvalidRawObjectError("the file has no video stream")
        if "enc_key_id" in stream.metadata or (
            container.format.name.startswith("mov") and stream.id in encrypted_tracks(data)
        ):
            raise _encrypted()
        decoder = stream.codec_context
        if decoder is None:
            raise InvalidRawObjectError("there is no decoder for the video stream's codec")
        check_pixels(decoder.width, decoder.height, max_pixels)
        decoder.thread_count = 1
        yield ClipFile(container, stream)


def check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    """Refuse pictures over a limit.

    Raises:
        InvalidRawObjectError: they are.
    """
    if max_pixels is not None and width * height > max_pixels:
        raise InvalidRawObjectError(f"frames of {width}x{height} are over the limit of {max_pixels} pixels")


def _chosen(container: av.container.InputContainer) -> av.VideoStream | None:
    """The choice of `av_find_best_stream`; where that is a cover picture, the largest of the others."""
    best = cast("av.VideoStream | None", container.streams.best("video"))
    if best is None or not _is_cover(best):
        return best
    others = [stream for stream in container.streams.video if not _is_cover(stream)]
    return max(others, key=_pixels, default=None)


def _is_cover(stream: av.VideoStream) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _pixels(stream: av.VideoStream) -> int:
    decoder = stream.codec_context
    return 0 if decoder is None else decoder.width * decoder.height


def _encrypted() -> InvalidRawObjectError:
    return InvalidRawObjectError("the video is encrypted; only clear samples can be decoded")


def _can_allocate(size: int) -> bool:
    """Whether this process may take so much memory: FFmpeg says the same of too little as of too much."""
    try:
        bytearray(size)
    except MemoryError:
        return False
    return True


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"a clip refers to another file: {url!r}")
