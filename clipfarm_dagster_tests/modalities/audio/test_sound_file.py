"""What libsndfile cannot read, FFmpeg reads, and gives the samples that librosa gets from it."""

from __future__ import annotations

import io
import shutil
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.audio.encoder import AudioPreparer
from clipfarm_dagster.modalities.audio.sound_file import read_sound
from clipfarm_dagster_tests.support.sounds import wav
from workbench.clips import ClipSpec, encode

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the standard library's modules that it imports
    from librosa import load as librosa_load

PREPARER = AudioPreparer(normalise=False, sample_rate=16_000, max_seconds=2.0, min_samples=400)
LOSSLESS = [("ogg", "flac"), ("matroska", "flac"), ("mov", "pcm_s16le"), ("matroska", "pcm_s16le")]
LOSSY = [("mp4", "aac"), ("adts", "aac"), ("webm", "libopus")]


def noise(channels: int, rate: int, seconds: float = 3.0) -> np.ndarray:
    """int16 (samples, channels)."""
    shape = (round(seconds * rate), channels)
    return np.random.default_rng(channels).normal(0, 3000, shape).astype(np.int16)


def muxed(samples: np.ndarray, container: str, codec: str, rate: int) -> bytes:
    """A sound in a container, by FFmpeg."""
    with io.BytesIO() as file:
        with av.open(file, "w", format=container) as out:
            channels = samples.shape[1]
            stream = out.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
            assert isinstance(stream, av.AudioStream)
            for start in range(0, len(samples), 960):
                part = np.ascontiguousarray(samples[start : start + 960]).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout=stream.layout.name)
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return file.getvalue()


def by_librosa(data: bytes, folder: Path) -> np.ndarray:
    """Samples as librosa gives them with the program ffmpeg's help."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed")
    (folder / "sound").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa tells that it turns to ffmpeg
        return librosa_load(folder / "sound", sr=16_000, mono=True, duration=2.0, res_type="soxr_hq")[0]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("container", "codec"), LOSSLESS)
def test_lossless_samples_come_back_as_they_were(container: str, codec: str, channels: int):
    samples = noise(channels, 44_100)

    sound = read_sound(muxed(samples, container, codec, 44_100), max_seconds=2.0)

    assert (sound.rate, sound.note) == (44_100, None)
    expected = samples[:88_200].astype(np.float32) / 32_768
    np.testing.assert_array_equal(sound.samples, np.mean(expected.T, axis=0))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("container", "codec"), LOSSLESS + LOSSY)
def test_equals_librosa_with_ffmpeg(container: str, codec: str, channels: int, tmp_path: Path):
    data = muxed(noise(channels, 48_000), container, codec, 48_000)
    expected = by_librosa(data, tmp_path)

    found = PREPARER(data, {}).inputs

    assert found.shape == expected.shape
    if (container, codec) in LOSSLESS:
        np.testing.assert_array_equal(found, expected)
    # versions of FFmpeg differ in how they round what lossy codecs give, to the last of 16 bits
    np.testing.assert_allclose(found, expected, atol=2 / 32_768)


def test_flac_in_ogg_of_another_program(shared_folder: Path, tmp_path: Path):
    data = (shared_folder / "media" / "telling" / "771acfec9d.ogg").read_bytes()
    expected = by_librosa(data, tmp_path)

    prepared = PREPARER(data, {})

    np.testing.assert_array_equal(prepared.inputs, expected)
    assert prepared.note is None


@pytest.mark.parametrize(
    "name",
    ["sample.mp4", "nasa_13013.mp4", "sample_fragmented.mp4", "sample_audio_only.mp4"]
    + [f"telling/{name}" for name in ("2eb15389a7.mp4", "1227ad4e55.mp4", "26fae0c55c.mp4")],
)
def test_the_sound_of_a_clip_is_the_one_that_ffmpeg_takes(name: str, shared_folder: Path, tmp_path: Path):
    data = (shared_folder / "media" / name).read_bytes()
    expected = by_librosa(data, tmp_path)

    found = PREPARER(data, {}).inputs

    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2 / 32_768)


def test_a_damaged_packet_is_passed_over_and_noted():
    data = muxed(noise(1, 16_000), "matroska", "flac", 16_000)
    with av.open(io.BytesIO(data), "r") as container:
        packets = [bytes(packet) for packet in container.demux() if packet.size]
    place = data.index(packets[len(packets) // 2])
    whole = read_sound(data, max_seconds=9.0)

    damaged = read_sound(data[:place] + bytes(8) + data[place + 8 :], max_seconds=9.0)

    assert damaged.note == "a packet of the sound could not be decoded"
    assert 0 < len(whole.samples) - len(damaged.samples) < 10_000
    np.testing.assert_array_equal(damaged.samples[:10_000], whole.samples[:10_000])
    np.testing.assert_array_equal(damaged.samples[-10_000:], whole.samples[-10_000:])


def test_what_libsndfile_reads_is_read_by_it_alone(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("FFmpeg was asked")

    monkeypatch.setattr(av, "open", refuse)
    assert len(read_sound(wav(1.0), max_seconds=9.0).samples) == 16_000


def test_a_clip_without_sound_is_refused_by_that_name():
    with pytest.raises(InvalidRawObjectError, match=r"cannot be decoded: .*no audio stream"):
        read_sound(encode(ClipSpec(frames=5)), max_seconds=9.0)


def test_encrypted_samples_are_refused(shared_folder: Path):
    data = (shared_folder / "media" / "telling" / "4efa9fb473.mp4").read_bytes()
    with pytest.raises(InvalidRawObjectError, match=r"cannot be decoded: .*encrypted"):
        read_sound(data, max_seconds=9.0)


@pytest.mark.parametrize("start", [b"", b"RIFF", b"<!DOCTYPE html>", b"#EXTM3U\nfile:///etc/passwd\n"])
def test_what_is_no_sound_is_refused(start: bytes):
    draw = np.random.default_rng(0)
    for size in (0, 10, 1000, 100_000):
        with pytest.raises(InvalidRawObjectError, match="cannot be decoded"):
            read_sound(start + draw.bytes(size), max_seconds=9.0)
