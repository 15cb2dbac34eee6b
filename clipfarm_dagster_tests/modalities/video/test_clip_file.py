"""Which stream of a file counts, and the causes that are given where none can be had."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.video import clip_file
from clipfarm_dagster.modalities.video.clip_file import open_clip
from clipfarm_dagster.modalities.video.frames import sample_frames
from workbench.clips import ClipSpec, encode, picture


def _two_streams(sizes: list[tuple[int, int]], frames: list[int]) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        streams = []
        for width, height in sizes:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition.default
            streams.append(stream)
        for stream, count in zip(streams, frames, strict=True):
            for index in range(count):
                rgb = picture(index, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode())
    return file.getvalue()


def _with_cover(clip: bytes) -> bytes:
    """A clip with a cover picture of more pixels."""
    cover = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(cover, "JPEG")
    file = io.BytesIO()
    with av.open(io.BytesIO(clip), "r") as source, av.open(file, "w", format="mp4") as container:
        attached = container.add_stream("mjpeg", rate=1)
        attached.width, attached.height, attached.pix_fmt = 640, 480, "yuvj420p"
        attached.disposition = av.stream.Disposition.attached_pic
        film = container.add_stream_from_template(source.streams.video[0])
        still = av.Packet(cover.getvalue())
        still.stream, still.pts, still.dts = attached, 0, 0
        container.mux(still)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = film
                container.mux(packet)
    return file.getvalue()


def test_a_thumbnail_before_the_film_is_not_the_film() -> None:
    clip = _two_streams([(64, 48), (160, 120)], [2, 40])
    with av.open(io.BytesIO(clip)) as container:
        assert container.streams.video[0].width == 64
    sampled = sample_frames(clip)
    assert (sampled.total, sampled.frames.shape) == (40, (16, 120, 160, 3))


def test_a_cover_picture_never_counts() -> None:
    film = encode(ClipSpec(frames=1))
    covered = _with_cover(film)
    with av.open(io.BytesIO(covered)) as container:
        attached = [stream.disposition for stream in container.streams.video]
        assert av.stream.Disposition.attached_pic in attached
    np.testing.assert_array_equal(sample_frames(covered).frames, sample_frames(film).frames)


def test_a_tag_that_is_not_utf8_is_no_fault_of_the_clip() -> None:
    file = io.BytesIO()
    clip = io.BytesIO(encode(ClipSpec()))
    with av.open(clip, "r") as source, av.open(file, "w", format="mp4") as container:
        container.metadata["title"] = "A title in Latin 1: caf~"
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    tagged = file.getvalue()
    assert b"caf~" in tagged
    latin = tagged.replace(b"caf~", b"caf\xe9")
    np.testing.assert_array_equal(sample_frames(latin).frames, sample_frames(tagged).frames)


def _of_absurd_size() -> bytes:
    """A file whose table of times claims to have more entries than memory could hold."""
    data = encode(ClipSpec(frames=3))
    at = data.index(b"stts") + 8
    return data[:at] + b"\x7f\xff\xff\xff" + data[at + 4 :]


def test_a_small_file_that_asks_for_absurd_memory_is_invalid_for_that_cause() -> None:
    data = _of_absurd_size()
    with pytest.raises(MemoryError):
        av.open(io.BytesIO(data))
    with pytest.raises(InvalidRawObjectError, match="header asks for more memory than a file of this size"):
        sample_frames(data)


def test_memory_that_has_really_run_out_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_file, "_SMALL_BYTES", 2**62)  # more than any process may take
    with pytest.raises(MemoryError), open_clip(_of_absurd_size(), None):
        pass
