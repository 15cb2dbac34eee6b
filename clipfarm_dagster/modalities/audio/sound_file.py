"""The samples of a sound file: by libsndfile, and where that fails by FFmpeg, as `librosa.load` does."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from clipfarm_dagster.errors import InvalidRawObjectError

if TYPE_CHECKING:
    import av
    import numpy as np

CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,mp3,aac,ac3,eac3,amr,flac,wav,w64,aiff,caf,au,wv,ape,tta"
)
"""FFmpeg's names of the demuxers that may open a sound: none of them opens a second file by itself."""


@dataclass(frozen=True)
class Sound:
    """A sound as it was recorded, mixed to mono."""

    samples: np.ndarray[Any, Any]
    """float32 (samples,); full scale is 1."""
    rate: float
    """Samples a second."""
    note: str | None = None
    """Set where parts of the sound could not be decoded."""


def read_sound(data: bytes, max_seconds: float) -> Sound:
    """The first `max_seconds` of a sound.

    Raises:
        InvalidRawObjectError: it cannot be decoded, or holds samples that are not finite.
    """
    import numpy as np
    import soundfile

    note = None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            recorded = file.read(frames=int(max_seconds * rate), dtype="float32").T
    except soundfile.LibsndfileError as error:
        try:
            recorded, rate, note = _read_by_ffmpeg(data, max_seconds)
        except InvalidRawObjectError as other:
            raise InvalidRawObjectError(
                f"the sound cannot be decoded: {other} (FFmpeg); {error.error_string} (libsndfile)"
            ) from None
    if not np.isfinite(recorded).all():
        raise InvalidRawObjectError("the sound holds samples that are not finite")
    with np.errstate(over="ignore"):  # the mean of huge samples; the preparer looks at the result
        samples = recorded if recorded.ndim == 1 else np.mean(recorded, axis=0)
    return Sound(samples, float(rate), note)


def _read_by_ffmpeg(data: bytes, max_seconds: float) -> tuple[np.ndarray[Any, Any], int, str | None]:
    """float32 (channels, samples), samples a second, and a note.

    As librosa has the program ffmpeg do it: the audio stream that ffmpeg chooses, in 16 bits, with the
    channels and the rate of its first frame. A packet that cannot be decoded is passed over.
    """
    import numpy as np

    parts: list[np.ndarray[Any, Any]] = []
    with _open_sound(data) as (container, stream):
        decoded = _Decoded(container, stream)
        converted = _In16Bits()
        count, wanted = 0, None
        for frame in decoded:
            for part in converted.take(frame):
                parts.append(part)
                count += len(part)
            wanted = round(max_seconds * converted.rate)
            if count >= wanted:
                break
        else:
            parts += converted.rest()
    if not parts:
        raise InvalidRawObjectError(decoded.problem or "the audio stream is empty")
    recorded = np.concatenate(parts)[:wanted]
    return (recorded.astype(np.float32) * np.float32(1 / 32_768)).T, converted.rate, decoded.note()


class _Decoded:
    """The frames of a stream; afterwards, what could not be decoded."""

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream) -> None:
        self._container, self._stream = container, stream
        self._damaged = 0
        self.problem: str | None = None
        """What the last packet that could not be decoded, or read, failed with."""

    def __iter__(self) -> Iterator[av.AudioFrame]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                if packet.has_sidedata("encryption_info"):
                    raise InvalidRawObjectError("its samples are encrypted")
                frames = self._stream.codec_context.decode(packet)
            except MemoryError:  # FFmpeg's own is an FFmpegError too; it says nothing about the file
                raise
            except av.error.FFmpegError as error:
                self._damaged += 1
                self.problem = error.strerror
                continue
            yield from frames

    def note(self) -> str | None:
        if not self._damaged:
            return None
        packets = "a packet" if self._damaged == 1 else f"{self._damaged} packets"
        return f"{packets} of the sound could not be decoded"


class _In16Bits:
    """Turns frames into int16 (samples, channels), of the first frame's layout and rate."""

    def __init__(self) -> None:
        self.rate = 0
        self._layout: av.AudioLayout | None = None
        self._taken_as: object = None
        self._resampler: av.AudioResampler | None = None

    def take(self, frame: av.AudioFrame) -> list[np.ndarray[Any, Any]]:
        from av.audio.resampler import AudioResampler

        parts: list[np.ndarray[Any, Any]] = []
        if self._layout is None:
            self.rate, self._layout = frame.sample_rate, frame.layout
        if self._taken_as != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
            parts += self.rest()
            self._resampler = AudioResampler(format="s16", layout=self._layout, rate=self.rate)
            self._taken_as = form
        assert self._resampler is not None
        frame.pts = None  # gaps between frames are not filled
        return parts + [self._array(made) for made in self._resampler.resample(frame)]

    def rest(self) -> list[np.ndarray[Any, Any]]:
        if self._resampler is None:
            return []
        return [self._array(made) for made in self._resampler.resample(None)]

    def _array(self, frame: av.AudioFrame) -> np.ndarray[Any, Any]:
        return frame.to_ndarray().reshape(-1, frame.layout.nb_channels)


@contextmanager
def _open_sound(data: bytes) -> Iterator[tuple[av.container.InputContainer, av.AudioStream]]:
    import av

    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        container = av.open(
            io.BytesIO(data), "r", options=options, io_open=_refuse, metadata_errors="replace"
        )
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise InvalidRawObjectError(error.strerror) from error
    with container:
        stream = max(container.streams.audio, key=_preference, default=None)
        if stream is None:
            raise InvalidRawObjectError("the file has no audio stream")
        if stream.codec_context is None:
            raise InvalidRawObjectError("there is no decoder for the audio stream's codec")
        stream.codec_context.thread_count = 1
        yield container, stream


def _preference(stream: av.AudioStream) -> tuple[bool, bool, int]:
    """By this the program ffmpeg chooses an audio stream, which is not `av_find_best_stream`'s choice; of
    equal ones the first."""
    import av

    decoder = stream.codec_context
    channels = 0 if decoder is None else decoder.channels
    return channels > 0, bool(stream.disposition & av.stream.Disposition.default), channels


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"a sound refers to another file: {url!r}")
