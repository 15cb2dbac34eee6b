"""The dimension that a checkpoint's configuration tells is that of the vectors that its model gives."""

from __future__ import annotations

import shutil

import pytest

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.errors import ModelUnavailableError
from clipfarm_dagster.modalities.registry import MODALITIES, load_encoder, stage_checkpoint
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage


@pytest.mark.parametrize("stage", Stage)
def test_it_is_that_of_the_loaded_model(tmp_path, checkpoints, stage):
    model = checkpoints[f"CLIPFARM_{stage.upper()}_MODEL"]
    settings = load_settings(home=tmp_path, device="cpu", **{str(stage): {"model": model}})

    told = MODALITIES[stage].dimension(stage_checkpoint(stage, settings))

    assert told == load_encoder(stage, settings).dimension


@pytest.mark.parametrize("stage", Stage)
def test_a_hub_model_in_a_folder_tells_it_without_the_hub(tmp_path, checkpoints, stage):
    folder = checkpoints[f"CLIPFARM_{stage.upper()}_MODEL"]
    chosen = {"model": "owner/model", "revision": "e" * 40, "model_path": folder}
    settings = load_settings(home=tmp_path, device="cpu", **{str(stage): chosen})

    told = MODALITIES[stage].dimension(stage_checkpoint(stage, settings))

    assert told == load_encoder(stage, settings).dimension


@pytest.mark.parametrize("stage", Stage)
def test_a_checkpoint_that_is_not_on_this_machine_tells_nothing(stage):
    assert (
        MODALITIES[stage].dimension(Checkpoint(stage, "somebody/no-model-of-this-machine", "e" * 40)) is None
    )


def test_a_text_model_that_goes_on_after_its_pooling_tells_nothing(tmp_path, checkpoints):
    folder = tmp_path / "model"
    shutil.copytree(
        checkpoints["CLIPFARM_TEXT_MODEL"], folder, ignore=shutil.ignore_patterns("*.safetensors")
    )
    modules = folder / "modules.json"
    modules.write_text(modules.read_text().replace("sentence_transformers.models.Normalize", "a.Dense"))

    assert MODALITIES[Stage.TEXT].dimension(Checkpoint(Stage.TEXT, str(folder), "")) is None


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")

    with pytest.raises(ModelUnavailableError, match=r"config\.json cannot be read"):
        MODALITIES[Stage.AUDIO].dimension(Checkpoint(Stage.AUDIO, str(tmp_path), ""))
