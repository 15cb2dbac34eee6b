"""What sampling gives for each of the shared media: real clips, and clips damaged on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.video.frames import sample_frames, sample_frames_sequential
from clipfarm_dagster_tests.support.media import SHARED

MEDIA = SHARED / "media"


@dataclass(frozen=True)
class Clip:
    """A clip that gives frames."""

    size: tuple[int, int]
    """Width and height, upright."""
    total: int
    damaged: int = 0
    note: str | None = None
    """What the note begins with."""


@dataclass(frozen=True)
class Invalid:
    """A clip that is refused."""

    cause: str


NOT_OPENED = Invalid("cannot open the file")
NO_VIDEO = Invalid("the file has no video stream")
ENCRYPTED = Invalid("the video is encrypted")

EXPECTED: dict[str, Clip | Invalid] = {
    "3_george_0.wav": NOT_OPENED,
    "LJ050-0131.wav": NOT_OPENED,
    "bbb_642x642_768kbps_30fps_vp9.webm": Clip((642, 642), 90),
    "bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4": Clip((800, 640), 120),
    "bear-vp9-odd-dimensions.webm": Clip((161, 121), 30),
    "chunk_out_of_range.mp4": NOT_OPENED,
    "h265_bframes.mp4": Clip((854, 480), 30),
    "hdr10-av1.mp4": Clip((720, 1280), 127),
    "nasa_13013.mp4": Clip((480, 270), 390),
    "result.webm": NOT_OPENED,
    "sample.mp4": Clip((1080, 720), 30),
    "sample_12_5fps_720p_1s.mp4": Clip((1280, 720), 13),
    "sample_android_slow_motion.mp4": Clip((1280, 720), 7),
    "sample_audio_only.mp4": NO_VIDEO,
    "sample_av1.mp4": Clip((1080, 720), 30),
    "sample_fragmented.mp4": Clip((1080, 720), 30),
    "sample_portrait.mp4": Clip((720, 1080), 30),
    "sample_rotate_and_reflect.mp4": Clip((720, 1080), 30),
    "sample_with_invalid_nalu.mp4": Clip((1080, 720), 30, note="29 of 30 frames were decoded, 1 packet"),
    "truncated_half.mp4": NOT_OPENED,
    "video_rotation_90.mp4": Clip((60, 100), 1),
    "telling/0b641b6003.avi": Clip((960, 400), 98, note="decoding stopped after 96 of 98 frames"),
    "telling/1227ad4e55.mp4": Clip((720, 480), 21),
    "telling/1959b09081.mp4": Clip((1920, 1080), 745, note="decoding stopped after 6 of 745 frames"),
    "telling/1f2a471771.mp4": Clip((1080, 720), 30),
    "telling/26fae0c55c.mp4": Clip((1920, 1080), 1),
    "telling/2eb15389a7.mp4": Clip((640, 480), 68),
    "telling/3f991815fb.mp4": Clip((7680, 4320), 8),
    "telling/414c2c4424.mp4": Clip((1920, 1080), 11),
    "telling/4efa9fb473.mp4": ENCRYPTED,
    "telling/5185db2052.mp4": Invalid("no frame can be decoded"),
    "telling/6658c7b559.mp4": ENCRYPTED,
    "telling/771acfec9d.ogg": NO_VIDEO,
    "telling/844b350f2d.mp4": ENCRYPTED,
    "telling/a568b63a1d.ts": Clip((960, 540), 305),
    "telling/caa53ab7cf.mp4": Clip((160, 120), 10),
    "telling/fuzz_04_00_flip1.mp4": Clip((1024, 150), 125),
    "telling/fuzz_04_59_payload.mp4": Clip((1024, 150), 125, note="124 of 125 frames were decoded, 1 packet"),
    "telling/fuzz_07_06_flip4.mp4": Clip((704, 576), 13, damaged=6, note="6 of 16 frames damaged"),
    "telling/fuzz_10_29_swap.mp4": Invalid("asks for more memory than a file of this size can need"),
    "telling/fuzz_11_18_byte16.mp4": Clip((200, 200), 30, damaged=2, note="2 of 16 frames damaged"),
    "telling/fuzz_12_02_flip1.mp4": Clip((640, 360), 27, damaged=1, note="1 of 16 frames damaged"),
    "telling/fuzz_39_08_flip4.mp4": Clip((854, 480), 225, note="224 of 225 frames were decoded, 1 packet"),
}


def _read(name: str) -> bytes:
    if not (MEDIA / name).exists():
        pytest.skip("the shared media are not here")
    return (MEDIA / name).read_bytes()


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_clip_gives(name: str) -> None:
    expected, data = EXPECTED[name], _read(name)
    if isinstance(expected, Invalid):
        for sample in (sample_frames, sample_frames_sequential):
            with pytest.raises(InvalidRawObjectError, match=expected.cause):
                sample(data, unknown_count="count")
        return

    planned = sample_frames(data, unknown_count="count")
    in_full = sample_frames_sequential(data, unknown_count="count")

    width, height = expected.size
    assert planned.frames.shape == (16, height, width, 3)
    assert (planned.total, planned.damaged) == (expected.total, expected.damaged)
    if expected.note is None:
        assert planned.note is None
    else:
        assert planned.note is not None
        assert planned.note.startswith(expected.note)
    assert (planned.indices, planned.note) == (in_full.indices, in_full.note)
    assert (planned.frames == in_full.frames).all()


@pytest.mark.skipif(not MEDIA.exists(), reason="the shared media are not here")
def test_no_shared_clip_is_left_out() -> None:
    found = {
        str(path.relative_to(MEDIA)) for path in MEDIA.rglob("*") if path.is_file() and path.suffix != ".tsv"
    }
    assert found == set(EXPECTED)
