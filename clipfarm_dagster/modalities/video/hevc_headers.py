"""Parameter sets and slice headers of HEVC as far as they tell which pictures a picture refers to.

Pure functions over bytes; numbers of sections are those of ITU-T H.265.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clipfarm_dagster.modalities.video.bits import Bits, EndOfBitsError, sized_units

ReferenceSet = tuple[tuple[int, bool], ...]
"""Distances in picture order count, each with whether the picture itself refers there; those before it by
closeness, then those after it."""

_SPS, _PPS = 33, 34
_HEADER_BYTES = 64
"""Enough for any slice header up to its reference picture set."""


@dataclass(frozen=True)
class Sequence:
    """What a sequence parameter set says (7.3.2.2)."""

    separate_colours: bool
    order_bits: int
    sets: tuple[ReferenceSet, ...]
    long_term: bool
    long_term_candidates: int


@dataclass(frozen=True)
class Picture:
    """What a picture parameter set says (7.3.2.3)."""

    sequence: Sequence
    output_flag: bool
    extra_bits: int


@dataclass(frozen=True)
class SliceHeader:
    """The beginning of a slice segment header (7.3.6.1)."""

    order_lsb: int
    order_bits: int
    references: ReferenceSet


def parameter_sets(units: Iterable[bytes | memoryview]) -> dict[int, Picture]:
    """Picture parameter sets by id, of NAL units in their order; a later one replaces an earlier one.

    Raises:
        EndOfBitsError: one of them cannot be read.
    """
    sequences: dict[int, Sequence] = {}
    pictures: dict[int, Picture] = {}
    for unit in units:
        kind, bits = unit[0] >> 1 & 0x3F, Bits(unit, 2)
        if kind == _SPS:
            number, sequence = _sequence(bits)
            sequences[number] = sequence
        elif kind == _PPS:
            number, of = bits.ue(), bits.ue()
            if of not in sequences:
                raise EndOfBitsError
            bits.u(1)
            pictures[number] = Picture(sequences[of], bool(bits.u(1)), bits.u(3))
    return pictures


def configuration_units(record: bytes) -> list[bytes]:
    """NAL units of an hvcC record (ISO/IEC 14496-15, 8.3.3.1)."""
    units: list[bytes] = []
    position = 23
    for _ in range(record[22]):
        how_many = int.from_bytes(record[position + 1 : position + 3], "big")
        found, position = sized_units(record, position + 3, how_many)
        units += found
    return units


def slice_header(unit: memoryview, pictures: Mapping[int, Picture]) -> SliceHeader:
    """The header of a picture's first slice.

    Raises:
        EndOfBitsError: it cannot be read, is not the first, or refers to long-term pictures.
    """
    kind, bits = unit[0] >> 1 & 0x3F, Bits(unit[:_HEADER_BYTES], 2)
    first = bits.u(1)
    if kind >= 16:
        bits.u(1)  # no_output_of_prior_pics_flag
    picture = pictures.get(bits.ue())
    if not first or picture is None:
        raise EndOfBitsError
    sequence = picture.sequence
    if picture.extra_bits:
        bits.u(picture.extra_bits)
    if bits.ue() > 2 or (picture.output_flag and not bits.u(1)):  # slice_type; a hidden picture
        raise EndOfBitsError
    if sequence.separate_colours:
        bits.u(2)
    if kind in (19, 20):  # IDR
        return SliceHeader(0, sequence.order_bits, ())
    lsb = bits.u(sequence.order_bits)
    if not bits.u(1):
        references = _reference_set(bits, len(sequence.sets), sequence.sets)
    else:
        size = max(0, len(sequence.sets) - 1).bit_length()
        number = bits.u(size) if size else 0
        if number >= len(sequence.sets):
            raise EndOfBitsError
        references = sequence.sets[number]
    if sequence.long_term and ((sequence.long_term_candidates and bits.ue()) or bits.ue()):
        raise EndOfBitsError
    return SliceHeader(lsb, sequence.order_bits, references)


def _sequence(bits: Bits) -> tuple[int, Sequence]:
    bits.u(4)
    layers = bits.u(3)  # less one
    bits.u(1)
    _profile(bits, layers)
    number, colours = bits.ue(), bits.ue()
    separate = colours == 3 and bool(bits.u(1))
    bits.pass_over(ue=2)
    if bits.u(1):  # conformance window
        bits.pass_over(ue=4)
    bits.pass_over(ue=2)
    order_bits = bits.ue() + 4
    for _ in range(layers + 1 if bits.u(1) else 1):
        bits.pass_over(ue=3)
    bits.pass_over(ue=6)
    if bits.u(1) and bits.u(1):
        _scaling_lists(bits)
    bits.u(2)
    if bits.u(1):  # PCM
        bits.u(8)
        bits.pass_over(ue=2, bits=1)
    how_many = bits.ue()
    if order_bits > 16 or how_many > 64:
        raise EndOfBitsError
    sets: list[ReferenceSet] = []
    for index in range(how_many):
        sets.append(_reference_set(bits, index, sets, within_sequence=True))
    long_term = bool(bits.u(1))
    candidates = bits.ue() if long_term else 0
    return number, Sequence(separate, order_bits, tuple(sets), long_term, candidates)


def _profile(bits: Bits, layers: int) -> None:
    bits.u(96)
    present = [(bits.u(1), bits.u(1)) for _ in range(layers)]
    if layers:
        bits.u(2 * (8 - layers))
    for profile, level in present:
        bits.pass_over(bits=88 * profile + 8 * level)


def _scaling_lists(bits: Bits) -> None:
    """7.3.4."""
    for size in range(4):
        for _ in range(2 if size == 3 else 6):
            if not bits.u(1):
                bits.ue()
            else:
                bits.pass_over(ue=(size > 1) + min(64, 1 << (4 + 2 * size)))


def _reference_set(
    bits: Bits,
    index: int,
    sets: list[ReferenceSet] | tuple[ReferenceSet, ...],
    *,
    within_sequence: bool = False,
) -> ReferenceSet:
    """7.3.7; with prediction from another set, 7.4.8."""
    if index and bits.u(1):
        back = 1 if within_sequence else bits.ue() + 1
        if back > index:
            raise EndOfBitsError
        sign, size = bits.u(1), bits.ue() + 1
        shift = -size if sign else size
        found = []
        for distance in [*(distance for distance, _ in sets[index - back]), 0]:
            used = bool(bits.u(1))
            kept = used or bits.u(1)
            if kept and distance + shift:
                found.append((distance + shift, used))
        return _in_order(found)
    before, after = bits.ue(), bits.ue()
    if before + after > 16:
        raise EndOfBitsError
    found = []
    for how_many, direction in ((before, -1), (after, 1)):
        distance = 0
        for _ in range(how_many):
            distance += direction * (bits.ue() + 1)
            found.append((distance, bool(bits.u(1))))
    return tuple(found)


def _in_order(found: list[tuple[int, bool]]) -> ReferenceSet:
    before = sorted((entry for entry in found if entry[0] < 0), reverse=True)
    return (*before, *sorted(entry for entry in found if entry[0] > 0))
