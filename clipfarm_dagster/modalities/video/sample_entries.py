"""Which tracks of an ISO base media file (mp4, mov) are encrypted, from its boxes. Pure functions over bytes.

Decoders get encrypted samples as if they were clear, and may give grey pictures without a word.
"""

from __future__ import annotations

from collections.abc import Iterator

_ENCRYPTED_VIDEO = (b"encv", b"drmi")
"""Types of sample entries: protected video (ISO/IEC 14496-12, 8.12), and Apple's own."""

_FULL_BOX_BYTES = 4
_ENTRY_COUNT_BYTES = 4


def encrypted_tracks(data: bytes) -> set[int]:
    """Ids of the tracks that have a sample entry for encrypted video; none where there are no such boxes."""
    found = set()
    whole = memoryview(data)
    for movie in _boxes(whole, b"moov"):
        for track in _boxes(movie, b"trak"):
            header = next(_boxes(track, b"tkhd"), None)
            if header and any(_is_encrypted(table) for table in _sample_descriptions(track)):
                found.add(_track_id(header))
    return found


def _sample_descriptions(track: memoryview) -> Iterator[memoryview]:
    for media in _boxes(track, b"mdia"):
        for information in _boxes(media, b"minf"):
            for table in _boxes(information, b"stbl"):
                yield from _boxes(table, b"stsd")


def _is_encrypted(sample_description: memoryview) -> bool:
    entries = sample_description[_FULL_BOX_BYTES + _ENTRY_COUNT_BYTES :]
    return any(kind in _ENCRYPTED_VIDEO for kind, _ in _children(entries))


def _track_id(header: memoryview) -> int:
    """ISO/IEC 14496-12, 8.3.2: after two times, which are longer in version 1."""
    at = 20 if header[0] == 1 else 12
    return int.from_bytes(header[at : at + 4], "big")


def _boxes(within: memoryview, kind: bytes) -> Iterator[memoryview]:
    return (content for found, content in _children(within) if found == kind)


def _children(within: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of each box (ISO/IEC 14496-12, 4.2); ends at the first whose size cannot be."""
    position = 0
    while position + 8 <= len(within):
        size, header = int.from_bytes(within[position : position + 4], "big"), 8
        kind = bytes(within[position + 4 : position + 8])
        if size == 1:
            size, header = int.from_bytes(within[position + 8 : position + 16], "big"), 16
        elif size == 0:
            size = len(within) - position
        if size < header:
            return
        yield kind, within[position + header : position + size]
        position += size
