"""All modalities, and the way from settings to a contract, or to an encoder with its model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint, is_exact_revision, resolve_checkpoint
from clipfarm_dagster.checkpoints.content import folder_revision
from clipfarm_dagster.checkpoints.records import recall, remember
from clipfarm_dagster.errors import ModelUnavailableError, SettingsError
from clipfarm_dagster.modalities.audio.modality import AUDIO
from clipfarm_dagster.modalities.encoder import Encoder, one_thread
from clipfarm_dagster.modalities.modality import Modality
from clipfarm_dagster.modalities.text.modality import TEXT
from clipfarm_dagster.modalities.video.modality import VIDEO
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import LOCAL_REVISION, Contract

MODALITIES: dict[Stage, Modality] = {modality.stage: modality for modality in (VIDEO, AUDIO, TEXT)}
"""The modality of every stage."""


def stage_checkpoint(stage: Stage, settings: Settings) -> Checkpoint:
    """The checkpoint that the settings ask for, its revision exact. Loads no model.

    Where it is in a folder, this machine remembers that, for `settings_for`.

    Raises:
        SettingsError: the revision is a branch or tag, and CLIPFARM_FROZEN or a model path forbid those.
        ModelUnavailableError: the checkpoint cannot be found, or its branch not be looked up.
    """
    chosen, home = settings.stage(stage), settings.home_files
    checkpoint = resolve_checkpoint(
        stage,
        chosen.model,
        chosen.revision,
        chosen.model_path,
        frozen=settings.frozen,
        record=home.model_revisions,
    )
    if checkpoint.folder is not None:
        name = _folder_entry(checkpoint.model, checkpoint.revision)
        remember(home.model_folders, name, str(checkpoint.folder.resolve()))
    return checkpoint


def stage_contract(stage: Stage, settings: Settings) -> Contract:
    """The contract that the settings ask for. Loads no model; raises what `stage_checkpoint` raises."""
    return MODALITIES[stage].contract(settings, stage_checkpoint(stage, settings))


def settings_for(contract: Contract, settings: Settings) -> Settings:
    """The settings under which `stage_contract` gives a contract, whatever these ask for. Loads no model.

    They are the given ones but for what decides a vector, and for where the model's files lie: the folder
    that the settings name for it, or one that this machine remembers; a model of the hub also there.

    Raises:
        ModelUnavailableError: the contract is not one of this version of ClipFarm, or no folder that this
            machine knows has the local model.
    """
    stage = contract.stage
    chosen = settings.stage(stage)
    recorded = {
        **_model_settings(contract, settings),
        **MODALITIES[stage].deciding_settings(contract),
        "dtype": contract.dtype,
    }
    try:
        changed = type(chosen).model_validate({**chosen.model_dump(), **recorded})
    except ValidationError as error:
        differences = sorted({str(detail["loc"][0]) for detail in error.errors()})
    else:
        found = settings.model_copy(update={str(stage): changed})
        differences = stage_contract(stage, found).differences(contract)
        if not differences:
            return found
    raise _unavailable(
        contract,
        f"this version of ClipFarm cannot make its vectors ({', '.join(differences)}); install the one that"
        " made them",
    )


def _model_settings(contract: Contract, settings: Settings) -> dict[str, str]:
    """Model, revision and model path that name a contract's model on this machine."""
    name, revision, chosen = contract.model_name, contract.model_revision, settings.stage(contract.stage)
    known = recall(settings.home_files.model_folders, _folder_entry(name, revision))
    if contract.is_local:
        for folder in (chosen.model, known):
            if folder is not None and _holds(folder, revision):
                return {"model": folder, "model_path": ""}
        raise _unavailable(
            contract,
            f"{f'{known} no longer has it' if known else 'no folder that this machine knows has it'}; put it"
            f" back, or run `clipfarm plan` once with CLIPFARM_{contract.stage.upper()}_MODEL set to a folder"
            " that has it",
        )
    if not is_exact_revision(revision):
        raise _unavailable(contract, "its revision is not the full commit SHA of a model on the hub")
    path = chosen.model_path
    if (chosen.model, chosen.revision) != (name, revision):
        # what the settings say of a folder now is truer than what this machine remembers of it
        others = path and str(Path(path).resolve())
        path = known if known and known != others and Path(known).is_dir() else ""
    return {"model": name, "revision": revision, "model_path": path}


def _folder_entry(model_name: str, revision: str) -> str:
    """The name by which this machine remembers the folder of a model."""
    return revision if revision.startswith(LOCAL_REVISION) else f"{model_name}@{revision}"


def _holds(folder: str, revision: str) -> bool:
    """Whether this is a folder, and its content has a revision."""
    path = Path(folder).expanduser()
    try:
        return path.is_dir() and folder_revision(path) == revision
    except ModelUnavailableError:  # no model at all
        return False


def _unavailable(contract: Contract, why: str) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"the {contract.stage} model {contract.model_name} at {contract.model_revision} cannot be loaded as"
        f" contract {contract.id} has it: {why}; or have the videos embedded again by the configured model"
    )


def load_encoder(stage: Stage, settings: Settings) -> Encoder:
    """Load a stage's model as the settings say, onto their device.

    Raises:
        SettingsError: the revision is a branch or tag, and CLIPFARM_FROZEN forbids those; or the device
            cannot be used here.
        ModelUnavailableError: it is neither cached nor reachable, or its weights do not fit.
    """
    from safetensors import SafetensorError

    checkpoint = stage_checkpoint(stage, settings)
    folder = checkpoint.download()
    try:
        with quiet_transformers():
            return _load(settings, checkpoint, folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelUnavailableError(
            f"the {stage} model {checkpoint.model_name} at {checkpoint.revision} cannot be loaded from"
            f" {folder} ({type(error).__name__}: {error}); it must hold a config.json and .safetensors"
            " weights"
        ) from error


def _load(settings: Settings, checkpoint: Checkpoint, folder: Path) -> Encoder:
    import torch

    # oneDNN keeps machine code for each length of sound that it meets, 1,024 pieces of up to a megabyte where
    # nothing is said; it reads this when it makes the first
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # cuDNN convolves float32 in TF32 by default, which moves vectors by a thousand times float32's rounding
    torch.backends.cudnn.allow_tf32 = False
    modality, device = MODALITIES[checkpoint.stage], resolve_device(settings.device)
    with one_thread(device):
        return modality.load(modality.contract(settings, checkpoint), settings, checkpoint, folder, device)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal; `check_weights` judges the weights itself."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def resolve_device(device: str) -> str:
    """`device` as torch names it; `auto` is the GPU where there is one, else the CPU.

    Raises:
        SettingsError: torch knows no such device, or cannot use it here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        cause = (str(error).strip().splitlines() or ["no message"])[0]
        raise SettingsError(
            f"the device {device!r} cannot be used here ({cause}); set CLIPFARM_DEVICE to `auto`, `cpu`, or"
            " a GPU that torch sees, such as `cuda` or `cuda:1`"
        ) from None
    return device
