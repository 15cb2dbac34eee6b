"""Sixteen upright RGB frames of a clip, from its bytes."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from clipfarm_dagster.embedding.bitstream import RESTARTS_ALONE, UnclearBitstreamError, packet_roles
from clipfarm_dagster.embedding.decode_plan import DecodePlan, plan_decode
from clipfarm_dagster.errors import InvalidRawObjectError

if TYPE_CHECKING:
    import av
    import numpy as np

UnknownCount = Literal["first", "count"]

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg"
"""FFmpeg's names of the demuxers that may open a clip: none of them opens a second file by itself, as
playlists (HLS, DASH, concat) do."""

LEAST_PLANNED_PIXELS = 10_000
"""Smaller pictures decode so fast that looking at their packets would cost more than a twentieth of it
(`make bench-frames`)."""


@dataclass(frozen=True)
class SampledFrames:
    """What `sample_frames` took from a clip."""

    frames: np.ndarray
    """uint8, RGB, shape (count, height, width, 3), upright."""
    indices: tuple[int, ...]
    """Presentation index of each of the frames; the last is repeated where there were too few."""
    decoded: int
    """How many frames the decoder gave to get them."""
    total: int | None
    """Frames in the stream, where known."""
    note: str | None
    """Set when the stream ended early: after how many frames, and why."""


def sample_frames(
    data: bytes,
    *,
    count: int = 16,
    unknown_count: UnknownCount = "first",
    max_pixels: int | None = None,
    max_frames: int | None = None,
) -> SampledFrames:
    """The frames of `sample_frames_sequential`, bit for bit, by decoding as few as possible.

    The demuxed packets tell from which restarts to decode, and which packets nobody depends on (see
    `plan_decode`). Where they leave a doubt, or the decoder then finds any fault, all are decoded in
    order; so are tiny pictures, with which nothing is to be gained. Damage inside packets that are
    skipped, with their headers intact, stays unseen.

    Arguments and errors are those of `sample_frames_sequential`; only `decoded` is smaller.
    """
    return _sample(data, count, unknown_count, max_pixels, max_frames, sparse=True)


def sample_frames_sequential(
    data: bytes,
    *,
    count: int = 16,
    unknown_count: UnknownCount = "first",
    max_pixels: int | None = None,
    max_frames: int | None = None,
) -> SampledFrames:
    """Decode a clip from its first packet on, and take `count` frames, uniform over the timeline.

    - **Stream**: the first video stream in file order; cover pictures are not video.
    - **Order**: packets go to the decoder in file order, with one thread; the k-th frame that it gives
      has presentation index k. Frames that an edit list hides are not given, and not counted.
    - **n**: the frames that the container declares, less those that its edit list leaves out.
    - **Taken**: the indices `linspace(0, n - 1, min(count, n))`, truncated, each once. If the container
      declares no count: the first `count` frames, or, with `unknown_count="count"`, n is the number of
      packets to be shown. If there are fewer than `count`, the last frame taken is repeated.
    - **Damage**: decoding ends at the first packet that cannot be read or that the decoder rejects; the
      frames that it gave before count, and `note` tells.
    - **Colour**: swscale to `rgb24` with its bilinear default, as PyAV's `to_ndarray(format="rgb24")`.
    - **Upright**: the display matrix' quarter turns and reflections are applied, as ffmpeg does; other
      angles are left alone.
    - **Size**: frames of another size than the first are scaled to it.

    Args:
        data: the whole file. No other file and no network is ever opened.
        count: how many frames.
        unknown_count: what to do where the container declares no frame count.
        max_pixels: most pixels that a frame may have.
        max_frames: most frames that a clip may have, where their number is known.

    Raises:
        InvalidRawObjectError: the bytes cannot be opened, hold no video stream, give no frame, or are
            over a limit.
    """
    return _sample(data, count, unknown_count, max_pixels, max_frames, sparse=False)


def _sample(
    data: bytes,
    count: int,
    unknown_count: UnknownCount,
    max_pixels: int | None,
    max_frames: int | None,
    *,
    sparse: bool,
) -> SampledFrames:
    with _open_video(data, max_pixels) as video:
        total = _declared_frames(video)
        if total is None and unknown_count == "first":
            first = video.container.demux(video.stream)
            return _decode_in_order(video, first, None, tuple(range(count)), count, max_pixels)
        packets = _read_packets(video)
        if total is None:
            total = sum(1 for packet in packets.read if not packet.is_discard)
        if total == 0:
            raise InvalidRawObjectError("the video stream is empty")
        if max_frames is not None and total > max_frames:
            raise InvalidRawObjectError(f"{total} frames are over the limit of {max_frames}")
        wanted = wanted_indices(total, count)
        plan = _plan(video, packets, total, wanted) if sparse else None
        if plan is None:
            return _decode_in_order(video, packets, total, wanted, count, max_pixels)
        taken = _decode_planned(video, packets, plan, max_pixels)
    if taken is not None:
        decoded = sum(1 for run in plan.runs for i in run if not packets.read[i].is_discard)
        return _padded(taken, plan.wanted, count, decoded=decoded, total=total, note=None)
    return _sample(data, count, unknown_count, max_pixels, max_frames, sparse=False)


@dataclass(frozen=True)
class _Video:
    container: av.container.InputContainer
    stream: av.VideoStream


@dataclass(frozen=True)
class _Packets:
    """All packets of a stream; iteration ends as demuxing did."""

    read: list[av.Packet[av.VideoStream]]
    error: av.error.FFmpegError | None

    def __iter__(self) -> Iterator[av.Packet[av.VideoStream] | None]:
        yield from self.read
        if self.error is not None:
            raise self.error
        yield None  # drains the decoder


def _read_packets(video: _Video) -> _Packets:
    import av

    read: list[av.Packet[av.VideoStream]] = []
    try:
        for packet in video.container.demux(video.stream):
            if packet.size:
                read.append(packet)
    except av.error.FFmpegError as error:
        return _Packets(read, error)
    return _Packets(read, None)


def _plan(video: _Video, packets: _Packets, total: int, wanted: tuple[int, ...]) -> DecodePlan | None:
    read, decoder = packets.read, video.stream.codec_context
    if packets.error is not None or total == len(wanted):
        return None
    if decoder.width * decoder.height < LEAST_PLANNED_PIXELS:
        return None
    if decoder.name in RESTARTS_ALONE and sum(1 for packet in read if packet.is_keyframe) < 2:
        return None
    if any(packet.is_corrupt for packet in read):
        return None
    try:
        roles = packet_roles(decoder.name, decoder.extradata or b"", [memoryview(packet) for packet in read])
    except UnclearBitstreamError:
        return None
    plan = plan_decode(
        [packet.pts for packet in read],
        [not packet.is_discard for packet in read],
        roles,
        total=total,
        wanted=wanted,
        reorder_depth=decoder.reorder_depth,
    )
    return None if plan is None or any(_changes_decoder(packet) for packet in read) else plan


def _changes_decoder(packet: av.Packet[av.VideoStream]) -> bool:
    return any(side.data_type in ("new_extradata", "param_change") for side in packet.iter_sidedata())


def wanted_indices(total: int, count: int) -> tuple[int, ...]:
    """Presentation indices to take of `total` frames: strictly increasing, at most `count`."""
    import numpy as np

    return tuple(int(i) for i in np.linspace(0, total - 1, min(count, total)))


@contextmanager
def _open_video(data: bytes, max_pixels: int | None) -> Iterator[_Video]:
    import av

    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    if max_pixels is not None:
        options["max_pixels"] = str(max_pixels)
    try:
        container = av.open(io.BytesIO(data), "r", options=options, io_open=_refuse)
    except MemoryError:  # FFmpeg's own is an FFmpegError too; it says nothing about the file
        raise
    except av.error.FFmpegError as error:
        cause = f"its format is not one of {CONTAINERS}" if error.errno == errno.EINVAL else error.strerror
        raise InvalidRawObjectError(f"cannot open the file ({len(data)} bytes): {cause}") from error
    with container:
        streams = (
            s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
        )
        stream = next(streams, None)
        if stream is None:
            raise InvalidRawObjectError("the file has no video stream")
        if stream.codec_context is None:
            raise InvalidRawObjectError("there is no decoder for the video stream's codec")
        _check_pixels(stream.codec_context.width, stream.codec_context.height, max_pixels)
        stream.codec_context.thread_count = 1
        yield _Video(container, stream)


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"a clip refers to another file: {url!r}")


def _declared_frames(video: _Video) -> int | None:
    """Frames that the container says it will present; None where it does not say."""
    if not video.stream.frames:
        return None
    if video.container.format.name.startswith("mov"):
        # The mov demuxer's index has been cut by the edit list; the declared count has not.
        return sum(1 for entry in video.stream.index_entries if not entry.is_discard)
    return int(video.stream.frames)


def _check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise InvalidRawObjectError(f"frames of {width}x{height} are over the limit of {max_pixels} pixels")


def _decode_in_order(
    video: _Video,
    packets: Iterable[av.Packet[av.VideoStream] | None],
    total: int | None,
    wanted: tuple[int, ...],
    count: int,
    max_pixels: int | None,
) -> SampledFrames:
    import av

    to_rgb = _rgb_converter(max_pixels)
    taken: list[np.ndarray] = []
    decoded = 0
    problem = None
    try:
        for frame in _frames(video, packets):
            if decoded == wanted[len(taken)]:
                taken.append(to_rgb(frame))
            decoded += 1
            if len(taken) == len(wanted):
                break
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        problem = error.strerror
    if not taken:
        raise InvalidRawObjectError(f"no frame can be decoded: {problem or 'the video stream is empty'}")
    note = None
    if len(taken) < len(wanted) and (total is not None or problem is not None):
        of = "" if total is None else f" of {total}"
        note = f"decoding stopped after {decoded}{of} frames: {problem or 'the stream ends there'}"
    return _padded(taken, wanted[: len(taken)], count, decoded=decoded, total=total, note=note)


def _frames(video: _Video, packets: Iterable[av.Packet[av.VideoStream] | None]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from video.stream.codec_context.decode(packet)


def _decode_planned(
    video: _Video, packets: _Packets, plan: DecodePlan, max_pixels: int | None
) -> list[np.ndarray] | None:
    """The wanted frames, or None if the decoder does not give exactly what the plan expects."""
    import av

    decoder = video.stream.codec_context
    decoder.options = {"err_detect": "explode"}
    to_rgb = _rgb_converter(max_pixels)
    wanted, taken, latest = set(plan.wanted_pts), [], None
    for run in plan.runs:
        decoder.flush_buffers()
        fed = [packets.read[i] for i in run]
        given = 0
        try:
            for frame in _frames(video, [*fed, None]):
                if frame.is_corrupt or frame.pts is None or (latest is not None and frame.pts <= latest):
                    return None
                given, latest = given + 1, frame.pts
                if frame.pts in wanted:
                    taken.append(to_rgb(frame))
        except MemoryError:
            raise
        except av.error.FFmpegError:
            return None
        if given != sum(1 for packet in fed if not packet.is_discard):
            return None
    return taken if len(taken) == len(wanted) else None


def _padded(
    taken: list[np.ndarray],
    indices: tuple[int, ...],
    count: int,
    *,
    decoded: int,
    total: int | None,
    note: str | None,
) -> SampledFrames:
    import numpy as np

    missing = count - len(taken)
    return SampledFrames(
        frames=np.stack(taken + taken[-1:] * missing),
        indices=indices + indices[-1:] * missing,
        decoded=decoded,
        total=total,
        note=note,
    )


def _rgb_converter(max_pixels: int | None) -> Callable[[av.VideoFrame], np.ndarray]:
    """A function from a decoded frame to upright RGB, in the size of the first frame that it was given."""
    from av.video.reformatter import Interpolation, VideoReformatter

    reformatter = VideoReformatter()
    upright_size: tuple[int, int] | None = None

    def convert(frame: av.VideoFrame) -> np.ndarray:
        nonlocal upright_size
        _check_pixels(frame.width, frame.height, max_pixels)
        transpose, flips = _orientation(frame)
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


def _orientation(frame: av.VideoFrame) -> tuple[bool, tuple[slice, slice]]:
    """Whether rows and columns are to be swapped, then which axes (rows, columns) to be reversed.

    The display matrix is 3x3, row by row: it takes a pixel (x, y) to (m0 x + m3 y, m1 x + m4 y), in
    16.16 fixed point. The cases are those of ffmpeg's automatic rotation (`fftools/ffmpeg_filter.c`),
    which takes angles within one degree of a quarter turn as that turn.
    """
    import math

    import numpy as np

    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
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
