"""Onto which device a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.modalities.registry import load_encoder, resolve_device
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.models import model_settings


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:x"])
def test_a_device_that_cannot_be_used_is_named_with_its_setting(
    device: str, models: dict[Stage, Path], tmp_path: Path
) -> None:
    settings = model_settings(models, tmp_path).model_copy(update={"device": device})
    with pytest.raises(SettingsError, match=f"the device '{device}' .*CLIPFARM_DEVICE"):
        load_encoder(Stage.AUDIO, settings)


def test_a_device_that_there_is_stays_as_it_is_named() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device(resolve_device("auto")) in ("cpu", "cuda")
