"""What a vector is: 1-D float32 of unit L2 norm; made, written and read here and nowhere else."""

from __future__ import annotations

import functools
import hashlib
import io
from typing import TYPE_CHECKING, Any

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
    """A vector as the bytes of a `.npy` file, as `numpy.save` writes it."""
    return _header(vector.dtype.str, vector.shape) + vector.tobytes()


@functools.lru_cache(maxsize=64)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers; numpy takes longer for this than for all the rest."""
    import numpy as np

    buffer, zeros = io.BytesIO(), np.zeros(shape, dtype)
    np.save(buffer, zeros, allow_pickle=False)
    return buffer.getvalue()[: -zeros.nbytes or None]


def from_npy(data: bytes, *, dimension: int | None = None) -> np.ndarray[Any, Any]:
    """The vector in the bytes of a `.npy` file, checked.

    Raises:
        VectorProblem: the bytes are truncated or no `.npy`, or not 1-D float32 of unit norm, or not of
            `dimension` numbers.
    """
    import numpy as np

    header = b"" if dimension is None else _header("<f4", (dimension,))
    if dimension and len(data) == len(header) + 4 * dimension and data.startswith(header):
        vector = np.frombuffer(data, "<f4", offset=len(header)).copy()
    else:
        vector = _read_array(data)
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise VectorProblem(f"{vector.ndim}-D {vector.dtype}, not 1-D float32")
    if dimension is not None and vector.size != dimension:
        raise VectorProblem(f"{vector.size} numbers, not {dimension}")
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or abs(norm - 1) > NORM_TOLERANCE:
        raise VectorProblem(f"L2 norm {norm:.6g}, not 1")
    return vector


def _read_array(data: bytes) -> np.ndarray[Any, Any]:
    import numpy as np

    try:  # not np.load, which opens archives too, and says how to load pickles
        array: np.ndarray[Any, Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise VectorProblem(f"not a readable .npy file of {len(data)} bytes: {error}") from None
    return array


def vector_sha256(vector: np.ndarray[Any, Any]) -> str:
    """SHA-256 of the vector's little-endian float32 numbers, without the file's header."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").data).hexdigest()


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
