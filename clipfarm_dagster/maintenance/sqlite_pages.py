"""Where the values of rows begin and end in the bytes of SQLite's files.

A row's values follow each other without a gap: the id `clip-1`, followed by a value that begins with `2`,
reads like the id `clip-12`. Here it is told which bytes belong to more than one value. The format is fixed
for good: https://www.sqlite.org/fileformat.html.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

_LOG_MAGIC = (0x377F0682, 0x377F0683)
_LOG_HEADER, _FRAME_HEADER = 32, 24
_FILE_HEADER = 100
_INTERIOR_INDEX, _INTERIOR_TABLE, _LEAF_INDEX, _LEAF_TABLE = 2, 5, 10, 13
_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)
"""Bytes of a value of the first serial types."""


@dataclass(frozen=True)
class Pages:
    """The pages of a database, or of its write-ahead log."""

    data: mmap.mmap | bytes
    first: int
    """Offset of the first page."""
    size: int
    gap: int
    """Bytes between two pages."""

    @classmethod
    def of(cls, data: mmap.mmap | bytes) -> Pages | None:
        """Those of a file; None if it is neither of the two."""
        if data[:16] == b"SQLite format 3\0":
            size = int.from_bytes(data[16:18], "big")
            return cls(data, 0, 65536 if size == 1 else size, 0)
        if int.from_bytes(data[:4], "big") in _LOG_MAGIC:
            size = int.from_bytes(data[8:12], "big")
            return cls(data, _LOG_HEADER + _FRAME_HEADER, size, _FRAME_HEADER)
        return None

    def in_two_values(self, at: int, length: int) -> bool:
        """Whether some bytes begin in one value of a row and end in another, or in what follows. False where
        no row is, as where one was deleted, and on the further pages of a long row."""
        if self.size < 512 or at < self.first:
            return False
        number, offset = divmod(at - self.first, self.size + self.gap)
        start = self.first + number * (self.size + self.gap)
        page = bytes(self.data[start : start + self.size])
        is_head = page.startswith(b"SQLite format 3\0")
        return offset < len(page) and _in_two_values(page, _FILE_HEADER if is_head else 0, offset, length)


def _in_two_values(page: bytes, head: int, at: int, length: int) -> bool:
    kind = page[head]
    if kind not in (_INTERIOR_INDEX, _LEAF_INDEX, _LEAF_TABLE):
        return False
    cell = _cell_before(page, head, at)
    if cell is None:
        return False
    position = cell + (4 if kind == _INTERIOR_INDEX else 0)
    payload, position = _varint(page, position)
    if kind == _LEAF_TABLE:
        _, position = _varint(page, position)
    end = position + _local_bytes(len(page), kind, payload)
    if not position <= at < end:
        return False
    header, types_at = _varint(page, position)
    value_at = position + header
    if at < value_at:  # in the header, which says how long the values are
        return at + length > value_at
    while types_at < position + header:
        kind_of_value, types_at = _varint(page, types_at)
        value_end = value_at + _bytes_of(kind_of_value)
        if value_at <= at < value_end:
            return at + length > value_end
        value_at = value_end
    return False


def _cell_before(page: bytes, head: int, at: int) -> int | None:
    """Offset of the last cell that begins no later than `at`."""
    count = int.from_bytes(page[head + 3 : head + 5], "big")
    pointers = head + (12 if page[head] == _INTERIOR_INDEX else 8)
    if pointers + 2 * count > len(page):
        return None
    starts = (int.from_bytes(page[p : p + 2], "big") for p in range(pointers, pointers + 2 * count, 2))
    return max((start for start in starts if pointers <= start <= at), default=None)


def _local_bytes(usable: int, kind: int, payload: int) -> int:
    """How much of a row is on its first page."""
    most = usable - 35 if kind == _LEAF_TABLE else (usable - 12) * 64 // 255 - 23
    if payload <= most:
        return payload
    least = (usable - 12) * 32 // 255 - 23
    some = least + (payload - least) % (usable - 4)
    return some if some <= most else least


def _bytes_of(serial_type: int) -> int:
    return _SIZES[serial_type] if serial_type < len(_SIZES) else (serial_type - 12) // 2


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """A number of up to nine bytes, and the offset after it."""
    value = 0
    for count, byte in enumerate(page[at : at + 9]):
        if count == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + count + 1
    return value, len(page)
