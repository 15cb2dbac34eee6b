"""What a packet's first bytes tell about it, without decoding: can decoding start here, does anything
depend on it. Pure functions over bytes, one per codec; a codec that has none is decoded in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from struct import Struct


class UnclearBitstreamError(Exception):
    """The packets hold something that leaves a doubt; decode them all, in order."""


@dataclass(frozen=True, slots=True)
class PacketRole:
    """What the other packets need this one for."""

    restart: bool
    """Decoding can start here: nothing later, `leading` packets apart, depends on anything earlier."""
    reference: bool
    """Others may depend on it."""
    leading: bool = False
    """Shown before the restart that it follows, and perhaps dependent on what precedes that."""


RESTART = PacketRole(restart=True, reference=True)
NEEDED = PacketRole(restart=False, reference=True)
UNNEEDED = PacketRole(restart=False, reference=False)

NO_PARAMETERS: frozenset[bytes] = frozenset()
_FOUR_BYTES = Struct(">I")

RESTARTS_ALONE = ("vp9", "av1", "libdav1d")
"""Codecs where every packet is taken as needed by the next, so that only restarts save anything."""


def packet_roles(codec: str, extradata: bytes, packets: Sequence[memoryview]) -> list[PacketRole]:
    """The role of each packet, in file order.

    Args:
        codec: FFmpeg's name of the codec, such as `h264`.
        extradata: the codec's configuration record from the container.
        packets: content of each packet.

    Raises:
        UnclearBitstreamError: the codec is not known here, or the packets are damaged or of a kind that is
            better decoded in full.
    """
    if codec not in _READERS:
        raise UnclearBitstreamError(f"no reader for {codec}")
    roles, parameters = [], set()
    try:
        for role, parameter_sets in _READERS[codec](extradata, packets):
            if role.restart:
                parameters.add(parameter_sets)
            elif parameter_sets:
                raise UnclearBitstreamError("parameter sets change between two restarts")
            roles.append(role)
    except IndexError as error:
        raise UnclearBitstreamError("a packet ends early") from error
    if len(parameters) > 1:
        raise UnclearBitstreamError("restarts differ in their parameter sets")
    return roles


_Roles = Iterator[tuple[PacketRole, frozenset[bytes]]]
"""Of each packet its role, and the parameter sets (H.264, HEVC) or sequence headers (AV1) within it."""


def nal_units(packet: memoryview, length_size: int) -> Iterator[memoryview]:
    """The NAL units of a packet, each after its length in `length_size` bytes.

    Raises:
        UnclearBitstreamError: the lengths do not add up to the packet.
    """
    position, end = 0, len(packet)
    while position < end:
        start = position + length_size
        if length_size == 4 and start <= end:  # nearly always; slicing would take twice as long
            size = _FOUR_BYTES.unpack_from(packet, position)[0]
        else:
            size = int.from_bytes(packet[position:start], "big")
        position = start + size
        if position == start or position > end:
            raise UnclearBitstreamError("a NAL unit's length is wrong")
        yield packet[start:position]


def _is_one_nal_unit(packet: memoryview, length_size: int) -> bool:
    """Whether the first unit fills the packet, as it nearly always does: its header then tells all."""
    return length_size == 4 and len(packet) > 5 and _FOUR_BYTES.unpack_from(packet)[0] == len(packet) - 4


_H264_LONE_SLICES = {importance << 5 | 5: RESTART for importance in range(4)}
_H264_LONE_SLICES |= {importance << 5 | 1: NEEDED if importance else UNNEEDED for importance in range(4)}
"""The role of a packet that is one slice, by the slice's first byte: `nal_ref_idc` and the unit's type."""


def _h264_roles(extradata: bytes, packets: Sequence[memoryview]) -> _Roles:
    """NAL unit types and `nal_ref_idc`: ITU-T H.264, 7.3.1 and table 7-1."""
    if not extradata or extradata[0] != 1:
        raise UnclearBitstreamError("H.264 without an avcC record")
    length_size = (extradata[4] & 3) + 1
    for packet in packets:
        lone = _H264_LONE_SLICES.get(packet[4]) if _is_one_nal_unit(packet, length_size) else None
        if lone is not None:
            yield lone, NO_PARAMETERS
            continue
        kinds, needed, parameters = set(), False, []
        for unit in nal_units(packet, length_size):
            kind = unit[0] & 0x9F  # with the bit that must be zero
            if kind in (1, 5):  # slice of a non-IDR picture, of an IDR picture
                kinds.add(kind)
                needed = needed or unit[0] & 0x60 != 0
            elif kind in (7, 8):  # SPS, PPS
                parameters.append(bytes(unit))
            elif kind not in (6, 9, 12):  # SEI, delimiter, filler
                raise UnclearBitstreamError(f"H.264 NAL unit of type {kind}")
        if len(kinds) != 1:
            raise UnclearBitstreamError("an H.264 packet is not one picture of one kind")
        role = RESTART if 5 in kinds else NEEDED if needed or parameters else UNNEEDED
        yield role, frozenset(parameters) if parameters else NO_PARAMETERS


def _hevc_roles(extradata: bytes, packets: Sequence[memoryview]) -> _Roles:
    """NAL unit types: ITU-T H.265, 7.3.1.2 and table 7-1.

    A sub-layer non-reference picture may still serve higher temporal layers, so only those of the
    highest layer are free of dependents (7.4.2.2).
    """
    if not extradata or extradata[0] != 1:
        raise UnclearBitstreamError("HEVC without an hvcC record")
    length_size = (extradata[21] & 3) + 1
    pictures = []
    for packet in packets:
        if _is_one_nal_unit(packet, length_size) and (lone := _hevc_lone_slice(packet[4], packet[5])):
            pictures.append(lone)
            continue
        kinds, parameters = set(), []
        for unit in nal_units(packet, length_size):
            kind, layer, temporal = _hevc_header(unit[0], unit[1])
            if layer:
                raise UnclearBitstreamError("HEVC with several layers")
            if kind in _HEVC_SLICES:
                kinds.add((kind, temporal))
            elif kind in (32, 33, 34):  # VPS, SPS, PPS
                parameters.append(bytes(unit))
            elif kind not in (35, 38, 39, 40, 62):  # delimiter, filler, SEI, Dolby Vision metadata
                raise UnclearBitstreamError(f"HEVC NAL unit of type {kind}")
        if len(kinds) != 1:
            raise UnclearBitstreamError("an HEVC packet is not one picture of one kind")
        pictures.append((*kinds.pop(), frozenset(parameters) if parameters else NO_PARAMETERS))
    highest = max((temporal for _, temporal, _ in pictures), default=0)
    for kind, temporal, parameter_sets in pictures:
        yield _hevc_role(kind, temporal < highest), parameter_sets


_HEVC_SLICES = frozenset((*range(10), 19, 20, 21))
"""Types of NAL units that are leading and trailing pictures, IDR and CRA."""


def _hevc_header(first: int, second: int) -> tuple[int, int, int]:
    """Type, layer and temporal layer of a NAL unit, by its first two bytes."""
    return first >> 1, (first & 1) << 5 | second >> 3, second & 7


@cache
def _hevc_lone_slice(first: int, second: int) -> tuple[int, int, frozenset[bytes]] | None:
    """Type and temporal layer of a packet that is one slice, by the unit's header; None where it is not."""
    kind, layer, temporal = _hevc_header(first, second)
    return (kind, temporal, NO_PARAMETERS) if kind in _HEVC_SLICES and not layer else None


