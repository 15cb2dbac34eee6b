"""Copies stored vectors within the store, each proved and none over what somebody else has written."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.errors import ObjectMissingError, StoreError
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.object_store import COPIES_AT_ONCE, Copied
from clipfarm_dagster.vectors.npy import VectorProblem, to_npy, vector_sha256
from clipfarm_dagster.vectors.stored import recorded_vector

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class VectorCopy:
    """One vector to be copied."""

    source_key: str
    target_key: str
    sha256: str | None
    """`vector_sha256` of the vector that was recorded; None where none was."""
    dimension: int | None
    """Its numbers; None where they were not recorded."""
    target_etag: str | None = None
    """The version of the target that is replaced; None to copy only where there is no object."""
    vector: np.ndarray[Any, Any] | None = field(default=None, compare=False, repr=False)
    """The vector as this machine has it. Where it is the one that was recorded, the source is not read."""


def copy_vectors(
    store: ObjectStore, copies: Iterable[VectorCopy], *, max_concurrency: int = COPIES_AT_ONCE
) -> Generator[tuple[VectorCopy, Copied | VectorProblem | StoreError]]:
    """Copy many vectors, and give what became of each as soon as it is known, in no special order.

    - `Copied`: the target holds the vector that was recorded, now or from an earlier try.
    - `VectorProblem`: the source is missing, or is not the vector that was recorded. Nothing was written.
    - `PreconditionFailedError`: the target is another version than the one named, and holds other bytes.
    - another `StoreError`: trouble with one of the two keys alone.

    Copies are taken as it goes, so any number may be given; at most `max_concurrency` are under way.

    Raises:
        StoreUnavailableError: the store as a whole cannot be used. What was given before has been done.
    """
    with closing(store.copy_each(copies, _problem, _known, max_concurrency=max_concurrency)) as answers:
        for copy, answer in answers:
            if isinstance(answer, ObjectMissingError):
                yield copy, VectorProblem(f"there is no object {copy.source_key!r}")
            else:
                yield copy, answer


def _known(copy: VectorCopy) -> bytes | None:
    if copy.vector is None or vector_sha256(copy.vector) != copy.sha256:
        return None
    return to_npy(copy.vector)


def _problem(copy: VectorCopy, data: bytes) -> VectorProblem | None:
    try:
        recorded_vector(data, copy.dimension, copy.sha256)
    except VectorProblem as problem:
        return problem
    return None
