"""The video modality, described."""

from __future__ import annotations

from pathlib import Path

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.dimension import hidden_size
from clipfarm_dagster.modalities.modality import CanaryInput, Modality
from clipfarm_dagster.modalities.video.encoder import PREPROCESS_VERSION, VideoEncoder, VideoPreparer
from clipfarm_dagster.modalities.video.pixels import FrameTransform
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract


def _load(
    contract: Contract, settings: Settings, checkpoint: Checkpoint, folder: Path, device: str
) -> VideoEncoder:
    return VideoEncoder(
        contract,
        settings.video,
        checkpoint,
        folder,
        device,
        max_pixels=settings.max_pixels,
        max_frames=settings.max_frames,
    )


def _previewer(settings: Settings) -> VideoPreparer:
    return VideoPreparer(
        transform=FrameTransform({"height": 1, "width": 1}, resample=0, crop_to=None),
        frames=settings.video.frames,
        unknown_count=settings.video.unknown_count,
        max_pixels=settings.max_pixels,
        max_frames=settings.max_frames,
    )


_DESCRIPTION = """VideoMAE over 16 frames of each clip, taken uniformly over its timeline.

One vector per video, `{folder}/<video_id>.npy`: float32 of unit length. The preview of a partition
that was materialized alone shows the frames that were taken. `embedding_sensor` keeps it up to date."""

VIDEO = Modality(
    stage=Stage.VIDEO,
    embedding_description=_DESCRIPTION,
    raw_description="Clips as they were delivered, `raw/video/<video_id>.mp4` in the store. Made elsewhere"
    " and observed here: the data version of a partition is its object's ETag.",
    preprocess_name="videomae-pil",
    preprocess_version=PREPROCESS_VERSION,
    preprocess_params=lambda settings: {
        "frames": settings.video.frames,
        "unknown_count": settings.video.unknown_count,
    },
    pooling=lambda settings: settings.video.pooling,
    deciding_settings=lambda contract: {
        "frames": contract.preprocess_params.get("frames"),
        "unknown_count": contract.preprocess_params.get("unknown_count"),
        "pooling": contract.pooling,
    },
    load=_load,
    dimension=hidden_size,
    previewer=_previewer,
    isolated=True,
    worker_imports=(
        "PIL.Image",
        "av",
        "av.logging",
        "av.video.reformatter",
        "clipfarm_dagster.modalities.previews",
        "clipfarm_dagster.modalities.video.encoder",
        "clipfarm_dagster.modalities.video.frames",
        "numpy",
    ),
    # Another processor's colour conversion may round otherwise by one level in some places, which is 0.002 to
    # 0.004 on this clip; one frame of 16 shifted by one is 0.025, the nearest other resize filter 0.016.
    canary=CanaryInput(file="clip.mp4", decoded_tolerance=5e-3, prepared_tolerance=5e-3),
)