@cache
def _hevc_role(kind: int, below_the_highest_layer: bool) -> PacketRole:
    return PacketRole(
        restart=kind >= 19,
        reference=kind >= 19 or kind % 2 == 1 or below_the_highest_layer,
        leading=6 <= kind <= 9,
    )


def _vp9_roles(extradata: bytes, packets: Sequence[memoryview]) -> _Roles:
    """Uncompressed header: VP9 Bitstream Specification, 6.2, and superframes: annex B.

    Every frame may leave motion vectors and probabilities to the next, so all but restarts are kept.
    """
    for packet in packets:
        header, superframe = packet[0], packet[-1] & 0xE0 == 0xC0
        if header & 0xC0 != 0x80 or header & 0x30 == 0x30:
            raise UnclearBitstreamError("VP9 packet without a frame of profile 0 to 2")
        show_existing, inter, show = header & 8, header & 4, header & 2
        if not (superframe or show_existing or show):
            raise UnclearBitstreamError("a VP9 packet shows no frame")
        yield RESTART if show and not (show_existing or inter) else NEEDED, NO_PARAMETERS


def _av1_roles(extradata: bytes, packets: Sequence[memoryview]) -> _Roles:
    """OBU and frame headers: AV1 Bitstream Specification, 5.3 and 5.9. All but restarts are kept."""
    for packet in packets:
        if packet[0] == _FRAME_OBU:
            size, start = _leb128(packet, 1)
            if size and start + size == len(packet):  # nearly always: one frame, and nothing else
                yield NEEDED, NO_PARAMETERS
                continue
        first_frame, sequence_headers = None, []
        for kind, payload in _obus(packet):
            if kind == 1:  # sequence header
                if payload[0] & 0x08:
                    raise UnclearBitstreamError("AV1 still picture")
                sequence_headers.append(bytes(payload))
            elif kind in (3, 6) and first_frame is None:  # frame header, frame
                first_frame = payload[0]
        if first_frame is None:
            raise UnclearBitstreamError("an AV1 packet holds no frame")
        shown_key = first_frame & 0xF0 == 0x10  # show_existing_frame 0, frame_type KEY_FRAME, show_frame 1
        yield RESTART if shown_key and sequence_headers else NEEDED, frozenset(sequence_headers)


_FRAME_OBU = 0x32
"""Header of an OBU of type 6, a frame, that has a size field and no extension."""


def _obus(packet: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 0
    while position < len(packet):
        header = packet[position]
        if header & 0x84:
            raise UnclearBitstreamError("an AV1 packet is damaged, or has layers")
        position += 1
        size = len(packet) - position
        if header & 0x02:
            size, position = _leb128(packet, position)
        if position + size > len(packet):
            raise UnclearBitstreamError("an OBU's size is wrong")
        yield header >> 3 & 15, packet[position : position + size]
        position += size


def _leb128(packet: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first (4.10.5), and the position behind it."""
    number = shift = 0
    while True:
        byte = packet[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return number, position
        shift += 7


_READERS: dict[str, Callable[[bytes, Sequence[memoryview]], _Roles]] = {
    "h264": _h264_roles,
    "hevc": _hevc_roles,
    "vp9": _vp9_roles,
    "av1": _av1_roles,
    "libdav1d": _av1_roles,
}

CODECS_READ = frozenset(_READERS)
"""FFmpeg's names of the codecs that `packet_roles` knows."""
