"""Where a model's files come from: a local folder, or a pinned revision on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfarm_dagster.errors import ModelUnavailableError
from clipfarm_dagster.stages import Stage

_FULL_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

# weights only as safetensors: pickled weights can run code as they load
_CHECKPOINT_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_IGNORED_FILES = ["onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Checkpoint:
    """A model at one revision. `model_name` and `revision` are what the contract records."""

    stage: Stage
    model: str
    revision: str

    @property
    def folder(self) -> Path | None:
        """The folder that `model` names, or `None` for a hub id."""
        path = Path(self.model).expanduser()
        return path if path.is_dir() else None

    @property
    def model_name(self) -> str:
        """The hub id, or the folder's last name: where the folder lies decides no vector."""
        return self.model if self.folder is None else self.folder.resolve().name

    def download(self) -> Path:
        """The folder with the checkpoint's files, taken from the hub's cache or from the hub.

        Raises:
            ModelUnavailableError: the model is neither cached nor reachable, or has no such revision.
        """
        if self.folder is not None:
            return self.folder
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(
                    self.model,
                    revision=self.revision,
                    allow_patterns=_CHECKPOINT_FILES,
                    ignore_patterns=_IGNORED_FILES,
                )
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> ModelUnavailableError:
        name = self.stage.upper()
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ModelUnavailableError(
            f"the {self.stage} model {self.model!r} at revision {self.revision} is neither cached nor"
            f" reachable ({type(error).__name__}: {cause}); where there is a network, run"
            f" `hf download {self.model} --revision {self.revision}`, or set CLIPFARM_{name}_MODEL to a local"
            f" folder and CLIPFARM_{name}_REVISION to a revision that exists"
        )


def resolve_checkpoint(stage: Stage, model: str, revision: str) -> Checkpoint:
    """The checkpoint that a stage's settings name, its revision exact.

    A folder's revision is the SHA-256 of its weight and config files. On the hub a full commit SHA stands for
    itself and costs no network; a branch or tag is looked up.

    Raises:
        ModelUnavailableError: there is no such folder or hub id, or the branch cannot be looked up.
    """
    given = Checkpoint(stage, model, revision)
    if given.folder is not None:
        return Checkpoint(stage, model, folder_revision(given.folder))
    if not _HUB_ID.fullmatch(model):
        raise ModelUnavailableError(
            f"the {stage} model {model!r} is no folder here and no id on the hub; set"
            f" CLIPFARM_{stage.upper()}_MODEL to a folder that exists or to a hub id such as owner/name"
        )
    if _FULL_COMMIT_SHA.fullmatch(revision):
        return given
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        sha = HfApi().model_info(model, revision=revision).sha
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise given._unavailable(error) from None
    if sha is None:
        raise given._unavailable(ValueError("the hub names no commit for it"))
    return Checkpoint(stage, model, sha)


def folder_revision(folder: Path) -> str:
    """`sha256:` and the SHA-256 over names and content of a checkpoint folder's weight and config files.

    Raises:
        ModelUnavailableError: the folder holds no `.safetensors` weights.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in {".safetensors", ".json", ".txt", ".model"} and path.is_file()
    )
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelUnavailableError(
            f"the model folder {folder} holds no .safetensors weights; other formats are not loaded, since"
            " they can run code"
        )
    stamp = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _digest(folder, files, stamp)


_digests: dict[Any, str] = {}


def _digest(folder: Path, files: Sequence[Path], stamp: Any) -> str:
    # hashing some hundred megabytes of weights at every tick would cost more than the tick
    if stamp not in _digests:
        digest = hashlib.sha256()
        for path in files:
            name = path.relative_to(folder).as_posix()
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{len(name)}:{name},{content},".encode())
        _digests[stamp] = f"sha256:{digest.hexdigest()}"
    return _digests[stamp]


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
