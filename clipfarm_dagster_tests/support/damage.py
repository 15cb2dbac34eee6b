"""Clips damaged in many ways, the same ways every time, and what sampling makes of them."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.video.frames import SampledFrames, sample_frames, sample_frames_sequential
from workbench.clips import B_PYRAMID, FRAGMENTED, OPEN_GOP, ClipSpec, encode

_PLAIN = ClipSpec(width=144, height=96)
"""Above `LEAST_PLANNED_PIXELS`."""

SPECS = (
    replace(_PLAIN, gop=12, options=B_PYRAMID),
    replace(_PLAIN, gop=250, options=B_PYRAMID),
    replace(_PLAIN, gop=30, options=OPEN_GOP),
    replace(_PLAIN, gop=10, options=(("bf", "0"),)),
    replace(_PLAIN, gop=20, options=B_PYRAMID, muxer_options=FRAGMENTED),
    replace(_PLAIN, gop=20, options=B_PYRAMID, container="matroska"),
    replace(_PLAIN, gop=20, options=(*B_PYRAMID, ("x264-params", "slices=3:cabac=0"))),
    replace(_PLAIN, codec="libx265", gop=12, options=(("x265-params", "bframes=4:open-gop=0"),)),
    replace(_PLAIN, codec="libx265", gop=250, options=(("x265-params", "bframes=4:b-pyramid=1"),)),
    replace(_PLAIN, codec="libx265", gop=20, options=(("x265-params", "bframes=4:open-gop=1"),)),
    replace(_PLAIN, codec="libx265", gop=20, pixel_format="yuv420p10le", frames=60),
    replace(_PLAIN, codec="libx265", gop=8, options=(("x265-params", "bframes=0"),), frames=60),
    replace(_PLAIN, codec="libvpx-vp9", container="webm", gop=6, frames=50),
    replace(_PLAIN, codec="libsvtav1", gop=6, frames=50),
    replace(_PLAIN, codec="mpeg4", container="avi", gop=6, frames=40),
    replace(_PLAIN, codec="libx264", container="mpegts", gop=12, frames=60),
)
SMALL_MEDIA = (
    "h265_bframes.mp4",
    "bear-vp9-odd-dimensions.webm",
    "sample_android_slow_motion.mp4",
    "video_rotation_90.mp4",
    "sample.mp4",
    "sample_av1.mp4",
    "nasa_13013.mp4",
    "telling/fuzz_04_00_flip1.mp4",
    "telling/fuzz_12_02_flip1.mp4",
    "telling/fuzz_11_18_byte16.mp4",
    "telling/fuzz_39_08_flip4.mp4",
    "telling/fuzz_07_06_flip4.mp4",
    "telling/caa53ab7cf.mp4",
    "telling/2eb15389a7.mp4",
    "telling/844b350f2d.mp4",
)
"""Of the shared media, those that decode in a moment."""


def _flip(data: bytearray, rng: random.Random, times: int) -> None:
    for _ in range(times):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) - 16)
    data[at : at + 16] = rng.randbytes(16)


def _swap(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((4, 16, 64, 256))
    first, second = (rng.randrange(len(data) - size) for _ in range(2))
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )


def _damage_a_packet(data: bytearray, rng: random.Random) -> None:
    """One to eight bits of one packet of video."""
    with av.open(io.BytesIO(bytes(data)), "r", metadata_errors="replace") as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos is not None]
    position, size = rng.choice(packets)
    for _ in range(rng.randint(1, 8)):
        at = position + rng.randrange(size)
        if at < len(data):
            data[at] ^= 1 << rng.randrange(8)


MUTATIONS: dict[str, Callable[[bytearray, random.Random], None]] = {
    "flip1": lambda data, rng: _flip(data, rng, 1),
    "flip4": lambda data, rng: _flip(data, rng, 4),
    "byte16": _overwrite,
    "swap": _swap,
    "payload": _damage_a_packet,
}


@dataclass(frozen=True)
class Variant:
    """One damaged clip, by the seed that it is made from."""

    clip: str
    mutation: str
    number: int

    def __str__(self) -> str:
        return f"{self.clip}-{self.mutation}-{self.number}"

    def make(self, clean: bytes) -> bytes:
        damaged = bytearray(clean)
        MUTATIONS[self.mutation](damaged, random.Random(str(self)))
        return bytes(damaged)


def clean_clips(shared: Path | None) -> dict[str, bytes]:
    """Generated clips, and those of the shared media that are in a folder."""
    clips = {str(spec): encode(spec) for spec in SPECS}
    if shared is None:
        return clips
    media = shared / "media"
    return clips | {name: (media / name).read_bytes() for name in SMALL_MEDIA if (media / name).exists()}


def variants(clips: dict[str, bytes], how_many: int) -> Iterator[Variant]:
    """Each clip under each mutation in turn, again and again."""
    number = 0
    while True:
        for mutation in MUTATIONS:
            for clip in clips:
                if number == how_many:
                    return
                yield Variant(clip, mutation, number)
                number += 1


@dataclass(frozen=True)
class Seen:
    """What sampling gave: a digest of indices and pixels, or none where the clip was refused."""

    digest: str | None
    note: str | None
    decoded: int = 0


def _seen(sample: Callable[..., SampledFrames], data: bytes) -> Seen:
    try:
        sampled = sample(data, unknown_count="count", max_pixels=2**21, max_frames=20_000)
    except InvalidRawObjectError as error:
        return Seen(None, str(error))
    digest = hashlib.sha256(repr((sampled.indices, sampled.frames.shape)).encode())
    digest.update(sampled.frames.tobytes())
    return Seen(digest.hexdigest(), sampled.note, sampled.decoded)


def planned(data: bytes) -> Seen:
    """As the video stage samples."""
    return _seen(sample_frames, data)


def in_full(data: bytes) -> Seen:
    """With all packets decoded in order."""
    return _seen(sample_frames_sequential, data)
