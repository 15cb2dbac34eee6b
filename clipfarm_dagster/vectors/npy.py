"""What a vector is: 1-D float32 of unit L2 norm; made, written and read here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

import hashlib
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NORM_TOLERANCE = 1e-4
"""How far an L2 norm in float32 may lie from 1."""


class VectorProblem(ValueError):  # noqa: N818 - what is wrong with some bytes, not a failure of ours
    """Why some bytes are no valid vector."""


def l2_normalise(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Scale each row of `vectors` (n, dimension) to L2 norm 1, as float32.

    Raises:
        VectorProblem: a row is not finite, or all zero.
    """
    import numpy as np

    wide = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise VectorProblem("the model gave a vector that is not finite")
    if (norms == 0).any():
        raise VectorProblem("the model gave a vector of zeros")
    unit: np.ndarray[Any, Any] = (wide / norms).astype(np.float32)
    return unit


def to_npy(vector: np.ndarray[Any, Any]) -> bytes:
    """A vector as the bytes of a `.npy` file."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, vector, allow_pickle=False)
    return buffer.getvalue()


def from_npy(data: bytes, *, dimension: int | None = None) -> np.ndarray[Any, Any]:
    """The vector in the bytes of a `.npy` file, checked.

    Raises:
        VectorProblem: the bytes are truncated or no `.npy`, or not 1-D float32 of unit norm, or not of
            `dimension` numbers.
    """
    import numpy as np

    try:  # not np.load, which opens archives too, and says how to load pickles
        vector: np.ndarray[Any, Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise VectorProblem(f"not a readable .npy file of {len(data)} bytes: {error}") from None
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise VectorProblem(f"{vector.ndim}-D {vector.dtype}, not 1-D float32")
    if dimension is not None and vector.size != dimension:
        raise VectorProblem(f"{vector.size} numbers, not {dimension}")
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or abs(norm - 1) > NORM_TOLERANCE:
        raise VectorProblem(f"L2 norm {norm:.6g}, not 1")
    return vector


def vector_sha256(vector: np.ndarray[Any, Any]) -> str:
    """SHA-256 of the vector's little-endian float32 numbers, without the file's header."""
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()


def vector_problem(vector: np.ndarray[Any, Any] | None, dimension: int) -> str | None:
    """Why a vector may not be stored, or None."""
    import numpy as np

    if vector is None:
        return "it has no vector"
    if vector.shape != (dimension,):
        return f"{vector.size} numbers, not {dimension}"
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or abs(norm - 1) > NORM_TOLERANCE:
        return f"L2 norm {norm:.6g}, not 1"
    return None
