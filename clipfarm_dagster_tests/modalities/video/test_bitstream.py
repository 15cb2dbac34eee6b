from __future__ import annotations

import io

import av
import pytest

from clipfarm_dagster.modalities.video.bitstream import NEEDED, RESTART, UnclearBitstreamError, packet_roles
from workbench.clips import B_PYRAMID, ClipSpec, encode

AVCC = bytes((1, 0, 0, 0, 0xFF))
SLICE, FREE_SLICE, IDR, SPS, SEI = 0x61, 0x01, 0x65, 0x67, 0x06


def h264(*packets: tuple[int, ...]) -> list[memoryview]:
    """Packets of NAL units of two bytes, given by their first byte."""
    return [memoryview(b"".join(bytes((0, 0, 0, 2, unit, 7)) for unit in packet)) for packet in packets]


def kinds(codec: str, extradata: bytes, packets: list[memoryview]) -> str:
    """I: restart, P: needed, b: not needed, l: leading."""
    letters = {(True, True): "I", (False, True): "P", (False, False): "b"}
    roles = packet_roles(codec, extradata, packets)
    return "".join("l" if role.leading else letters[role.restart, role.reference] for role in roles)


def clip_kinds(spec: ClipSpec) -> tuple[str, list[bool]]:
    with av.open(io.BytesIO(encode(spec)), "r") as container:
        decoder = container.streams.video[0].codec_context
        packets = [packet for packet in container.demux(video=0) if packet.size]
        found = kinds(decoder.name, decoder.extradata or b"", [memoryview(p) for p in packets])
        return found, [packet.is_keyframe for packet in packets]


def test_h264_roles() -> None:
    assert kinds("h264", AVCC, h264((SPS, SEI, IDR), (SLICE,), (SEI, FREE_SLICE), (SPS, IDR))) == "IPbI"


@pytest.mark.parametrize(
    "packets",
    [
        h264((IDR,), (SLICE, IDR)),
        h264((IDR,), (SEI,)),
        h264((IDR,), (0x1C,)),
        h264((IDR,), (0x80 | SLICE,)),
        h264((IDR,), (SPS, SLICE)),
        h264((IDR,), (SPS, IDR)),
        [memoryview(b"\0\0\0\x09\x65")],
        [memoryview(b"\0\0\0\0\0")],
        [memoryview(b"")],
    ],
    ids=[
        "two kinds of picture",
        "no picture",
        "an unknown kind of unit",
        "a bit that must be zero",
        "parameters between restarts",
        "restarts with other parameters",
        "a unit longer than its packet",
        "an empty unit",
        "an empty packet",
    ],
)
def test_h264_in_doubt(packets: list[memoryview]) -> None:
    with pytest.raises(UnclearBitstreamError):
        packet_roles("h264", AVCC, packets)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_without_a_configuration_record(codec: str) -> None:
    with pytest.raises(UnclearBitstreamError):
        packet_roles(codec, b"", h264((IDR,)))


@pytest.mark.parametrize("codec", ["hevc", "vp9", "av1"])
def test_packets_that_end_early(codec: str) -> None:
    with pytest.raises(UnclearBitstreamError):
        packet_roles(codec, bytes((1,)) * 30, [memoryview(b"")])


def test_codec_without_a_reader() -> None:
    with pytest.raises(UnclearBitstreamError):
        packet_roles("mpeg4", b"", [])


def test_closed_and_open_gops_of_x264() -> None:
    closed, keyframes = clip_kinds(ClipSpec(gop=10, options=B_PYRAMID))
    assert [kind == "I" for kind in closed] == keyframes
    assert 20 < closed.count("b") < 60
    open_gop = (*B_PYRAMID, ("x264-params", "open-gop=1"))
    opened, keyframes = clip_kinds(ClipSpec(gop=10, options=open_gop))
    assert opened.count("I") < sum(keyframes)


def test_closed_and_open_gops_of_x265() -> None:
    closed, keyframes = clip_kinds(
        ClipSpec("libx265", gop=10, options=(("x265-params", "bframes=3:open-gop=0"),))
    )
    assert [kind == "I" for kind in closed] == keyframes
    assert "b" in closed
    assert "l" not in closed
    opened, _ = clip_kinds(ClipSpec("libx265", gop=10, options=(("x265-params", "bframes=3:open-gop=1"),)))
    assert "Il" in opened


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libsvtav1"])
def test_restarts_of_vp9_and_av1_are_the_keyframes(codec: str) -> None:
    found, keyframes = clip_kinds(ClipSpec(codec, gop=6))
    assert [kind == "I" for kind in found] == keyframes
    assert keyframes.count(True) > 5


def test_vp9_frames_that_are_not_shown_leave_a_doubt() -> None:
    assert packet_roles("vp9", b"", [memoryview(b"\x82\0"), memoryview(b"\x86\0")]) == [RESTART, NEEDED]
    with pytest.raises(UnclearBitstreamError):
        packet_roles("vp9", b"", [memoryview(b"\x82\0"), memoryview(b"\x84\0")])
