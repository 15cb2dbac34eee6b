"""The demo corpus: a dozen short clips in four themes, encoded for real, with the words that go with them.

Nothing is downloaded: pictures and sounds are drawn and synthesised (`scenes`), then encoded as H.264 and
AAC in MP4 and as 16-bit WAV. The same arguments give the same bytes on the same machine.
"""

from __future__ import annotations

import csv
import io
import json
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from clipfarm_dagster.demo.clips import CLIPS, Clip

METADATA_COLUMNS = (
    "video_id",
    "captured_at",
    "title",
    "description",
    "query",
    "channel",
    "duration_seconds",
    "view_count",
)

_FIRST_CAPTURE = datetime(2025, 5, 1, 8, tzinfo=UTC)


@dataclass(frozen=True)
class DemoVideo:
    """One video as a crawler would have left it: raw artifacts, and its rows of the metadata CSV."""

    video_id: str
    theme: str
    mp4: bytes
    wav: bytes
    transcript: str
    rows: list[dict[str, str]]
    """One row per snapshot, oldest first; the keys are `METADATA_COLUMNS`."""

    @property
    def transcript_json(self) -> bytes:
        """The raw text artifact."""
        return json.dumps({"transcript": self.transcript}, ensure_ascii=False, indent=2).encode() + b"\n"


def demo_videos(count: int = 12, seed: int = 0) -> Iterator[DemoVideo]:
    """Draw and encode `count` videos, one at a time; themes take turns.

    Beyond the dozen written clips, further takes of the same clips follow, drawn with other random
    numbers, with `-2`, `-3`, … at the end of their ids.
    """
    for number in range(count):
        take, index = divmod(number, len(CLIPS))
        yield _make(CLIPS[index], take, number, np.random.default_rng([seed, number]))


def metadata_csv(videos: Iterable[DemoVideo]) -> bytes:
    """The metadata CSV (UTF-8, header first) over the videos' rows, in the order they were captured."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, METADATA_COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows = [row for video in videos for row in video.rows]
    writer.writerows(sorted(rows, key=lambda row: row["captured_at"]))
    return text.getvalue().encode()


def _make(clip: Clip, take: int, number: int, rng: np.random.Generator) -> DemoVideo:
    frames_per_second, rate = (24, 25, 30)[number % 3], (22_050, 44_100)[number % 2]
    seconds = float(rng.choice([3.0, 3.5, 4.0, 4.5]))
    width, height = (240, 426) if clip.portrait else (426, 240) if number % 2 else (320, 240)
    scene = clip.draw(width, height, rng)
    sound = scene.sound(seconds, rate)
    frames = (scene.draw(n / frames_per_second) for n in range(round(seconds * frames_per_second)))
    mp4 = encode_mp4(
        (np.clip(frame, 0, 255).astype(np.uint8) for frame in frames),
        size=(width, height),
        frames_per_second=frames_per_second,
        sound=sound,
        sample_rate=rate,
        keyframe_every=(12, 30, 48, 250)[number % 4],
        b_frames=(2, 3)[number % 2],
    )
    suffix, mark = (f"-{take + 1}", f" (take {take + 1})") if take else ("", "")
    video_id = clip.video_id + suffix
    titles = [title + mark for title in (*clip.earlier_titles, clip.title)]
    rows = []
    for snapshot, title in enumerate(titles):
        captured = _FIRST_CAPTURE + timedelta(days=7 * snapshot, minutes=11 * number)
        views = int(rng.integers(200, 5_000)) * (snapshot + 1)
        values = (title, clip.description, clip.query, clip.channel, f"{seconds:g}", str(views))
        rows.append(dict(zip(METADATA_COLUMNS, (video_id, captured.isoformat(), *values), strict=True)))
    return DemoVideo(video_id, clip.theme, mp4, encode_wav(sound, rate), clip.transcript, rows)


def encode_wav(samples: NDArray[np.float32], sample_rate: int) -> bytes:
    """Mono samples within ±1 as a 16-bit PCM WAV."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(sample_rate)
            out.writeframes(_pcm16(samples).tobytes())
        return file.getvalue()


def encode_mp4(
    frames: Iterable[NDArray[np.uint8]],
    *,
    size: tuple[int, int],
    frames_per_second: int,
    sound: NDArray[np.float32],
    sample_rate: int,
    keyframe_every: int,
    b_frames: int,
) -> bytes:
    """RGB frames `(height, width, 3)` and mono samples within ±1 as MP4 with H.264 and AAC.

    `size` is (width, height), both even. Equal arguments give equal bytes: one thread encodes, without x264's
    macroblock tree, which with B-frames comes out differently now and then.
    """
    import av

    with io.BytesIO() as file:
        with av.open(file, "w", format="mp4") as container:
            video = container.add_stream(
                "libx264",
                rate=frames_per_second,
                options={
                    "preset": "veryfast",
                    "crf": "24",
                    "bf": str(b_frames),
                    "threads": "1",
                    "mbtree": "0",
                },
            )
            video.width, video.height = size
            video.pix_fmt = "yuv420p"
            video.time_base = Fraction(1, frames_per_second)
            video.codec_context.gop_size = keyframe_every
            audio = container.add_stream("aac", rate=sample_rate, layout="mono")
            for number, pixels in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode())
            samples = av.AudioFrame.from_ndarray(_pcm16(sound)[None, :], format="s16", layout="mono")
            samples.sample_rate, samples.pts = sample_rate, 0
            container.mux(audio.encode(samples))
            container.mux(audio.encode())
        return file.getvalue()


def _pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2")
