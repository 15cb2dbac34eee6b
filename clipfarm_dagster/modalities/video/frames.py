"""Sixteen upright RGB frames of a clip, from its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.video.clip_file import ClipFile, open_clip
from clipfarm_dagster.modalities.video.decode_plan import DecodePlan
from clipfarm_dagster.modalities.video.decoding import Decoding, decoder_log
from clipfarm_dagster.modalities.video.stream_packets import StreamPackets
from clipfarm_dagster.modalities.video.upright import rgb_converter

if TYPE_CHECKING:
    import av
    import numpy as np

UnknownCount = Literal["first", "count"]
T = TypeVar("T")

LEAST_PLANNED_PIXELS = 10_000
"""Smaller pictures decode so fast that looking at their packets would cost more than a twentieth of it
(`make bench-frames`)."""


@dataclass(frozen=True)
class Sampling(Generic[T]):
    """What was made of the frames that were taken from a clip."""

    made: tuple[T, ...]
    """What the function that was given made of each frame."""
    indices: tuple[int, ...]
    """Presentation index of each of the frames; another's where one is missing."""
    decoded: int
    """How many frames the decoder gave to get them."""
    total: int | None
    """Frames in the stream, where known."""
    damaged: int
    """In how many of the frames the decoder reports damage."""
    note: str | None
    """Set where frames are damaged or missing: how many, and why."""


