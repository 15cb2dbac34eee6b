from __future__ import annotations

import struct

import pytest

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.video.clip_file import open_clip
from clipfarm_dagster.modalities.video.sample_entries import encrypted_tracks
from workbench.clips import ClipSpec, encode


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def movie(*tracks: tuple[int, bytes], version: int = 0) -> bytes:
    """A movie header of tracks, each with its id and the type of its one sample entry."""
    boxes = b""
    for track_id, entry in tracks:
        times = bytes(16 if version else 8)
        header = box(b"tkhd", bytes((version, 0, 0, 0)) + times + struct.pack(">I", track_id) + bytes(60))
        table = box(b"stbl", box(b"stsd", bytes(4) + struct.pack(">I", 1) + box(entry, bytes(70))))
        boxes += box(b"trak", header + box(b"mdia", box(b"minf", table)))
    return box(b"ftyp", b"isom") + box(b"moov", boxes)


@pytest.mark.parametrize("version", [0, 1])
def test_tracks_of_encrypted_entries_are_found(version: int) -> None:
    file = movie((1, b"avc1"), (7, b"encv"), (8, b"drmi"), (9, b"enca"), version=version)
    assert encrypted_tracks(file) == {7, 8}


def test_clear_and_foreign_files_have_none() -> None:
    assert encrypted_tracks(encode(ClipSpec(frames=3))) == set()
    for data in (b"", b"moov", bytes(100), b"\xff" * 100, encode(ClipSpec(frames=3, container="matroska"))):
        assert encrypted_tracks(data) == set()


def test_every_cut_and_every_wrong_size_ends() -> None:
    file = movie((1, b"encv"))
    for length in range(len(file)):
        assert encrypted_tracks(file[:length]) <= {1}
    for position in range(len(file)):
        for wrong in (0, 1, 7, 255):
            encrypted_tracks(file[:position] + bytes((wrong,)) + file[position + 1 :])


def test_a_clip_of_encrypted_samples_is_refused_whatever_they_would_decode_to() -> None:
    """The samples are clear here: what the boxes say counts, since decoders may say nothing."""
    clear = encode(ClipSpec(frames=3))
    at = clear.index(b"avc1", clear.index(b"stsd"))
    original = box(b"sinf", box(b"frma", b"avc1"))
    assert original not in clear
    with (
        pytest.raises(InvalidRawObjectError, match="encrypted"),
        open_clip(clear[:at] + b"encv" + clear[at + 4 :], None),
    ):
        pass
