"""Where a model's files come from: a local folder, or a pinned revision on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clipfarm_dagster.checkpoints.content import CHECKPOINT_FILES, IGNORED_FILES, folder_revision
from clipfarm_dagster.checkpoints.records import remembered
from clipfarm_dagster.errors import ModelUnavailableError, SettingsError
from clipfarm_dagster.stages import Stage

HUB_TIMEOUT_SECONDS = 10.0
"""A hub that does not answer in this time is taken as out of reach."""

_FULL_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """A model at one revision. `model_name` and `revision` are what the contract records."""

    stage: Stage
    model: str
    revision: str
    path: str = ""
    """A folder with the files of a hub model; where it is empty, they come from the hub or its cache."""

    @property
    def is_local(self) -> bool:
        """Whether `model` names a folder, and not a model of the hub."""
        return not self.path and Path(self.model).expanduser().is_dir()

    @property
    def folder(self) -> Path | None:
        """The folder that the settings name, or `None` where the files come from the hub or its cache."""
        if self.path:
            return Path(self.path)
        return Path(self.model).expanduser() if self.is_local else None

    @property
    def model_name(self) -> str:
        """The hub id, or the name of the folder: where it lies decides no vector."""
        return Path(self.model).expanduser().resolve().name if self.is_local else self.model

    def download(self) -> Path:
        """The folder with the checkpoint's files: that of the settings, or the hub's, or that of its cache
        where the hub gives none.

        Raises:
            ModelUnavailableError: the folder is not there; the model is neither cached nor reachable, or has
                no such revision.
        """
        if self.folder is not None:
            if not self.folder.is_dir():
                raise ModelUnavailableError(
                    f"there is no folder {self.folder} with the {self.stage} model {self.model}; set"
                    f" CLIPFARM_{self.stage.upper()}_MODEL_PATH to the folder that holds its files, or to"
                    " nothing to take them from the hub"
                )
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
                allow_patterns=list(CHECKPOINT_FILES),
                ignore_patterns=list(IGNORED_FILES),
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

    def on_this_machine(self) -> Path | None:
        """The folder with the checkpoint's files, as far as they need no download.

        Raises:
            ModelUnavailableError: the settings name a folder that is not there.
        """
        if self.folder is not None:
            return self.download()
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.model, revision=self.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            return None

    def check_on_hub(self) -> None:
        """Ask the hub for the model, without its files.

        Raises:
            ModelUnavailableError: the hub cannot be reached, or does not have it.
        """
        _look_up(self)

    def unavailable(self, error: Exception) -> ModelUnavailableError:
        name = self.stage.upper()
        cause = (str(error).strip().splitlines() or ["no message"])[0]
        return ModelUnavailableError(
            f"the {self.stage} model {self.model!r} at revision {self.revision} is neither cached nor"
            f" reachable ({type(error).__name__}: {cause}); with a network connection, run"
            f" `hf download {self.model} --revision {self.revision}`, or set CLIPFARM_{name}_MODEL_PATH to a"
            f" folder that has its files; check CLIPFARM_{name}_MODEL and CLIPFARM_{name}_REVISION, too"
        )


def is_exact_revision(revision: str) -> bool:
    """Whether a revision on the hub is a full commit SHA, which stands for one content for ever."""
    return _FULL_COMMIT_SHA.fullmatch(revision) is not None


def resolve_checkpoint(
    stage: Stage, model: str, revision: str, path: str = "", *, frozen: bool, record: Path
) -> Checkpoint:
    """The checkpoint that a stage's settings name, its revision exact.

    A folder's revision is the SHA-256 of its weight and config files. On the hub a full commit SHA stands for
    itself and costs no network. A branch or tag is looked up once; the commit that it stood for is written to
    the file `record` and stands from then on, so that a branch that moves on changes no vector by itself.
    With a `path`, where a hub model's files lie on this machine, the revision must be such a SHA.

    Raises:
        SettingsError: the revision is a branch or tag, and `frozen` or a `path` forbids those; or there is a
            `path`, and `model` is a folder itself.
        ModelUnavailableError: there is no such folder or hub id, or the branch cannot be looked up.
    """
    name = f"CLIPFARM_{stage.upper()}"
    is_folder, is_exact = Path(model).expanduser().is_dir(), is_exact_revision(revision)
    if path and (is_folder or not is_exact):
        raise SettingsError(
            f"{name}_MODEL_PATH says where the files of a hub model lie, and is of use only with {name}_MODEL"
            f" as its id, such as owner/name, and {name}_REVISION as its full commit SHA (40 hex digits);"
            f" they are {model!r} and {revision!r}. A folder that is a model of its own goes into"
            f" {name}_MODEL, without {name}_MODEL_PATH"
        )
    if is_folder:
        return Checkpoint(stage, model, folder_revision(Path(model).expanduser()))
    if not _HUB_ID.fullmatch(model):
        raise ModelUnavailableError(
            f"the {stage} model {model!r} is neither a local folder nor an id on the hub; set {name}_MODEL to"
            " a folder that exists or to a hub id such as owner/name"
        )
    if is_exact:
        return Checkpoint(stage, model, revision, path)
    if frozen:
        raise SettingsError(
            f"{name}_REVISION is {revision!r}, which may point to another model later; set it to the full"
            f" commit SHA of {model} (40 hex digits), or set CLIPFARM_FROZEN=false to resolve the name"
            " once"
        )
    given = Checkpoint(stage, model, revision)
    return Checkpoint(stage, model, remembered(record, f"{model}@{revision}", lambda: _look_up(given)))


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
