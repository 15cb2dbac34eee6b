"""Loads a checkpoint's weights into a model, and refuses those that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.errors import ModelUnavailableError


def load_model(
    model_class: Any,
    checkpoint: Checkpoint,
    folder: Path,
    device: str,
    *,
    dtype: str,
    unused: Sequence[str],
    **options: Any,
) -> Any:
    """A transformers model out of a folder, on a device, ready for inference.

    `unused` names prefixes of weights that the class has no use for, as `check_weights` takes them; `options`
    go to `from_pretrained`.

    Raises:
        ModelUnavailableError: the weights do not fit.
    """
    import torch

    model, loading = model_class.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        **options,
    )
    check_weights(checkpoint, loading["missing_keys"], loading["unexpected_keys"], allowed=unused)
    return model.eval().to(device)


def check_weights(
    checkpoint: Checkpoint, missing: Sequence[str], unexpected: Sequence[str], *, allowed: Sequence[str] = ()
) -> None:
    """Refuse a model whose weights did not all come from the checkpoint, or that left some of them unused.

    `allowed` names prefixes of weights that may be missing or left over since no vector depends on them.

    Raises:
        ModelUnavailableError: other weights are missing or unexpected.
    """
    prefixes = tuple(allowed)
    problems = [
        f"{kind} {', '.join(sorted(names)[:5])}{' …' if len(names) > 5 else ''}"
        for kind, names in (
            ("lacks", [name for name in missing if not name.startswith(prefixes)]),
            ("has unexpected", [name for name in unexpected if not name.startswith(prefixes)]),
        )
        if names
    ]
    if problems:
        raise ModelUnavailableError(
            f"the {checkpoint.stage} checkpoint {checkpoint.model_name} at {checkpoint.revision} does not fit"
            f" its architecture: it {' and '.join(problems)}; check CLIPFARM_{checkpoint.stage.upper()}_MODEL"
        )
