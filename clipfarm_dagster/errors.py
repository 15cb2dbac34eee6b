"""Every error that ClipFarm raises on purpose; each says what happened, to what, and what to do.

ClipFarmError
├── SettingsError
├── MetadataError
├── InvalidVideoIdError
├── StoreError
│   ├── StoreUnavailableError
│   ├── ObjectMissingError
│   └── PreconditionFailedError
├── LedgerError
│   └── LedgerConnectionError
├── ModelUnavailableError
│   └── ModelDiffersError
├── InvalidRawObjectError
├── PreparationError
├── WorkersLostError
├── ClusterError
├── ManifestError
├── MigrationError
├── FusionError
├── VectorFileError
├── DriftError
├── BaselineError
├── VideoNotFoundError
├── ErasureError
└── ServiceEndedError
"""

from __future__ import annotations

from typing import Any


class ClipFarmError(Exception):
    """Base of all errors below; its text is one clear sentence or two, fit to show a person as it is."""

    def __reduce__(self) -> tuple[Any, ...]:
        # by default, those that take more than a text could not be built again in another process
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[ClipFarmError], args: tuple[Any, ...], fields: dict[str, Any]) -> ClipFarmError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class SettingsError(ClipFarmError):
    """A setting is missing or unusable."""


class MetadataError(ClipFarmError):
    """The metadata CSV cannot be read; nothing was changed and the last good plan stays in force."""

    def __init__(self, url: str, problem: str, *, line: int | None = None, column: str | None = None) -> None:
        self.url, self.problem, self.line, self.column = url, problem, line, column
        place = url
        if line is not None:
            place += f", line {line}"
        if column is not None:
            place += f", column {column!r}"
        super().__init__(f"{place}: {problem}")


class InvalidVideoIdError(ClipFarmError):
    """A `video_id` is not 1–128 of `A-Z a-z 0-9 _ - .`, or begins with a dot."""


class StoreError(ClipFarmError):
    """The object store could not be read or written; names the store's URL and the key.

    Args:
        message: what happened and what to do.
        problem: only what happened.
        code: S3's error code, where its answer had one.
    """

    def __init__(self, message: str, *, problem: str | None = None, code: str | None = None) -> None:
        self.problem, self.code = problem or message, code
        super().__init__(message)


class StoreUnavailableError(StoreError):
    """The store as a whole cannot be used now: unreachable, no such bucket, or credentials refused."""


class ObjectMissingError(StoreError):
    """There is no object under a key."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        super().__init__(f"{url}: there is no object {key!r}")


class PreconditionFailedError(StoreError):
    """A conditional write lost: the object is no longer the one that the writer started from."""


class LedgerError(ClipFarmError):
    """The ledger database cannot be opened, read or written."""


class LedgerConnectionError(LedgerError):
    """The ledger's server cannot be reached, or has ended the connection."""


class ModelUnavailableError(ClipFarmError):
    """A model is neither a local folder, nor cached, nor reachable, or its weights do not fit."""


class ModelDiffersError(ModelUnavailableError):
    """A model is there, and it is another one than the corpus or the run asks for."""


class InvalidRawObjectError(ClipFarmError):
    """A raw object exists but cannot be decoded, or lacks the needed field or stream."""


class PreparationError(ClipFarmError):
    """A raw object could not be prepared: it took too long or too much, or broke its decoder."""


class WorkersLostError(ClipFarmError):
    """Worker processes end by themselves or cannot be started, whatever they are given to prepare."""


class ClusterError(ClipFarmError):
    """The Ray cluster cannot be used; nothing was recorded that did not happen."""


class ManifestError(ClipFarmError):
    """A manifest does not exist, or cannot be read."""


class MigrationError(ClipFarmError):
    """A generation cannot serve, be written or be dropped now; nothing is lost."""


class FusionError(ClipFarmError):
    """Vectors cannot be fused in the requested way."""


class VectorFileError(ClipFarmError):
    """A file of vectors cannot be read or written, or holds something else."""


class DriftError(ClipFarmError):
    """The canary's vector moved though the contract is the same; names the step that moved."""

    def __init__(self, problem: str, *, stage: str, step: str) -> None:
        self.stage, self.step = stage, step
        super().__init__(problem)


class BaselineError(ClipFarmError):
    """The canary's baseline is there and cannot be read."""


class VideoNotFoundError(ClipFarmError):
    """There is no vector, or no row, of a video that was named."""


class ErasureError(ClipFarmError):
    """A video cannot be removed from what is stored, or not yet: the storage is not known, or in use."""


class ServiceEndedError(ClipFarmError):
    """A program that `clipfarm dev` keeps running has ended."""
