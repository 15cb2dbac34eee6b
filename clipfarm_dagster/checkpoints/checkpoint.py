"""Where a model's files come from: a local folder, or a pinned revision on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from clipfarm_dagster.errors import ModelUnavailableError, SettingsError
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.whole_files import written_whole

HUB_TIMEOUT_SECONDS = 10.0
"""A hub that does not answer in this time is taken as out of reach."""

_FULL_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)

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
        """The folder with the checkpoint's files: of the hub, or of its cache where the hub gives none.

        Raises:
            ModelUnavailableError: the model is neither cached nor reachable, or has no such revision.
        """
        if self.folder is not None:
            return self.folder
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import (  # type: ignore[attr-defined]
            HFValidationError,
            HTTPError,
            LocalEntryNotFoundError,
        )

        def snapshot(*, cached: bool) -> Path:
            folder = snapshot_download(
                self.model,
                revision=self.revision,
                allow_patterns=_CHECKPOINT_FILES,
                ignore_patterns=_IGNORED_FILES,
                local_files_only=cached,
            )
            return Path(folder)

        try:
            # asked once and briefly: snapshot_download tries half a minute to reach a hub that is not there
            HfApi().model_info(self.model, revision=self.revision, timeout=HUB_TIMEOUT_SECONDS)
        except HFValidationError as error:
            raise self.unavailable(error) from None
        except (HTTPError, OSError) as error:  # out of reach, or no longer there for this token
            try:
                return snapshot(cached=True)
            except LocalEntryNotFoundError:
                raise self.unavailable(error) from None
        try:
            return snapshot(cached=False)
        except (HTTPError, OSError) as error:
            raise self.unavailable(error) from None

    def unavailable(self, error: Exception) -> ModelUnavailableError:
        name = self.stage.upper()
        cause = (str(error).strip().splitlines() or ["no message"])[0]
        return ModelUnavailableError(
            f"the {self.stage} model {self.model!r} at revision {self.revision} is neither cached nor"
            f" reachable ({type(error).__name__}: {cause}); with a network connection, run"
            f" `hf download {self.model} --revision {self.revision}`, or set CLIPFARM_{name}_MODEL to a local"
            f" folder and CLIPFARM_{name}_REVISION to a revision that exists"
        )


def resolve_checkpoint(stage: Stage, model: str, revision: str, *, frozen: bool, record: Path) -> Checkpoint:
    """The checkpoint that a stage's settings name, its revision exact.

    A folder's revision is the SHA-256 of its weight and config files. On the hub a full commit SHA stands for
    itself and costs no network. A branch or tag is looked up once; the commit that it stood for is written to
    the file `record` and stands from then on, so that a branch that moves on changes no vector by itself.

    Raises:
        SettingsError: the revision is a branch or tag, and `frozen` forbids those.
        ModelUnavailableError: there is no such folder or hub id, or the branch cannot be looked up.
    """
    given = Checkpoint(stage, model, revision)
    if given.folder is not None:
        return Checkpoint(stage, model, folder_revision(given.folder))
    name = f"CLIPFARM_{stage.upper()}"
    if not _HUB_ID.fullmatch(model):
        raise ModelUnavailableError(
            f"the {stage} model {model!r} is neither a local folder nor an id on the hub; set {name}_MODEL to"
            " a folder that exists or to a hub id such as owner/name"
        )
    if _FULL_COMMIT_SHA.fullmatch(revision):
        return given
    if frozen:
        raise SettingsError(
            f"{name}_REVISION is {revision!r}, which may point to another model later; set it to the full"
            f" commit SHA of {model} (40 hex digits), or set CLIPFARM_FROZEN=false to resolve the name"
            " once"
        )
    resolved = _read_record(record)
    entry = f"{model}@{revision}"
    if entry not in resolved:
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{record}.lock"):  # other stages and processes look up theirs at the same time
            resolved = _read_record(record)
            if entry not in resolved:
                resolved[entry] = _look_up(given)
                _write_record(record, resolved)
    return Checkpoint(stage, model, resolved[entry])


def _look_up(given: Checkpoint) -> str:
    """The commit SHA that a branch or tag stands for now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    try:
        info = HfApi().model_info(given.model, revision=given.revision, timeout=HUB_TIMEOUT_SECONDS)
    except (HFValidationError, HTTPError, OSError) as error:
        raise given.unavailable(error) from None
    if info.sha is None:
        raise given.unavailable(ValueError("the hub gives no commit for it"))
    return info.sha


def _read_record(record: Path) -> dict[str, str]:
    if not record.exists():
        return {}
    try:
        return {str(name): str(sha) for name, sha in json.loads(record.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise SettingsError(
            f"{record}, which records the commits of branches, cannot be read ({error}); repair or delete it"
        ) from None


def _write_record(record: Path, resolved: dict[str, str]) -> None:
    with written_whole(record) as part:
        part.write_text(json.dumps(resolved, indent=2, sort_keys=True))


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
            f"the model folder {folder} has no .safetensors weights; other formats are not loaded, since"
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
