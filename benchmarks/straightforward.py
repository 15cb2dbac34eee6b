"""What most people would write: one item at a time, one script a stage. The engine is measured against it.

Download, decode everything, a batch of one through transformers, save, upload, commit.
"""

from __future__ import annotations

import io
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import boto3
import numpy as np


def run(
    stage: str, checkpoint: Path, endpoint: str, bucket: str, video_ids: Sequence[str]
) -> dict[str, float]:
    """Embed the items of a stage. Returns seconds, without the first item: all, and in the model."""
    import torch

    s3 = boto3.client("s3", endpoint_url=endpoint)
    embed, suffix = (_video(checkpoint), ".mp4") if stage == "video" else (_audio(checkpoint), ".wav")
    spent: list[float] = []
    in_model: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        ledger = sqlite3.connect(Path(folder) / "ledger.sqlite")
        ledger.execute("CREATE TABLE processed_items (video_id TEXT PRIMARY KEY, status TEXT)")
        for video_id in video_ids:
            start = time.perf_counter()
            raw = Path(folder) / f"{video_id}{suffix}"
            s3.download_file(bucket, f"clipfarm/raw/{stage}/{video_id}{suffix}", str(raw))
            with torch.no_grad():
                vector, seconds = embed(raw)
            in_model.append(seconds)
            vector = vector / np.linalg.norm(vector)
            output = Path(folder) / f"{video_id}.npy"
            np.save(output, vector.astype(np.float32))
            s3.upload_file(str(output), bucket, f"straightforward/{stage}/{video_id}.npy")
            ledger.execute("INSERT INTO processed_items VALUES (?, 'success')", (video_id,))
            ledger.commit()
            raw.unlink()
            spent.append(time.perf_counter() - start)
        ledger.close()
    return {"seconds": sum(spent[1:]), "model_seconds": sum(in_model[1:])}


def _video(checkpoint: Path):
    import av
    import torch
    from transformers import VideoMAEModel
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    processor = VideoMAEImageProcessorPil.from_pretrained(checkpoint)
    model = VideoMAEModel.from_pretrained(checkpoint).eval()

    def embed(raw: Path) -> tuple[np.ndarray, float]:
        with av.open(io.BytesIO(raw.read_bytes()), "r") as container:
            stream = container.streams.video[0]
            wanted = {int(i) for i in np.linspace(0, stream.frames - 1, 16)}
            frames = [
                frame.to_ndarray(format="rgb24")
                for n, frame in enumerate(container.decode(stream))
                if n in wanted
            ]
        pixels = torch.from_numpy(np.stack(processor(frames, return_tensors="np")["pixel_values"]))
        start = time.perf_counter()
        state = model(pixels.reshape(1, 16, 3, 224, 224)).last_hidden_state
        return state[0, 0].numpy(), time.perf_counter() - start

    return embed


def _audio(checkpoint: Path):
    import librosa
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(checkpoint)
    model = Wav2Vec2Model.from_pretrained(checkpoint).eval()

    def embed(raw: Path) -> tuple[np.ndarray, float]:
        samples, _ = librosa.load(raw, sr=16_000, mono=True, duration=90)
        values = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values
        start = time.perf_counter()
        state = model(values).last_hidden_state
        return state[0].mean(dim=0).numpy(), time.perf_counter() - start

    return embed
