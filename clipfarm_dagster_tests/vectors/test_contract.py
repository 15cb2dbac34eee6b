"""Whatever decides a vector changes the contract's id, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfarm_dagster.canary.check import canary_input
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.modalities.registry import load_encoder, stage_contract
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract, canonical_ids
from clipfarm_dagster_tests.support.models import model_settings

OTHER_SETTINGS: list[tuple[Stage, dict[str, Any]]] = [
    (Stage.VIDEO, {"pooling": "mean"}),
    (Stage.VIDEO, {"frames": 8}),
    (Stage.VIDEO, {"unknown_count": "count"}),
    (Stage.VIDEO, {"dtype": "bfloat16"}),
    (Stage.VIDEO, {"dtype": "float16"}),
    (Stage.AUDIO, {"max_seconds": 0.05}),
    (Stage.AUDIO, {"dtype": "bfloat16"}),
    (Stage.AUDIO, {"dtype": "float16"}),
    (Stage.TEXT, {"dtype": "bfloat16"}),
    (Stage.TEXT, {"dtype": "float16"}),
]


@pytest.mark.parametrize(("stage", "change"), OTHER_SETTINGS, ids=str)
def test_another_setting_is_another_contract_and_gives_unit_vectors(
    stage: Stage, change: dict[str, Any], models: dict[Stage, Path], tmp_path: Path
) -> None:
    usual = stage_contract(stage, model_settings(models, tmp_path))
    encoder = load_encoder(stage, model_settings(models, tmp_path, **{str(stage): change}))

    assert encoder.contract.id != usual.id
    assert encoder.contract.differences(usual) in (["preprocess_params"], ["pooling"], ["dtype"])
    vector = encoder.trace(*canary_input(stage)).vector
    assert (vector.dtype, vector.shape) == (np.float32, (encoder.dimension,))
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_all_contracts_of_the_settings_differ(models: dict[Stage, Path], tmp_path: Path) -> None:
    settings = [model_settings(models, tmp_path)]
    settings += [model_settings(models, tmp_path, **{str(s): change}) for s, change in OTHER_SETTINGS]
    settings.append(model_settings(models, tmp_path, audio={"sample_rate": 8000}))
    ids = {stage_contract(stage, each).id for each in settings for stage in Stage}
    assert len(ids) == 3 + len(OTHER_SETTINGS) + 1


@pytest.mark.parametrize(
    "change", [{"device": "cuda"}, {"workers": 3}, {"prefix": "other"}, {"text": {"batch_size": 5}}], ids=str
)
def test_what_decides_no_vector_changes_no_contract(
    change: dict[str, Any], models: dict[Stage, Path], tmp_path: Path
) -> None:
    usual, other = model_settings(models, tmp_path), model_settings(models, tmp_path)
    if "text" in change:
        other = model_settings(models, tmp_path, **change)
    else:
        other = usual.model_copy(update=change)
    for stage in Stage:
        assert stage_contract(stage, other) == stage_contract(stage, usual)


def test_a_sample_rate_that_the_model_does_not_hear_is_refused(
    models: dict[Stage, Path], tmp_path: Path
) -> None:
    settings = model_settings(models, tmp_path, audio={"sample_rate": 8000})
    with pytest.raises(SettingsError, match=r"CLIPFARM_AUDIO_SAMPLE_RATE is 8000.*16000"):
        load_encoder(Stage.AUDIO, settings)


def test_frames_that_fill_no_tubelet_are_refused(models: dict[Stage, Path], tmp_path: Path) -> None:
    settings = model_settings(models, tmp_path, video={"frames": 9})
    with pytest.raises(SettingsError, match=r"CLIPFARM_VIDEO_FRAMES is 9.*multiple of 2"):
        load_encoder(Stage.VIDEO, settings)


def test_every_field_counts_and_the_serialisation_comes_back(tmp_path: Path) -> None:
    contract = stage_contract(Stage.VIDEO, load_settings(home=tmp_path))
    back = Contract.from_json(contract.to_json())
    assert (back, back.to_json(), hash(back)) == (contract, contract.to_json(), hash(contract))
    others = {
        "stage": replace(contract, stage=Stage.AUDIO),
        "model_name": replace(contract, model_name="other"),
        "model_revision": replace(contract, model_revision="f" * 40),
        "preprocess_name": replace(contract, preprocess_name="other"),
        "preprocess_version": replace(contract, preprocess_version="other"),
        "preprocess_params": replace(contract, preprocess_params={**contract.preprocess_params, "new": 1}),
        "pooling": replace(contract, pooling="mean"),
        "dtype": replace(contract, dtype="float16"),
    }
    assert len({contract.id, *(other.id for other in others.values())}) == 1 + len(others)
    for name, other in others.items():
        assert other != contract
        assert contract.differences(other) == [name]


def test_the_name_of_a_folder_is_a_label(tmp_path: Path) -> None:
    hub = stage_contract(Stage.VIDEO, load_settings(home=tmp_path))
    first = replace(hub, model_name="first", model_revision=f"sha256:{'a' * 64}")
    renamed, changed = (
        replace(first, model_name="second"),
        replace(first, model_revision=f"sha256:{'b' * 64}"),
    )

    assert (renamed, renamed.id, hash(renamed)) == (first, first.id, hash(first))
    assert first.differences(renamed) == []
    assert (renamed.model_name, Contract.from_json(renamed.to_json()).model_name) == ("second", "second")
    assert first != changed
    assert first.differences(changed) == ["model_revision"]
    assert hub.differences(first) == first.differences(hub) == ["model_name", "model_revision"]
    namesake = replace(hub, model_name="first")
    assert first != namesake
    assert first.differences(namesake) == ["model_revision"]


def test_records_under_the_ids_of_earlier_versions_are_recognised(tmp_path: Path) -> None:
    hub = stage_contract(Stage.VIDEO, load_settings(home=tmp_path))
    first = replace(hub, model_name="first", model_revision=f"sha256:{'a' * 64}")
    renamed = replace(first, model_name="second")

    assert hub.former_id == hub.id
    assert len({first.id, first.former_id, renamed.former_id}) == 3
    assert first.former_id == "bb8ef1b972c8f716"
    recorded = {each.former_id: each.to_json() for each in (hub, first, renamed)}
    assert canonical_ids(recorded) == {first.former_id: first.id, renamed.former_id: first.id}
    assert canonical_ids({first.id: first.to_json(), "0" * 16: first.to_json()}) == {}


def test_the_default_contracts_keep_their_ids(tmp_path: Path) -> None:
    """A change here makes every installation embed everything anew: it must be meant."""
    settings = load_settings(home=tmp_path)
    ids = {str(stage): stage_contract(stage, settings).id for stage in Stage}
    assert ids == {
        "video": "c48647314d0bf223",
        "audio": "f6e8d3046e88efff",
        "text": "3fab162a867d67d7",
    }
