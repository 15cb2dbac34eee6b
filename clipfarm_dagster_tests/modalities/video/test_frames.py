from __future__ import annotations

import contextlib
import io
import itertools
import os
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.video.frames import (
    SampledFrames,
    sample_frames,
    sample_frames_sequential,
    wanted_indices,
)
from clipfarm_dagster_tests.support.media import SHARED
from workbench.clips import (
    B_PYRAMID,
    CLIPS,
    FRAGMENTED,
    ClipSpec,
    concatenated_sizes,
    encode,
    picture,
)

MEDIA = sorted((SHARED / "media").glob("*.*"))


@pytest.fixture(autouse=True)
def _planned_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generated clips are tiny, and are to be planned nevertheless."""
    monkeypatch.setattr("clipfarm_dagster.modalities.video.frames.LEAST_PLANNED_PIXELS", 0)


def media(name: str) -> bytes:
    path = SHARED / "media" / name
    if not path.exists():
        pytest.skip("the shared media are not here")
    return path.read_bytes()


def assert_same(sampled: SampledFrames, reference: SampledFrames) -> None:
    assert (sampled.indices, sampled.total, sampled.note) == (
        reference.indices,
        reference.total,
        reference.note,
    )
    assert sampled.frames.dtype == np.uint8
    np.testing.assert_array_equal(sampled.frames, reference.frames)
    assert sampled.decoded <= reference.decoded


def decode_with_pyav(data: bytes) -> tuple[int, list[np.ndarray]]:
    """The frame count that the container declares, and all frames but rejected ones, unrotated."""
    frames = []
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        packets: list[av.Packet[av.VideoStream] | None] = []
        with contextlib.suppress(av.error.FFmpegError):
            packets.extend(packet for packet in container.demux(stream) if packet.size)
        for packet in (*packets, None):
            with contextlib.suppress(av.error.FFmpegError):
                frames += [f.to_ndarray(format="rgb24") for f in stream.codec_context.decode(packet)]
        return stream.frames, frames


# --- the definition -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (30, (0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29)),
        (16, tuple(range(16))),
        (7, tuple(range(7))),
        (1, (0,)),
    ],
)
def test_wanted_indices(total: int, expected: tuple[int, ...]) -> None:
    assert wanted_indices(total, 16) == expected


def test_wanted_indices_increase() -> None:
    for total, count in itertools.product(range(1, 400), (1, 2, 8, 16)):
        indices = wanted_indices(total, count)
        assert len(indices) == min(count, total)
        assert indices[0] == 0
        assert all(a < b for a, b in itertools.pairwise(indices))
        assert indices[-1] == (total - 1 if len(indices) > 1 else 0)


@pytest.mark.parametrize("spec", CLIPS, ids=str)
def test_planned_frames_are_those_of_a_full_decode(spec: ClipSpec) -> None:
    data = encode(spec)
    declared, pictures = decode_with_pyav(data)
    if not pictures:
        for sample in (sample_frames, sample_frames_sequential):
            with pytest.raises(InvalidRawObjectError):
                sample(data, unknown_count="count")
        return

    sampled = sample_frames(data, unknown_count="count")
    assert_same(sampled, sample_frames_sequential(data, unknown_count="count"))

    broken = sampled.note is not None
    if not broken:
        assert sampled.total == len(pictures)
    elif declared and spec.first_pts >= 0:
        assert sampled.total == declared
    turned = np.rot90(np.array(pictures), k=-1, axes=(1, 2)) if spec.matrix else pictures
    indices = [i for i in wanted_indices(sampled.total or 0, 16) if i < len(pictures)]
    indices += indices[-1:] * (16 - len(indices))
    assert sampled.indices == tuple(indices)
    np.testing.assert_array_equal(sampled.frames, np.stack([turned[i] for i in indices]))

    first = sample_frames(data)
    assert_same(first, sample_frames_sequential(data))
    if not declared:
        assert first.indices[: len(pictures)] == tuple(range(min(16, len(pictures))))


def test_tiny_pictures_are_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, small = (ClipSpec(gop=5, options=B_PYRAMID, width=w, height=w * 3 // 4) for w in (112, 128))
    monkeypatch.undo()
    assert sample_frames(encode(tiny)).decoded == 90
    assert sample_frames(encode(small)).decoded < 60
    assert_same(sample_frames(encode(tiny)), sample_frames_sequential(encode(tiny)))


def test_encoding_clips_leaves_the_thread_its_priority() -> None:
    before = os.sched_getscheduler(0)
    encode(ClipSpec("libsvtav1", frames=5))
    assert os.sched_getscheduler(0) == before


def test_there_are_enough_clips() -> None:
    assert len(set(CLIPS)) >= 200


@pytest.mark.skipif(not MEDIA, reason="the shared media are not here")
@pytest.mark.parametrize("unknown_count", ["first", "count"])
@pytest.mark.parametrize("path", [p for p in MEDIA if p.suffix != ".tsv"], ids=lambda p: p.name)
def test_planned_frames_of_real_media(path: Path, unknown_count: Literal["first", "count"]) -> None:
    sampled: list[SampledFrames] = []
    causes: list[str] = []
    for sample in (sample_frames, sample_frames_sequential):
        try:
            sampled.append(sample(path.read_bytes(), unknown_count=unknown_count))
        except InvalidRawObjectError as error:
            causes.append(str(error))
    if causes:
        assert causes == [causes[0]] * 2
    else:
        assert_same(*sampled)


# --- what a plan saves --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        (ClipSpec(frames=300, gop=12, options=B_PYRAMID), 0.30),
        (ClipSpec(frames=300, gop=300, options=B_PYRAMID), 0.60),
        (ClipSpec("libx265", frames=300, gop=10), 0.45),
        (ClipSpec("libx265", frames=300, gop=300), 0.60),
        (ClipSpec("libvpx-vp9", frames=300, gop=5), 0.26),
        (ClipSpec("libsvtav1", frames=300, gop=5), 0.26),
        (ClipSpec(frames=300, gop=1), 16 / 300),
    ],
    ids=str,
)
def test_share_of_frames_decoded(spec: ClipSpec, most: float) -> None:
    sampled = sample_frames(encode(spec))
    assert sampled.decoded <= most * 300


def test_a_frame_count_that_is_unknown_is_not_looked_for_unless_asked() -> None:
    fragmented = encode(ClipSpec(muxer_options=FRAGMENTED))
    first = sample_frames(fragmented)
    assert (first.indices, first.total, first.decoded) == (tuple(range(16)), None, 16)
    counted = sample_frames(fragmented, unknown_count="count")
    assert (counted.indices, counted.total) == (wanted_indices(90, 16), 90)


def test_count_of_frames_can_be_set() -> None:
    data = encode(ClipSpec())
    assert sample_frames(data, count=8).indices == wanted_indices(90, 8)
    assert sample_frames(data, count=1).frames.shape == (1, 48, 64, 3)


# --- short, cut and damaged clips ---------------------------------------------------------------------


def test_too_few_frames_repeat_the_last() -> None:
    sampled = sample_frames(encode(ClipSpec(frames=5)))
    assert sampled.indices == (0, 1, 2, 3, *[4] * 12)
    assert (sampled.total, sampled.note) == (5, None)
    assert (sampled.frames[4:] == sampled.frames[4]).all()
    assert (sampled.frames[3] != sampled.frames[4]).any()


def test_an_invalid_nal_unit_is_passed_over_and_noted() -> None:
    sampled = sample_frames(media("sample_with_invalid_nalu.mp4"))
    assert sampled.indices[-4:] == (23, 25, 27, 29)
    assert (sampled.total, sampled.decoded) == (30, 29)
    assert sampled.note is not None
    assert sampled.note.startswith("29 of 30 frames were decoded, 1 packet rejected: ")


def test_truncated_file_is_padded_and_noted() -> None:
    sampled = sample_frames(encode(ClipSpec(muxer_options=(("moov_size", "6000"),), keep=0.8)))
    assert sampled.total == 90
    assert sampled.indices[0] == 0
    assert sampled.indices[-1] < 89
    assert sampled.note is not None
    assert "of 90 frames" in sampled.note


@pytest.mark.parametrize("elst", [(10, 0), (0, 20), (33, 21)])
def test_frames_that_the_edit_list_hides_are_not_counted(elst: tuple[int, int]) -> None:
    head, tail = elst
    options = (("bf", "2"), ("crf", "1"))
    sampled = sample_frames(encode(ClipSpec(options=options, elst=elst)))
    whole = sample_frames_sequential(encode(ClipSpec(options=options)), count=90)
    assert sampled.total is not None
    assert abs(sampled.total - (90 - head - tail)) <= 2  # whole milliseconds cut a frame more or less
    np.testing.assert_array_equal(sampled.frames[0], whole.frames[head])
    assert sampled.note is None


def test_damage_gives_frames_or_a_typed_error() -> None:
    rng = np.random.default_rng(7)
    clean = encode(ClipSpec(gop=10, options=B_PYRAMID))
    for _ in range(60):
        damaged = np.frombuffer(clean, np.uint8).copy()
        damaged[rng.integers(len(clean), size=3)] ^= 1 << int(rng.integers(8))
        try:
            sampled = sample_frames(damaged.tobytes(), max_pixels=1 << 20, max_frames=10_000)
        except InvalidRawObjectError:
            continue
        assert sampled.frames.shape[0] == len(sampled.indices) == 16


# --- size, colour and orientation ---------------------------------------------------------------------


def test_the_stream_that_ffmpeg_would_choose_counts() -> None:
    two = encode(ClipSpec(streams=2))
    np.testing.assert_array_equal(sample_frames(two).frames, sample_frames(encode(ClipSpec())).frames)
    assert sample_frames(media("nasa_13013.mp4")).frames.shape == (16, 270, 480, 3)


def test_frames_of_another_size_are_scaled_to_the_first() -> None:
    sampled = sample_frames(concatenated_sizes(), unknown_count="count")
    assert sampled.frames.shape == (16, 48, 64, 3)
    assert sampled.total == 40
    assert_same(sampled, sample_frames_sequential(concatenated_sizes(), unknown_count="count"))
    large, small = picture(30, 96, 80), sampled.frames[sampled.indices.index(31)]
    assert abs(float(large.mean()) - float(small.mean())) < 12


SIGNS = (1, -1)
ORIENTATIONS = [
    *((a, 0, 0, d) for a in SIGNS for d in SIGNS),
    *((0, b, c, 0) for b in SIGNS for c in SIGNS),
]


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_frames_stand_upright(matrix: tuple[int, int, int, int]) -> None:
    """Put each coded pixel where the matrix says: x' = a x + c y, y' = b x + d y, moved into the frame."""
    data = encode(ClipSpec(frames=2, matrix=matrix))
    _, (coded, _) = decode_with_pyav(data)
    a, b, c, d = matrix
    height, width, _ = coded.shape
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    upright = np.empty((down.max() + 1, across.max() + 1, 3), np.uint8)
    upright[down, across] = coded
    np.testing.assert_array_equal(sample_frames(data).frames[0], upright)


@pytest.mark.parametrize(
    ("matrix", "filters"),
    [
        ((0, 1, -1, 0), ["transpose=clock"]),
        ((0, -1, 1, 0), ["transpose=cclock"]),
        ((0, 1, 1, 0), ["transpose=cclock_flip"]),
        ((0, -1, -1, 0), ["transpose=clock_flip"]),
        ((-1, 0, 0, -1), ["hflip", "vflip"]),
        ((-1, 0, 0, 1), ["hflip"]),
        ((1, 0, 0, -1), ["vflip"]),
        ((1, 0, 0, 1), []),
    ],
)
def test_orientation_is_what_ffmpegs_own_filters_give(
    matrix: tuple[int, int, int, int], filters: list[str]
) -> None:
    """The filters are those that ffmpeg inserts for each matrix."""
    data = encode(ClipSpec(frames=1, matrix=matrix))
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0)).reformat(format="rgb24")
    for name in filters:
        graph = av.filter.Graph()
        filter_name, _, args = name.partition("=")
        graph.link_nodes(
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
            ),
            graph.add(filter_name, args or None),
            graph.add("buffersink"),
        ).configure()
        graph.push(frame)
        pulled = graph.pull()
        assert isinstance(pulled, av.VideoFrame)
        frame = pulled
    np.testing.assert_array_equal(sample_frames(data).frames[0], frame.to_ndarray())


def test_orientation_of_real_media() -> None:
    plain, turned = media("sample.mp4"), media("sample_rotate_and_reflect.mp4")
    np.testing.assert_array_equal(
        sample_frames(turned).frames, sample_frames(plain).frames.transpose(0, 2, 1, 3)
    )
    assert sample_frames(media("video_rotation_90.mp4")).frames.shape == (16, 100, 60, 3)


def test_orientation_at_other_angles_is_left_alone() -> None:
    data = encode(ClipSpec(frames=2))
    with av.open(io.BytesIO(data)) as source:
        assert source.streams.video[0].frames == 2
    at = data.index(b"tkhd") + 4 + 40  # the matrix of version 0: ISO/IEC 14496-12, 8.3.2
    half = int(65536 * 0.7071).to_bytes(4, "big", signed=True)
    minus = int(-65536 * 0.7071).to_bytes(4, "big", signed=True)
    tilted = data[:at] + half + half + bytes(4) + minus + half + data[at + 20 :]
    np.testing.assert_array_equal(sample_frames(tilted).frames, sample_frames(data).frames)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "cannot open"),
        (b"not a video" * 100, "cannot open"),
        (encode(ClipSpec())[:3000], "cannot open"),
    ],
)
def test_bytes_that_are_no_video(data: bytes, cause: str) -> None:
    with pytest.raises(InvalidRawObjectError, match=cause):
        sample_frames(data)


def test_files_without_video_or_damaged() -> None:
    with pytest.raises(InvalidRawObjectError, match="no video stream"):
        sample_frames(media("sample_audio_only.mp4"))
    with pytest.raises(InvalidRawObjectError, match="format is not one of"):
        sample_frames(media("LJ050-0131.wav"))
    for name in ("chunk_out_of_range.mp4", "truncated_half.mp4", "result.webm"):
        with pytest.raises(InvalidRawObjectError, match="cannot open"):
            sample_frames(media(name))


def test_limits() -> None:
    data = encode(ClipSpec())
    assert sample_frames(data, max_pixels=64 * 48, max_frames=90).total == 90
    with pytest.raises(InvalidRawObjectError, match="64x48 are over the limit of 3071 pixels"):
        sample_frames(data, max_pixels=64 * 48 - 1)
    with pytest.raises(InvalidRawObjectError, match="90 frames are over the limit of 89"):
        sample_frames(data, max_frames=89)
    with pytest.raises(InvalidRawObjectError, match="pixels"):
        sample_frames(concatenated_sizes(), unknown_count="count", max_pixels=64 * 48)


def test_playlists_cannot_reach_other_files(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode(ClipSpec()))
    playlists = (
        f"ffconcat version 1.0\nfile '{clip}'\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{clip}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{clip}\n#EXT-X-ENDLIST\n",
    )
    for playlist in playlists:
        with pytest.raises(InvalidRawObjectError):
            sample_frames(playlist.encode())
