"""The audio modality, described."""

from __future__ import annotations

from pathlib import Path

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.dimension import hidden_size
from clipfarm_dagster.modalities.audio.encoder import (
    PREPROCESS_VERSION,
    RESAMPLER,
    AudioEncoder,
    AudioPreparer,
)
from clipfarm_dagster.modalities.modality import CanaryInput, Modality
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract


def _load(
    contract: Contract, settings: Settings, checkpoint: Checkpoint, folder: Path, device: str
) -> AudioEncoder:
    return AudioEncoder(contract, settings.audio, checkpoint, folder, device)


def _previewer(settings: Settings) -> AudioPreparer:
    return AudioPreparer(
        normalise=False,
        sample_rate=settings.audio.sample_rate,
        max_seconds=settings.audio.max_seconds,
        min_samples=1,
    )


_DESCRIPTION = """wav2vec2 over the sound of each clip: mono, 16 kHz, at most 90 seconds, mean over time.

One vector per video, `{folder}/<video_id>.npy`: float32 of unit length. The preview of a partition
that was materialized alone shows the waveform. `embedding_sensor` keeps it up to date."""

AUDIO = Modality(
    stage=Stage.AUDIO,
    embedding_description=_DESCRIPTION,
    raw_description="Audio of the clips, `raw/audio/<video_id>.wav` in the store. Made elsewhere and observed"
    " here: the data version of a partition is its object's ETag.",
    preprocess_name="librosa",
    preprocess_version=PREPROCESS_VERSION,
    preprocess_params=lambda settings: {
        "sample_rate": settings.audio.sample_rate,
        "max_seconds": settings.audio.max_seconds,
        "resampler": RESAMPLER,
    },
    pooling=lambda settings: "mean",
    deciding_settings=lambda contract: {
        "sample_rate": contract.preprocess_params.get("sample_rate"),
        "max_seconds": contract.preprocess_params.get("max_seconds"),
    },
    load=_load,
    dimension=hidden_size,
    previewer=_previewer,
    isolated=True,
    worker_imports=(
        "av",
        "av.audio.resampler",
        "av.logging",
        "clipfarm_dagster.modalities.audio.encoder",
        "clipfarm_dagster.modalities.audio.sound_file",
        "clipfarm_dagster.modalities.previews",
        "numpy",
        "soundfile",
        "soxr",
    ),
    # Resampling in float32 is exact to 1e-6; the nearest other quality of the same resampler is 0.006.
    canary=CanaryInput(file="sound.wav", decoded_tolerance=1e-6, prepared_tolerance=1e-4),
)
