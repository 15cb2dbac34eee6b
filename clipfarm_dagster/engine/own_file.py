"""The vector of one file that need not be in the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.modalities.encoder import Encoder

if TYPE_CHECKING:
    import numpy as np


def embed_file(
    encoder: Encoder, path: str | Path, metadata: Mapping[str, str] | None = None
) -> np.ndarray[Any, Any]:
    """The vector of one file under an encoder's contract: float32 (dimension,), of unit L2 norm.

    It is the vector that a run makes of a raw object with the same bytes. The file is decoded in this
    process, so one that crashes its decoder ends the process; runs use worker processes instead.

    Args:
        path: a clip for video, a sound file for audio, a transcript `.json` for text.
        metadata: a row of the metadata; only text reads it (`title`, `description`, `query`, …).

    Raises:
        InvalidRawObjectError: the file cannot be decoded, or lacks what the stage needs.
        OSError: the file cannot be read.
    """
    prepared = encoder.preparer(Path(path).read_bytes(), metadata or {})
    vector: np.ndarray[Any, Any] = encoder.encode([prepared])[0]
    return vector
