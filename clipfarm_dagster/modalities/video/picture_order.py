"""Whether the headers of all packets fit together, so that those which a plan skips change nothing.

A damaged header may name another place in the order, or drop a picture that later ones refer to: a decoder
that is given the packet then shows other frames after it than one that is not. Damage behind the headers does
not reach further than the pictures that depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from clipfarm_dagster.modalities.video import h264_headers, hevc_headers
from clipfarm_dagster.modalities.video.bits import EndOfBitsError
from clipfarm_dagster.modalities.video.bitstream import PacketRole, UnclearBitstreamError, nal_units


def check_headers(
    codec: str,
    extradata: bytes,
    packets: Sequence[memoryview],
    roles: Sequence[PacketRole],
    times: Sequence[int],
) -> None:
    """Check picture order and references of a stream; of codecs other than H.264 and HEVC nothing is checked.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: the codec's configuration record.
        packets: content of each packet, in file order.
        roles: what `packet_roles` says of them.
        times: their timestamps.

    Raises:
        UnclearBitstreamError: a header cannot be read or does not fit; decode them all, in order.
    """
    try:
        if codec == "h264":
            _check_h264(extradata, packets, roles, times)
        elif codec == "hevc":
            _check_hevc(extradata, packets, roles, times)
    except (EndOfBitsError, IndexError) as error:
        raise UnclearBitstreamError("a header cannot be read") from error


def _check_h264(
    extradata: bytes, packets: Sequence[memoryview], roles: Sequence[PacketRole], times: Sequence[int]
) -> None:
    """`frame_num` (7.4.3) and picture order count (8.2.1)."""
    size = (extradata[4] & 3) + 1
    units = h264_headers.configuration_units(extradata)
    pictures = h264_headers.parameter_sets([*units, *nal_units(packets[0], size)])
    orders: list[int | None] = []
    number = reference_order = 0
    for packet, role in zip(packets, roles, strict=True):
        slices = [unit for unit in nal_units(packet, size) if unit[0] & 0x1F in (1, 5)]
        headers = [h264_headers.slice_header(unit, pictures) for unit in slices]
        first = headers[0]
        expected = 0 if role.restart else (number + 1) % (1 << first.number_bits)
        if any((one.frame_number, one.order_lsb) != (expected, first.order_lsb) for one in headers):
            raise UnclearBitstreamError("a picture has another number than its place")
        blocks = [one.first_block for one in headers]
        if blocks[0] != 0 or any(after <= before for before, after in pairwise(blocks)):
            raise UnclearBitstreamError("the slices of a picture are not in order")
        if first.order_lsb is None or first.order_bits is None:
            order = None
        else:
            order = _nearest(first.order_lsb, first.order_bits, 0 if role.restart else reference_order)
        orders.append(order)
        if slices[0][0] & 0x60:  # nal_ref_idc: the next picture has the next number
            number, reference_order = expected, order or 0
    _check_order(orders, [role.restart for role in roles], times)


def _check_hevc(
    extradata: bytes, packets: Sequence[memoryview], roles: Sequence[PacketRole], times: Sequence[int]
) -> None:
    """Picture order count (8.3.1) and reference picture sets (8.3.2)."""
    size = (extradata[21] & 3) + 1
    units = hevc_headers.configuration_units(extradata)
    pictures = hevc_headers.parameter_sets([*units, *nal_units(packets[0], size)])
    orders: list[int | None] = []
    begins: list[bool] = []
    held: dict[int, bool] = {}  # by order count: may others refer to it?
    base = 0
    for packet, role in zip(packets, roles, strict=True):
        slices = [unit for unit in nal_units(packet, size) if unit[0] >> 1 & 0x3F < 32]
        if len(slices) > 1:  # only the end of the last would show that a slice has ended early
            raise UnclearBitstreamError("an HEVC picture of several slices")
        kind, temporal = slices[0][0] >> 1 & 0x3F, slices[0][1] & 7
        header = hevc_headers.slice_header(slices[0], pictures)
        begins.append(kind in (19, 20) or not begins)
        if begins[-1]:
            held, base = {}, 0
        order = _nearest(header.order_lsb, header.order_bits, base)
        if not all(held.get(order + distance) for distance, used in header.references if used):
            raise UnclearBitstreamError("a picture refers to one that is not there")
        kept = (order + distance for distance, _ in header.references)
        held = {**{other: held[other] for other in kept if other in held}, order: role.reference}
        if temporal == 1 and not role.leading and (kind >= 16 or kind % 2):
            base = order
        orders.append(order)
    _check_order(orders, begins, times)


def _nearest(lsb: int, size: int, before: int) -> int:
    """The order count with these low bits that is nearest to an earlier one."""
    whole = 1 << size
    order = (before & -whole) | lsb
    if before - order >= whole // 2:
        return order + whole
    return order - whole if order - before > whole // 2 else order


def _check_order(orders: Sequence[int | None], begins: Sequence[bool], times: Sequence[int]) -> None:
    """Between two beginnings, timestamps and order counts must rise together."""
    starts = [index for index, is_first in enumerate(begins) if is_first]
    for start, end in pairwise([*starts, len(begins)]):
        by_time = sorted(range(start, end), key=times.__getitem__)
        counts = [order for index in by_time if (order := orders[index]) is not None]
        if any(after <= before for before, after in pairwise(counts)):
            raise UnclearBitstreamError("pictures are not in the order of their timestamps")
