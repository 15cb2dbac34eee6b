"""Parameter sets and slice headers of H.264: the order of pictures, and what a decoder would reject.

Pure functions over bytes; numbers of sections are those of ITU-T H.264.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clipfarm_dagster.modalities.video.bits import Bits, EndOfBitsError, sized_units

_SPS, _PPS = 7, 8
_WITH_COLOURS = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)
"""Profiles whose parameter sets tell of colours and scaling (7.3.2.1.1)."""
_HEADER_BYTES = 32
"""Enough for the header of a slice without tables of weights."""
_MOST_REFERENCES = 16
_P, _B, _SP, _SI = 0, 1, 3, 4  # slice types


@dataclass(frozen=True)
class Sequence:
    """What a sequence parameter set says (7.3.2.1.1)."""

    separate_colours: bool
    depth: int
    number_bits: int
    order_bits: int | None
    """None where pictures are shown in the order of decoding (type 2)."""
    frames_alone: bool


@dataclass(frozen=True)
class Picture:
    """What a picture parameter set says (7.3.2.2)."""

    sequence: Sequence
    arithmetic: bool
    order_of_fields: bool
    references: tuple[int, int]
    weighted: bool
    weighted_both: int
    quantizer: int
    deblocking_control: bool
    redundant: bool


@dataclass(frozen=True)
class SliceHeader:
    """What of a slice header (7.3.3) tells its place."""

    first_block: int
    frame_number: int
    number_bits: int
    order_lsb: int | None
    order_bits: int | None


def parameter_sets(units: Iterable[bytes | memoryview]) -> dict[int, Picture]:
    """Picture parameter sets by id, of NAL units in their order; a later one replaces an earlier one.

    Raises:
        EndOfBitsError: one of them cannot be read, or is of a kind that is not supported.
    """
    sequences: dict[int, Sequence] = {}
    pictures: dict[int, Picture] = {}
    for unit in units:
        kind, bits = unit[0] & 0x1F, Bits(unit, 1)
        if kind == _SPS:
            number, sequence = _sequence(bits)
            sequences[number] = sequence
        elif kind == _PPS:
            number, of = bits.ue(), bits.ue()
            if of not in sequences:
                raise EndOfBitsError
            pictures[number] = _picture(bits, sequences[of])
    return pictures


def configuration_units(record: bytes) -> list[bytes]:
    """NAL units of an avcC record (ISO/IEC 14496-15, 5.3.3.1)."""
    sequences, position = sized_units(record, 6, record[5] & 0x1F)
    pictures, _ = sized_units(record, position + 1, record[position])
    return sequences + pictures


def slice_header(unit: memoryview, pictures: Mapping[int, Picture]) -> SliceHeader:
    """The header of a slice of a whole frame.

    Raises:
        EndOfBitsError: it cannot be read, is of a field, or says what no stream may.
    """
    bits = Bits(unit[:_HEADER_BYTES], 1)
    first_block, kind = bits.ue(), bits.ue()
    picture = pictures.get(bits.ue())
    if kind > 9 or picture is None:
        raise EndOfBitsError
    sequence = picture.sequence
    if sequence.separate_colours:
        bits.u(2)
    frame_number = bits.u(sequence.number_bits)
    if not sequence.frames_alone and bits.u(1):
        raise EndOfBitsError
    if unit[0] & 0x1F == 5:
        bits.ue()  # idr_pic_id
    lsb = None
    if sequence.order_bits is not None:
        lsb = bits.u(sequence.order_bits)
        if picture.order_of_fields:
            bits.se()
    _check_rest(bits, kind % 5, picture, unit[0])
    return SliceHeader(first_block, frame_number, sequence.number_bits, lsb, sequence.order_bits)


def _check_rest(bits: Bits, kind: int, picture: Picture, header: int) -> None:
    """Read on to the deblocking filter, and raise where a decoder would reject the slice."""
    if picture.redundant:
        bits.ue()
    if kind == _B:
        bits.u(1)  # direct_spatial_mv_pred_flag
    lists = {_P: 1, _SP: 1, _B: 2}.get(kind, 0)
    references = list(picture.references[:lists])
    if lists and bits.u(1):
        references = [bits.ue() + 1 for _ in references]
    if any(how_many > _MOST_REFERENCES for how_many in references):
        raise EndOfBitsError
    for how_many in references:
        _check_modification(bits, how_many)
    if (picture.weighted and kind in (_P, _SP)) or (picture.weighted_both == 1 and kind == _B):
        return  # the tables may be longer than what was taken of the slice
    if header & 0x60:
        return  # of pictures that others refer to, none is skipped
    if picture.arithmetic and lists and bits.ue() > 2:
        raise EndOfBitsError
    quantizer = picture.quantizer + bits.se()
    if not -6 * (picture.sequence.depth - 8) <= quantizer <= 51:
        raise EndOfBitsError
    if kind in (_SP, _SI):
        raise EndOfBitsError
    if picture.deblocking_control:
        switch = bits.ue()
        if switch > 2 or (switch != 1 and any(abs(bits.se()) > 6 for _ in range(2))):
            raise EndOfBitsError


def _check_modification(bits: Bits, references: int) -> None:
    """7.3.3.1: changes to a list of reference pictures, at most one for each."""
    if not bits.u(1):
        return
    for _ in range(references + 1):
        operation = bits.ue()
        if operation == 3:
            return
        if operation > 2:
            break
        bits.ue()
    raise EndOfBitsError


def _picture(bits: Bits, sequence: Sequence) -> Picture:
    arithmetic, order_of_fields = bool(bits.u(1)), bool(bits.u(1))
    if bits.ue():  # groups of slices
        raise EndOfBitsError
    references = bits.ue() + 1, bits.ue() + 1
    weighted, weighted_both = bool(bits.u(1)), bits.u(2)
    quantizer = 26 + bits.se()
    bits.pass_over(ue=2)
    control, _, redundant = bits.u(1), bits.u(1), bits.u(1)
    return Picture(
        sequence=sequence,
        arithmetic=arithmetic,
        order_of_fields=order_of_fields,
        references=references,
        weighted=weighted,
        weighted_both=weighted_both,
        quantizer=quantizer,
        deblocking_control=bool(control),
        redundant=bool(redundant),
    )


def _sequence(bits: Bits) -> tuple[int, Sequence]:
    profile = bits.u(8)
    bits.u(16)
    number, colours, separate, depth = bits.ue(), 1, False, 8
    if profile in _WITH_COLOURS:
        colours = bits.ue()
        separate = colours == 3 and bool(bits.u(1))
        depth = bits.ue() + 8
        bits.pass_over(ue=1, bits=1)
        if bits.u(1):
            _scaling_lists(bits, 12 if colours == 3 else 8)
    number_bits, order_type = bits.ue() + 4, bits.ue()
    order_bits = bits.ue() + 4 if order_type == 0 else None
    if order_type not in (0, 2) or number_bits > 16 or (order_bits or 0) > 16:
        raise EndOfBitsError
    bits.pass_over(ue=1, bits=1)
    bits.pass_over(ue=2)
    return number, Sequence(separate, depth, number_bits, order_bits, bool(bits.u(1)))


def _scaling_lists(bits: Bits, how_many: int) -> None:
    """7.3.2.1.1.1."""
    for number in range(how_many):
        if not bits.u(1):
            continue
        last = following = 8
        for _ in range(16 if number < 6 else 64):
            if following:
                following = (last + bits.se()) % 256
            last = following or last
