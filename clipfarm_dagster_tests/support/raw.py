"""Raw artifacts and metadata for tests, put where a crawler would put them."""

from __future__ import annotations

import csv
import io
import json
import wave
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.stages import Stage

COLUMNS = ("video_id", "captured_at", "title", "description", "query")


def metadata_row(video_id: str, *, captured_at: str = "2026-01-01T00:00:00Z", **texts: str) -> dict[str, str]:
    """A row of the metadata CSV."""
    texts = {"title": f"title of {video_id}", "description": "description", "query": "query", **texts}
    return {"video_id": video_id, "captured_at": captured_at, **texts}


def put_metadata(corpus: Corpus, rows: Iterable[Mapping[str, str]], columns: Sequence[str] = COLUMNS) -> None:
    """Write the metadata CSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    corpus.store.put(corpus.keys.metadata(), text.getvalue().encode())


def put_transcript(corpus: Corpus, video_id: str, transcript: str) -> None:
    """Write a raw text artifact."""
    data = json.dumps({"transcript": transcript}).encode()
    corpus.store.put(corpus.keys.raw(Stage.TEXT, video_id), data)


def wav(seconds: float = 0.5, rate: int = 16_000, pitch: float = 440.0) -> bytes:
    """A 16-bit mono WAV with a tone."""
    samples = np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * pitch / rate) * 20_000
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def put_media(corpus: Corpus, media: Path) -> dict[str, Path]:
    """Lay out the shared media as raw artifacts; returns the video files by `video_id`."""
    videos = {path.stem: path for path in sorted(media.iterdir()) if path.suffix in {".mp4", ".webm"}}
    sounds = sorted(media.glob("*.wav"))
    for number, (video_id, path) in enumerate(videos.items()):
        corpus.store.put(corpus.keys.raw(Stage.VIDEO, video_id), path.read_bytes())
        sound = sounds[number % len(sounds)]
        corpus.store.put(corpus.keys.raw(Stage.AUDIO, video_id), sound.read_bytes())
        put_transcript(corpus, video_id, f"what is said in {video_id}")
    return videos
