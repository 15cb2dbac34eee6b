"""Reading H.264 and HEVC headers: their bit fields, and the units of a configuration record."""

from __future__ import annotations


class EndOfBitsError(Exception):
    """A header goes on where its bytes end, or holds a number that no stream has."""


class Bits:
    """The bits of a NAL unit's payload, first to last.

    Args:
        unit: the whole unit, or as much of its beginning as matters.
        skip: bytes of its header.
    """

    __slots__ = ("_left", "_value")

    def __init__(self, unit: bytes | memoryview, skip: int) -> None:
        payload = bytes(unit[skip:])
        if b"\0\0\3" in payload:  # emulation prevention: H.264 and H.265, 7.3.1.1
            payload = payload.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(payload, "big"), len(payload) * 8

    def u(self, size: int) -> int:
        """An unsigned number of `size` bits."""
        self._left -= size
        if self._left < 0:
            raise EndOfBitsError
        return self._value >> self._left & ((1 << size) - 1)

    def ue(self) -> int:
        """An unsigned number, Exp-Golomb coded: H.264 and H.265, 9.1 and 9.2."""
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        if zeros > 32 or 2 * zeros + 1 > self._left:
            raise EndOfBitsError
        self._left -= 2 * zeros + 1
        return (rest >> self._left) - 1

    def se(self) -> int:
        """A signed number, Exp-Golomb coded."""
        coded = self.ue()
        return (coded + 1) // 2 if coded & 1 else -(coded // 2)

    def pass_over(self, *, ue: int = 0, bits: int = 0) -> None:
        """Go past some Exp-Golomb codes, and then some bits."""
        for _ in range(ue):
            self.ue()
        if bits:
            self.u(bits)


def sized_units(record: bytes, position: int, how_many: int) -> tuple[list[bytes], int]:
    """NAL units of a configuration record, each after its size in two bytes, and the position behind them."""
    units = []
    for _ in range(how_many):
        size = int.from_bytes(record[position : position + 2], "big")
        units.append(record[position + 2 : position + 2 + size])
        position += 2 + size
    return units, position
