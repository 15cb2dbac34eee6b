"""How many numbers a model's vectors have, by the configuration of its checkpoint; no weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.errors import ModelUnavailableError


def hidden_size(checkpoint: Checkpoint) -> int | None:
    """Numbers of a transformer's hidden state; None where the checkpoint is not on this machine.

    Raises:
        ModelUnavailableError: the checkpoint's configuration is damaged.
    """
    folder = _folder_on_this_machine(checkpoint)
    config = None if folder is None else _read(checkpoint, folder / "config.json")
    return config.get("hidden_size") if isinstance(config, dict) else None


def sentence_dimension(checkpoint: Checkpoint) -> int | None:
    """Numbers of a SentenceTransformer's vector.

    None where the checkpoint is not on this machine, or ends in other modules than a pooling.

    Raises:
        ModelUnavailableError: the checkpoint's configuration is damaged.
    """
    folder = _folder_on_this_machine(checkpoint)
    modules = None if folder is None else _read(checkpoint, folder / "modules.json")
    last = [module for module in modules or [] if not module["type"].endswith(".Normalize")][-1:]
    if not last or not last[0]["type"].endswith(".Pooling"):
        return None
    from sentence_transformers.sentence_transformer.modules import Pooling

    pooling = Pooling.load(str(folder), subfolder=last[0]["path"], local_files_only=True)
    return int(pooling.get_embedding_dimension())


def _folder_on_this_machine(checkpoint: Checkpoint) -> Path | None:
    if checkpoint.folder is not None:
        return checkpoint.folder
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(checkpoint.model, "config.json", revision=checkpoint.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _read(checkpoint: Checkpoint, path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelUnavailableError(
            f"the {checkpoint.stage} model {checkpoint.model_name} at {checkpoint.revision}: {path} cannot be"
            f" read ({error})"
        ) from None
