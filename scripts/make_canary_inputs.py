"""Makes the files of `clipfarm_dagster/canary/inputs`, as they were made once.

They are committed, since another encoder would make other files, and stored baselines belong to these very
bytes: never write over them. Usage: `python scripts/make_canary_inputs.py FOLDER`.
"""

from __future__ import annotations

import io
import json
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

WIDTH, HEIGHT, FRAMES = 288, 240, 40
SAMPLE_RATE, SECONDS = 44_100, 0.1


def clip() -> bytes:
    """A moving weave of coarse and fine stripes with a bright square: H.264, B-frames, two keyframes."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=24, options={"crf": "38", "bf": "2", "g": "20", "threads": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, 24)
        for i in range(FRAMES):
            coarse = np.sin((x + 5 * i) / 23) * np.cos((y - 3 * i) / 17)
            fine = np.sin((x * 0.9 + y * 0.4 + 2 * i) / 2.2)
            frame = np.stack(
                [128 + 70 * coarse + 30 * fine, 128 + 60 * np.sin((x - 4 * i) / 31), 128 - 80 * coarse],
                axis=-1,
            )
            left, top = 10 + 5 * i, 40 + 3 * i
            frame[top : top + 48, left : left + 48] = (250, 240, 60)
            picture = av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def sound() -> bytes:
    """A chirp over all audible pitches with noise, in stereo, 16 bits."""
    time = np.arange(int(SAMPLE_RATE * SECONDS)) / SAMPLE_RATE
    noise = np.random.default_rng(0).normal(size=(time.size, 2))
    chirp = np.sin(2 * np.pi * (80 * time + 0.5 * (20_000 - 80) / SECONDS * time**2))
    samples = 0.5 * chirp[:, None] * [1.0, 0.7] + 0.1 * noise
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def text() -> bytes:
    """A row of metadata and a transcript, with words and characters of several scripts."""
    document = {
        "title": "Canary: a jar of sunlight, filmed twice",
        "description": "Crème brûlée at −4 °C… 日本語のラベル, emoji 🐤, and a link: https://example.org/?q=1",
        "query": "canary song",
        "transcript": "One, two, three. The quick brown fox isn't here today; the lazy dog is.",
    }
    return json.dumps(document, ensure_ascii=False, indent=1).encode()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(clip())
    (folder / "sound.wav").write_bytes(sound())
    (folder / "text.json").write_bytes(text())
