"""Small checkpoints of all three stages, with inputs for them, for tests of what a vector depends on."""

from __future__ import annotations

from pathlib import Path

from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint, make_video_checkpoint, minilm_folder
from clipfarm_dagster.settings import Settings, load_settings
from clipfarm_dagster.stages import Stage


def make_models(folder: Path) -> dict[Stage, Path]:
    """One small checkpoint a stage: two of random weights, and the real MiniLM."""
    size = {"hidden_size": 64, "intermediate_size": 64}
    return {
        Stage.VIDEO: make_video_checkpoint(folder / "videomae", **size),
        Stage.AUDIO: make_audio_checkpoint(folder / "wav2vec2", **size),
        Stage.TEXT: minilm_folder(),
    }


def model_settings(models: dict[Stage, Path], home: Path, **changes: object) -> Settings:
    """Settings that name the models; `changes` by stage (a dictionary) or setting."""
    stages = {str(stage): {"model": str(folder)} for stage, folder in models.items()}
    for name, change in changes.items():
        if name in stages and isinstance(change, dict):
            stages[name] |= change
    others = {name: value for name, value in changes.items() if name not in stages}
    return load_settings(home=home, device="cpu", **stages, **others)
