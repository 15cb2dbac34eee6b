"""The bytes of one stored vector, checked against what was recorded of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipfarm_dagster.errors import ObjectMissingError
from clipfarm_dagster.store import StoredObject
from clipfarm_dagster.vectors.npy import VectorProblem, from_npy, vector_sha256

if TYPE_CHECKING:
    import numpy as np


def checked_vector(
    answer: StoredObject | ObjectMissingError, dimension: int | None, sha256: str | None
) -> np.ndarray[Any, Any]:
    """The vector of an object, which must have the SHA-256 that was recorded, where one was.

    Raises:
        VectorProblem: there is no object, or it is no such vector.
    """
    if isinstance(answer, ObjectMissingError):
        raise VectorProblem("there is no such object")
    return recorded_vector(answer.data, dimension, sha256)


def recorded_vector(data: bytes, dimension: int | None, sha256: str | None) -> np.ndarray[Any, Any]:
    """The vector in an object's bytes, which must have the SHA-256 that was recorded, where one was.

    Raises:
        VectorProblem: it is no such vector.
    """
    vector = from_npy(data, dimension=dimension)
    if sha256 is not None and vector_sha256(vector) != sha256:
        raise VectorProblem("another vector than the one that was recorded")
    return vector
