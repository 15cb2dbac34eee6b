"""What a model's files hold, by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from clipfarm_dagster.errors import ModelUnavailableError

# weights only as safetensors: pickled weights can run code as they load
CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is downloaded of a model, as the hub's client takes it."""

IGNORED_FILES = ("onnx/*", "openvino/*", ".cache/*", ".git/*")
"""What is not: other programs' forms of a model, and what the hub's client and git leave in a folder."""


def folder_revision(folder: Path) -> str:
    """`sha256:` and the SHA-256 over names and content of a checkpoint folder's weight and config files.

    Raises:
        ModelUnavailableError: the folder holds no `.safetensors` weights.
    """
    suffixes = {Path(pattern).suffix for pattern in CHECKPOINT_FILES}
    names = [name for name in _files(folder) if Path(name).suffix in suffixes]
    return f"sha256:{combined_hash(_hashes(folder, names))}"


def downloaded_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of those files of a folder that a download of its model would bring.

    Raises:
        ModelUnavailableError: the folder holds no `.safetensors` weights.
    """
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    names = filter_repo_objects(
        _files(folder), allow_patterns=list(CHECKPOINT_FILES), ignore_patterns=list(IGNORED_FILES)
    )
    return _hashes(folder, names)


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One SHA-256 over the names of files, in the order given, and their hashes."""
    digest = hashlib.sha256()
    for name, content in hashes.items():
        digest.update(f"{len(name)}:{name},{content},".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[str]:
    """The files below a folder by their relative paths, in the order of these."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]


def _hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    hashes = {name: _file_hash(folder / name) for name in names}
    if not any(name.endswith(".safetensors") for name in hashes):
        raise ModelUnavailableError(
            f"the model folder {folder} has no .safetensors weights; other formats are not loaded, since"
            " they can run code"
        )
    return hashes


_known_hashes: dict[tuple[str, int, int], str] = {}


def _file_hash(path: Path) -> str:
    # hashing some hundred megabytes of weights at every tick would cost more than the tick
    found = path.stat()
    stamp = (str(path), found.st_size, found.st_mtime_ns)
    if stamp not in _known_hashes:
        with path.open("rb") as file:
            _known_hashes[stamp] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known_hashes[stamp]