@dataclass(frozen=True)
class SampledFrames:
    """What `sample_frames` took from a clip."""

    frames: np.ndarray
    """uint8, RGB, shape (count, height, width, 3), upright."""
    indices: tuple[int, ...]
    """Presentation index of each of the frames; another's where one is missing."""
    decoded: int
    """How many frames the decoder gave to get them."""
    total: int | None
    """Frames in the stream, where known."""
    note: str | None
    """Set where frames are damaged or missing: how many, and why."""
    damaged: int = 0
    """In how many of the frames the decoder reports damage."""


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
    order, from the beginning and with another decoder; so are tiny pictures, with which nothing is to be
    gained. Damage inside packets that are skipped, with their headers intact, stays unseen: it is in none of
    the frames taken.

    Arguments and errors are those of `sample_frames_sequential`; only `decoded` is smaller.
    """
    return _stacked(
        _sample(data, _itself, _Request(count, unknown_count, max_pixels, max_frames), sparse=True)
    )


def sample_each(
    data: bytes,
    make: Callable[[np.ndarray], T],
    *,
    count: int = 16,
    unknown_count: UnknownCount = "first",
    max_pixels: int | None = None,
    max_frames: int | None = None,
) -> Sampling[T]:
    """What `make` makes of each of the frames of `sample_frames`.

    Each frame is given to it, uint8 (height, width, 3), as soon as it is decoded, and then let go: no two are
    ever held at full size. `make` must not depend on the order, and may be given a frame that is not taken in
    the end. All else is as with `sample_frames_sequential`.
    """
    return _sample(data, make, _Request(count, unknown_count, max_pixels, max_frames), sparse=True)


def sample_frames_sequential(
    data: bytes,
    *,
    count: int = 16,
    unknown_count: UnknownCount = "first",
    max_pixels: int | None = None,
    max_frames: int | None = None,
) -> SampledFrames:
    """Decode a clip from its first packet on, and take `count` frames, uniform over the timeline.

    - **Stream**: the one that ffmpeg itself would choose; cover pictures are not video.
    - **Order**: packets go to a decoder of their own in file order, with one thread. Frames that an edit list
      hides are not given, and not counted.
    - **n**: the frames that the container declares, less those that its edit list leaves out.
    - **Taken**: the presentation indices `linspace(0, n - 1, min(count, n))`, truncated, each once. If the
      container declares no count: the first `count` frames, or, with `unknown_count="count"`, n is the number
      of packets to be shown. If there are fewer than `count`, the last frame taken is repeated.
    - **Index**: where n packets have n timestamps, index k is the frame of the k-th timestamp, so that one
      lost frame does not move all after it; where they have not, the k-th frame that the decoder gives.
    - **Damage**: a packet that the decoder rejects is passed over, as ffmpeg does. For a frame that is
      missing stands the nearest taken before it, or else after it. A frame counts as damaged where the
      decoder flags it, or logs an error over its packet; its pixels are what the decoder made of it, which
      depends on the clip's bytes alone. `note` tells of both. A clip is refused if the decoder flags all
      frames taken, or if its samples are encrypted.
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
        InvalidRawObjectError: the bytes cannot be opened, hold no video stream, give no frame or damaged ones
            alone, are encrypted, or are over a limit.
        MemoryError: memory ran out.
    """
    return _stacked(
        _sample(data, _itself, _Request(count, unknown_count, max_pixels, max_frames), sparse=False)
    )


def wanted_indices(total: int, count: int) -> tuple[int, ...]:
    """Presentation indices to take of `total` frames: strictly increasing, at most `count`."""
    import numpy as np

    return tuple(int(i) for i in np.linspace(0, total - 1, min(count, total)))


def _itself(frame: np.ndarray) -> np.ndarray:
    return frame


def _stacked(sampling: Sampling[np.ndarray]) -> SampledFrames:
    import numpy as np

    return SampledFrames(
        frames=np.stack(sampling.made),
        indices=sampling.indices,
        decoded=sampling.decoded,
        total=sampling.total,
        note=sampling.note,
        damaged=sampling.damaged,
    )


@dataclass(frozen=True)
class _Request:
    """The arguments of `sample_frames`."""

    count: int
    unknown_count: UnknownCount
    max_pixels: int | None
    max_frames: int | None


@dataclass(frozen=True)
class _Pass:
    """How a clip is gone through; what is found may call for another pass, with a decoder of its own."""

    sparse: bool
    by_time: bool = True
    ending_early: frozenset[int] | None = None
    """What an earlier pass found: see `Decoding`."""


def _sample(data: bytes, make: Callable[[np.ndarray], T], request: _Request, *, sparse: bool) -> Sampling[T]:
    following = _Pass(sparse)
    while True:
        with decoder_log(), open_clip(data, request.max_pixels) as clip:
            found = _go_through(clip, make, request, following)
        if isinstance(found, Sampling):
            return found
        following = found


def _go_through(
    clip: ClipFile, make: Callable[[np.ndarray], T], request: _Request, this: _Pass
) -> Sampling[T] | _Pass:
    to_rgb = rgb_converter(request.max_pixels)

    def made(frame: av.VideoFrame) -> T:
        return make(to_rgb(frame))

    total = clip.declared_frames()
    packets: Iterable[av.Packet[av.VideoStream]]
    if total is None and request.unknown_count == "first":
        packets, times, wanted = clip.packets(), None, tuple(range(request.count))
    else:
        packets = StreamPackets.of(clip)
        if total is None:
            total = sum(packets.shown)
        _check_frames(total, request.max_frames)
        wanted = wanted_indices(total, request.count)
        times = packets.times(total) if this.by_time else None
        large = clip.decoder.width * clip.decoder.height >= LEAST_PLANNED_PIXELS
        plan = packets.plan(total, wanted) if this.sparse and large and times is not None else None
        if plan is not None:
            planned = _decode_planned(packets, plan, made)
            if planned is None:
                return _Pass(sparse=False)
            decoded = sum(1 for run in plan.runs for i in run if not packets.read[i].is_discard)
            return Sampling(*_filled(planned, request.count), decoded, total, damaged=0, note=None)
    decoding = Decoding(clip.decoder, known_to_end_early=this.ending_early)
    places = {index if times is None else times[index]: index for index in wanted}
    taken = _decode_in_order(decoding, packets, places, made, by_time=times is not None)
    if decoding.ending_early:
        return replace(this, sparse=False, ending_early=frozenset(decoding.ending_early))
    if times is not None and decoding.given and not taken.made:  # the decoder gives other timestamps
        return replace(this, sparse=False, by_time=False)
    if isinstance(packets, StreamPackets) and decoding.damaged:
        return _finished(taken, total, request.count, harmless=packets.needed_by_none())
    return _finished(taken, total, request.count)


def _check_frames(total: int, max_frames: int | None) -> None:
    if total == 0:
        raise InvalidRawObjectError("the video stream is empty")
    if max_frames is not None and total > max_frames:
        raise InvalidRawObjectError(f"{total} frames are over the limit of {max_frames}")


@dataclass
class _Taken(Generic[T]):
    """What a decode in order has found of the wanted frames, by presentation index."""

    decoding: Decoding
    wanted: tuple[int, ...]
    made: dict[int, T] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    flagged: set[int] = field(default_factory=set)


def _decode_in_order(
    decoding: Decoding,
    packets: Iterable[av.Packet[av.VideoStream]],
    places: Mapping[int, int],
    made: Callable[[av.VideoFrame], T],
    *,
    by_time: bool,
) -> _Taken[T]:
    """Take the frames at `places`, which leads from timestamp or position to presentation index."""
    taken: _Taken[T] = _Taken(decoding, tuple(places.values()))
    for frame, damaged in decoding.frames(packets):
        place = frame.pts if by_time else decoding.given - 1
        index = None if place is None else places.get(place)
        if index is None or index in taken.made:
            continue
        taken.made[index] = made(frame)
        if damaged:
            taken.damaged.add(index)
        if frame.is_corrupt or decoding.ends_early():
            taken.flagged.add(index)
        if len(taken.made) == len(places):
            break
    return taken


def _finished(
    taken: _Taken[T], total: int | None, count: int, harmless: Set[int | None] = frozenset()
) -> Sampling[T]:
    decoding = taken.decoding
    problem = decoding.unreadable or next(iter(decoding.rejected), None)
    if not taken.made:
        raise InvalidRawObjectError(f"no frame can be decoded: {problem or 'the video stream is empty'}")
    if taken.flagged == set(taken.made):
        raise InvalidRawObjectError(
            f"no whole frame can be decoded: the decoder calls all {len(taken.flagged)} frames damaged"
        )
    standing = [
        _standing_in(index, taken.made) for index in taken.wanted if total is not None or index in taken.made
    ]
    made, indices = _filled([(index, taken.made[index]) for index in standing], count)
    damaged = sum(1 for index in indices if index in taken.damaged)
    notes = []
    of = "" if total is None else f" of {total}"
    if decoding.rejected:
        packets = "1 packet" if len(decoding.rejected) == 1 else f"{len(decoding.rejected)} packets"
        notes.append(f"{decoding.given}{of} frames were decoded, {packets} rejected: {decoding.rejected[0]}")
    elif len(taken.made) < len(taken.wanted) and (total is not None or decoding.unreadable):
        why = decoding.unreadable or "the stream ends there"
        notes.append(f"decoding stopped after {decoding.given}{of} frames: {why}")
    if damaged:
        notes.append(f"{damaged} of {count} frames damaged")
    elif not decoding.damaged <= harmless:
        notes.append(f"none of {count} frames damaged, but others on which they may depend")
    return Sampling(made, indices, decoding.given, total, damaged, "; ".join(notes) or None)


def _standing_in(index: int, made: Mapping[int, T]) -> int:
    """The index itself; where its frame is missing, the nearest before it, or else the nearest after it."""
    before = [other for other in made if other <= index]
    return max(before) if before else min(made)


def _filled(taken: Sequence[tuple[int, T]], count: int) -> tuple[tuple[T, ...], tuple[int, ...]]:
    """What was made, and the indices, with the last repeated up to `count`."""
    filled = [*taken, *[taken[-1]] * (count - len(taken))]
    return tuple(thing for _, thing in filled), tuple(index for index, _ in filled)


def _decode_planned(
    packets: StreamPackets, plan: DecodePlan, made: Callable[[av.VideoFrame], T]
) -> list[tuple[int, T]] | None:
    """The wanted frames, or None if the decoder does not give exactly what the plan expects."""
    decoder = packets.clip.decoder
    decoder.options = {"err_detect": "explode"}
    decoding = Decoding(decoder)
    places = dict(zip(plan.wanted_pts, plan.wanted, strict=True))
    taken: list[tuple[int, T]] = []
    latest = None
    for run in plan.runs:
        decoder.flush_buffers()
        fed = [packets.read[i] for i in run]
        before = decoding.given
        for frame, damaged in decoding.frames(fed):
            if (
                damaged
                or decoding.reported
                or frame.pts is None
                or (latest is not None and frame.pts <= latest)
            ):
                return None
            latest = frame.pts
            if frame.pts in places:
                taken.append((places[frame.pts], made(frame)))
        if (
            decoding.reported
            or decoding.rejected
            or decoding.given - before != sum(1 for packet in fed if not packet.is_discard)
        ):
            return None
    return taken if len(taken) == len(places) else None
