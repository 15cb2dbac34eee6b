"""Each modality is described once: the three that there are, and a fourth that a test adds as it runs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from clipfarm_dagster.canary.check import Result, check_canary
from clipfarm_dagster.canary.environment import current_environment
from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.dimension import sentence_dimension
from clipfarm_dagster.demo.checkpoints import minilm_folder
from clipfarm_dagster.engine.options import EngineOptions
from clipfarm_dagster.errors import InvalidRawObjectError, ModelUnavailableError
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.modalities.encoder import Prepared, Trace
from clipfarm_dagster.modalities.modality import CanaryInput, Modality
from clipfarm_dagster.modalities.registry import MODALITIES, load_encoder, settings_for, stage_contract
from clipfarm_dagster.settings import Settings, StageSettings, load_settings
from clipfarm_dagster.stages import _RAW_SUFFIX, Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.npy import l2_normalise
from clipfarm_dagster_tests.support.bench import KEYS, OPTIONS, bench

HEAVY = "{'torch', 'transformers', 'sentence_transformers', 'librosa', 'boto3', 'duckdb', 'pandas'}"


def loaded_by(code: str, heavy: str) -> str:
    """Which of some modules a fresh process has loaded after `code`."""
    code = f"import importlib, sys\n{code}\nprint(sorted(({heavy}) & set(sys.modules)))"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_every_stage_has_one_modality() -> None:
    assert [modality.stage for modality in MODALITIES.values()] == list(MODALITIES) == list(Stage)


@pytest.mark.parametrize("stage", Stage)
def test_what_a_modality_names_is_there(stage: Stage, tmp_path: Path) -> None:
    modality, settings = MODALITIES[stage], load_settings(home=tmp_path)

    assert isinstance(settings.stage(stage), StageSettings)
    for name in modality.size_limits:
        assert getattr(EngineOptions.from_settings(settings), name) == getattr(settings, name)
    assert [name for name in modality.worker_imports if importlib.util.find_spec(name) is None] == []


OTHER_SETTINGS: list[tuple[Stage, dict[str, Any]]] = [
    *((stage, {}) for stage in Stage),
    *((stage, {"dtype": "bfloat16"}) for stage in Stage),
    (Stage.VIDEO, {"frames": 8, "unknown_count": "count", "pooling": "mean"}),
    (Stage.AUDIO, {"sample_rate": 8000, "max_seconds": 1.5}),
    *((stage, {"model": "owner/model", "revision": "f" * 40}) for stage in Stage),
]


@pytest.mark.parametrize(("stage", "of_stage"), OTHER_SETTINGS, ids=str)
@pytest.mark.parametrize("hub", [True, False], ids=["hub", "folder"])
def test_a_contract_leads_back_to_its_settings(
    stage: Stage, of_stage: dict[str, Any], hub: bool, models: dict[Stage, Path], tmp_path: Path
) -> None:
    now = load_settings(
        home=tmp_path,
        run_size=7,
        video={"batch_size": 3, "frames": 4, "dtype": "float16"},
        audio={"batch_size": 3, "max_seconds": 3.0, "dtype": "float16"},
        text={"batch_size": 3, "dtype": "float16", "source_columns": "title"},
    )
    of_stage = of_stage if hub else {**of_stage, "model": str(models[stage])}
    contract = stage_contract(stage, load_settings(home=tmp_path, **{str(stage): of_stage}))

    found = settings_for(contract, now)

    assert stage_contract(stage, now) != contract
    assert stage_contract(stage, found) == contract
    assert (found.run_size, found.stage(stage).batch_size) == (7, 3)
    assert found.stage(stage).source_columns == now.stage(stage).source_columns
    others = [other for other in Stage if other != stage]
    assert [found.stage(other) for other in others] == [now.stage(other) for other in others]
    assert settings_for(contract, found) == found


def test_a_local_model_is_found_where_this_machine_last_saw_it(
    models: dict[Stage, Path], tmp_path: Path
) -> None:
    home, folder = tmp_path / "home", Path(shutil.copytree(models[Stage.AUDIO], tmp_path / "first"))
    contract = stage_contract(Stage.AUDIO, load_settings(home=home, audio={"model": str(folder)}))
    now = load_settings(home=home)
    assert settings_for(contract, now).audio.model == str(folder)

    renamed = folder.rename(tmp_path / "second")
    with pytest.raises(ModelUnavailableError, match=rf"{folder} no longer has it.*CLIPFARM_AUDIO_MODEL"):
        settings_for(contract, now)
    stage_contract(Stage.AUDIO, load_settings(home=home, audio={"model": str(renamed)}))
    assert settings_for(contract, now).audio.model == str(renamed)

    (renamed / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailableError, match=rf"{renamed} no longer has it"):
        settings_for(contract, now)


def test_a_local_model_of_another_machine_is_named(models: dict[Stage, Path], tmp_path: Path) -> None:
    there = load_settings(home=tmp_path / "there", audio={"model": str(models[Stage.AUDIO])})
    contract = stage_contract(Stage.AUDIO, there)

    with pytest.raises(ModelUnavailableError, match=rf"wav2vec2 at sha256:.*{contract.id}.*no folder that"):
        settings_for(contract, load_settings(home=tmp_path / "here"))

    here = load_settings(home=tmp_path / "here", audio={"model": str(models[Stage.AUDIO]), "max_seconds": 1})
    assert stage_contract(Stage.AUDIO, settings_for(contract, here)) == contract


def test_a_hub_model_in_a_folder_is_found_there_under_another_models_settings(
    models: dict[Stage, Path], tmp_path: Path
) -> None:
    def settings(revision: str, path: Path | str) -> Settings:
        chosen = {"model": "owner/model", "revision": revision, "model_path": str(path)}
        return load_settings(home=tmp_path / "home", audio=chosen)

    first = Path(shutil.copytree(models[Stage.AUDIO], tmp_path / "first"))
    contract = stage_contract(Stage.AUDIO, settings("a" * 40, first))
    of_the_hub = stage_contract(Stage.AUDIO, settings("a" * 40, ""))
    assert contract == of_the_hub

    elsewhere = settings_for(contract, settings("b" * 40, models[Stage.AUDIO]))
    assert (elsewhere.audio.revision, elsewhere.audio.model_path) == ("a" * 40, str(first))
    assert settings_for(contract, settings("a" * 40, "")).audio.model_path == ""
    assert settings_for(contract, settings("b" * 40, first)).audio.model_path == ""
    first.rename(tmp_path / "renamed")
    assert settings_for(contract, settings("b" * 40, "")).audio.model_path == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"preprocess_version": "0"}, r"\(preprocess_version\); install"),
        ({"preprocess_name": "another"}, r"\(preprocess_name\); install"),
        ({"preprocess_params": {"frames": 16}}, r"\(unknown_count\); install"),
        (
            {"preprocess_params": {"frames": 16, "unknown_count": "first", "more": 1}},
            r"\(preprocess_params\)",
        ),
        ({"pooling": "max"}, r"\(pooling\); install"),
        ({"dtype": "int8"}, r"\(dtype\); install"),
        ({"model_revision": "main"}, "full commit SHA"),
    ],
    ids=str,
)
def test_a_contract_of_another_making_is_refused_with_what_is_different(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    settings = load_settings(home=tmp_path)
    contract = replace(stage_contract(Stage.VIDEO, settings), **change)

    with pytest.raises(ModelUnavailableError, match=rf"{contract.model_name}.*{contract.id}.*{told}"):
        settings_for(contract, settings)


def test_describing_modalities_loads_no_decoder_and_no_model() -> None:
    heavy = f"{HEAVY} | {{'av', 'numpy', 'PIL', 'soundfile'}}"

    assert loaded_by("import clipfarm_dagster.modalities.registry", heavy) == "[]"


def test_worker_processes_share_decoders_and_no_model() -> None:
    names = sorted({name for modality in MODALITIES.values() for name in modality.worker_imports})

    assert loaded_by(f"[importlib.import_module(name) for name in {names}]", HEAVY) == "[]"


class LettersPreparer:
    """Counts the letters of a transcript."""

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        transcript = json.loads(raw).get("transcript", "").lower()
        counts = np.array([transcript.count(chr(letter)) for letter in range(97, 123)], dtype=np.float32)
        if not counts.any():
            raise InvalidRawObjectError("the transcript has no letters")
        return Prepared(counts, None)


class LettersEncoder:
    """A vector of how often each letter occurs."""

    dimension, batch_size, finds_batch_size = 26, 2, False
    preparer = LettersPreparer()

    def __init__(self, contract: Contract, device: str) -> None:
        self.contract, self.device = contract, device

    def encode(self, batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
        counts = np.stack([item.inputs for item in batch])
        return l2_normalise(np.sqrt(counts) if self.contract.pooling == "sqrt" else counts)

    def trace(self, raw: bytes, metadata: Mapping[str, str]) -> Trace:
        item = self.preparer(raw, metadata)
        return Trace(np.frombuffer(raw, np.uint8), item.inputs, self.encode([item])[0])

    def parameters(self) -> Iterator[Any]:
        return iter(())


class LettersSettings(StageSettings):
    model: str = str(minilm_folder())
    revision: str = ""
    pooling: str = "sqrt"


class FourModalities(Settings):
    letters: LettersSettings = Field(default_factory=LettersSettings)


def load(
    contract: Contract, settings: Settings, checkpoint: Checkpoint, folder: Path, device: str
) -> LettersEncoder:
    assert (folder / "config.json").is_file()
    return LettersEncoder(contract, device)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A fourth modality: a line in the enum, one for its suffix, and its description."""
    stage = str.__new__(Stage, "letters")
    stage._name_, stage._value_ = "LETTERS", "letters"
    monkeypatch.setitem(Stage._member_map_, "LETTERS", stage)
    monkeypatch.setitem(Stage._value2member_map_, "letters", stage)
    monkeypatch.setattr(Stage, "_member_names_", [*Stage._member_names_, "LETTERS"])
    monkeypatch.setitem(_RAW_SUFFIX, stage, ".json")
    modality = Modality(
        stage=stage,
        embedding_description="Letters of each transcript.",
        raw_description="Transcripts.",
        preprocess_name="count",
        preprocess_version="1",
        preprocess_params=lambda settings: {"alphabet": "a-z"},
        pooling=lambda settings: settings.stage(stage).pooling,  # type: ignore[attr-defined]
        deciding_settings=lambda contract: {"pooling": contract.pooling},
        load=load,
        dimension=sentence_dimension,
        previewer=lambda settings: LettersPreparer(),
        isolated=False,
        worker_imports=(),
        size_limits=("max_object_bytes", "max_text_bytes"),
        canary=CanaryInput(file="text.json", decoded_tolerance=0.0, prepared_tolerance=0.0),
    )
    monkeypatch.setitem(MODALITIES, stage, modality)
    return stage


def test_a_fourth_modality_is_embedded_and_recorded_as_the_others_are(letters: Stage, tmp_path: Path) -> None:
    settings = FourModalities(home=tmp_path / "home", device="cpu")
    encoder, contract = load_encoder(letters, settings), stage_contract(letters, settings)
    texts = {"v1": "abba", "v2": "zebra", "v3": "oxen", "v4": "1234", "v5": "a" * 400}
    store = ObjectStore.open(str(tmp_path / "store"))

    with bench(encoder, store, tmp_path) as stage:
        stage.put({i: json.dumps({"transcript": text}).encode() for i, text in texts.items()})
        progress = stage.run([*texts, "not-there"], max_text_bytes=400)
        stage.recorded = []
        again = stage.run(list(texts)[:3])
        rows = stage.ledger.rows([*texts, "not-there"])
        recorded = stage.ledger.contract(contract.id)

    assert progress.outcomes == {"success": 3, "invalid_raw_object": 2, "missing_raw_object": 1}
    assert again.model_calls == 0
    assert rows["v4"].error == "the transcript has no letters"
    assert "CLIPFARM_MAX_TEXT_BYTES=400" in (rows["v5"].error or "")
    assert recorded == contract
    assert (contract.stage, contract.pooling) == (letters, "sqrt")
    keys = [f"clipfarm/embeddings/letters/{i}.npy" for i in ("v1", "v2", "v3")]
    assert sorted(store.list(KEYS.embedding_folder(letters))["key"].to_pylist()) == keys
    vector = stage.vector("v1")
    assert vector.shape == (26,)
    assert vector[:2] == pytest.approx([0.5**0.5, 0.5**0.5])
    row = rows["v1"]
    assert (row.status, row.contract_id, row.embedding_dim) == (Status.SUCCESS, contract.id, 26)
    assert row.artifact_sha256 == hashlib.sha256(vector.tobytes()).hexdigest()


def test_a_fourth_modality_has_its_canary(letters: Stage, tmp_path: Path) -> None:
    settings = FourModalities(home=tmp_path, device="cpu")
    store, environment = ObjectStore.open(str(tmp_path / "store")), current_environment("cpu")

    first = check_canary(load_encoder(letters, settings), environment, store, KEYS)
    second = check_canary(load_encoder(letters, settings), environment, store, KEYS)

    assert (first.result, second.result) == (Result.STORED, Result.AGREES)
    assert OPTIONS.object_limit(letters) == OPTIONS.object_limit(Stage.TEXT)
