"""The canary sees what moved, names the step, and is silent otherwise."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from clipfarm_dagster.canary import check as canary
from clipfarm_dagster.canary.baseline import Baseline, Step, compare
from clipfarm_dagster.canary.check import (
    Report,
    Result,
    accept_canary,
    canary_input,
    check_before_writing,
    check_canary,
)
from clipfarm_dagster.canary.environment import Environment, current_environment
from clipfarm_dagster.cli.app import app
from clipfarm_dagster.errors import BaselineError, DriftError
from clipfarm_dagster.modalities.audio import encoder as audio
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.modalities.video import frames
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.home import Home
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster_tests.support.models import model_settings

KEYS = Keys()


@pytest.fixture(scope="module")
def environment() -> Environment:
    return current_environment("cpu")


@pytest.fixture
def folder_store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(str(tmp_path / "store"))


@pytest.fixture
def load(models: dict[Stage, Path], tmp_path: Path) -> Callable[..., Encoder]:
    """Loads a stage's small model, with changed settings where given."""

    def load(stage: Stage, **changes: Any) -> Encoder:
        return load_encoder(stage, model_settings(models, tmp_path, **{str(stage): changes}))

    return load


# the inputs


def test_the_inputs_are_the_bytes_that_stored_baselines_belong_to() -> None:
    digests = {stage: hashlib.sha256(canary_input(stage)[0]).hexdigest()[:16] for stage in Stage}
    assert digests == {
        Stage.VIDEO: "e1af8e619300ab31",
        Stage.AUDIO: "6436b42437ad9f60",
        Stage.TEXT: "764a189c968601e0",
    }
    assert set(canary_input(Stage.VIDEO)[1]) == {"title", "description", "query"}


# clean runs


@pytest.mark.parametrize("stage", list(Stage))
def test_fifty_clean_runs_raise_no_alarm(
    stage: Stage, load: Callable[..., Encoder], environment: Environment, folder_store: ObjectStore
) -> None:
    encoder = load(stage)
    threads = torch.get_num_threads()
    try:
        assert check_canary(encoder, environment, folder_store, KEYS).result == Result.STORED
        for run in range(50):
            torch.set_num_threads(1 + run % 3)
            report = check_canary(encoder, environment, folder_store, KEYS)
            assert report.result == Result.AGREES, report.problem
            assert [step.deviation for step in report.steps[:3]] == [0, 0, 0]
    finally:
        torch.set_num_threads(threads)


def test_a_baseline_comes_back_as_it_was_stored(
    load: Callable[..., Encoder], environment: Environment
) -> None:
    made = canary.measure(load(Stage.AUDIO), environment)
    again = Baseline.from_npz(made.to_npz())
    assert replace(again, trace=made.trace) == made
    for name in ("decoded", "prepared", "vector"):
        np.testing.assert_array_equal(getattr(again.trace, name), getattr(made.trace, name), strict=True)


def test_what_earlier_versions_stored_of_an_environment_can_be_read(
    load: Callable[..., Encoder], environment: Environment, folder_store: ObjectStore
) -> None:
    encoder = load(Stage.TEXT)
    made = canary.measure(encoder, environment)
    key = KEYS.canary_baseline(Stage.TEXT, encoder.contract.id)
    with np.load(io.BytesIO(made.to_npz())) as arrays:
        earlier = dict(arrays)
    about = json.loads(str(earlier["about"]))
    about["environment"]["of an earlier version"] = 8
    earlier["about"] = np.array(json.dumps(about))
    folder_store.put(key, npz_of(earlier))

    assert check_canary(encoder, environment, folder_store, KEYS).baseline_environment == environment

    agreement = KEYS.canary_agreement(Stage.TEXT, encoder.contract.id, environment.id)
    record = json.loads(folder_store.get(agreement).data)
    record["environment"]["of an earlier version"] = 8
    folder_store.put(agreement, json.dumps(record).encode())
    to_float16(encoder)
    report = check_canary(encoder, environment, folder_store, KEYS)
    assert report.moved == Step.WEIGHTS
    assert f"the last to agree was {environment.id}" in str(report.since)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda whole: whole[:500],
        lambda _: b"PK, and nothing else",
        lambda _: npz_of({"else": np.zeros(3)}),
    ],
    ids=["empty", "cut", "no archive", "another archive"],
)
def test_a_baseline_that_cannot_be_read_is_named_and_can_be_replaced(
    damage: Callable[[bytes], bytes],
    load: Callable[..., Encoder],
    environment: Environment,
    folder_store: ObjectStore,
    tmp_path: Path,
) -> None:
    encoder = load(Stage.TEXT)
    check_canary(encoder, environment, folder_store, KEYS)
    key = KEYS.canary_baseline(Stage.TEXT, encoder.contract.id)
    folder_store.put(key, damage(folder_store.get(key).data))

    with pytest.raises(BaselineError, match=rf"{key}.*`clipfarm canary --stage text --accept`"):
        check_before_writing(encoder, environment, folder_store, KEYS, Home(tmp_path / "home"))

    accept_canary(encoder, environment, folder_store, KEYS)
    assert check_canary(encoder, environment, folder_store, KEYS).result == Result.AGREES


def npz_of(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """The bytes of an archive of arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_a_baseline_under_the_id_that_earlier_versions_gave_a_folder_counts(
    load: Callable[..., Encoder], environment: Environment, folder_store: ObjectStore, tmp_path: Path
) -> None:
    encoder = load(Stage.AUDIO)
    contract = encoder.contract
    key, former = (KEYS.canary_baseline(Stage.AUDIO, i) for i in (contract.id, contract.former_id))
    assert key != former
    folder_store.put(former, canary.measure(encoder, environment).to_npz())

    assert check_canary(encoder, environment, folder_store, KEYS).result == Result.AGREES
    assert folder_store.get(key).data == folder_store.get(former).data

    folder_store.delete(key)
    change_one_tensor(encoder)
    with pytest.raises(DriftError, match="'model'"):
        check_before_writing(encoder, environment, folder_store, KEYS, Home(tmp_path / "home"))


# drift


@contextlib.contextmanager
def one_frame_shifted() -> Iterator[None]:
    """The ninth sampled frame is the one after it."""
    real = frames.sample_frames

    def shifted(data: bytes, **options: Any) -> frames.SampledFrames:
        sampled = real(data, **options)
        every = real(data, **{**options, "count": sampled.total}).frames
        wrong = sampled.frames.copy()
        wrong[8] = every[sampled.indices[8] + 1]
        return replace(sampled, frames=wrong)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "sample_frames", shifted)
        yield


@contextlib.contextmanager
def another_resampler() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "RESAMPLER", "soxr_mq")
        yield


def change_one_tensor(encoder: Any) -> None:
    with torch.no_grad():
        weight = list(encoder.parameters())[5]
        weight[(0,) * weight.ndim] += 1e-2


def to_float16(encoder: Any) -> None:
    encoder._model.half()


def resize_bicubic(encoder: Any) -> None:
    encoder.preparer = replace(
        encoder.preparer,
        transform=replace(encoder.preparer.transform, resample=int(Image.Resampling.BICUBIC)),
    )


def other_means(encoder: Any) -> None:
    encoder._pixel_values = encoder._pixel_values + np.float32(0.02)


def round_each_layer(encoder: Any) -> None:
    """What kernels of lower precision would do, the weights being the same."""
    for module in encoder._model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(lambda _m, _i, output: output.bfloat16().float())


DRIFTS = [
    *((stage, change_one_tensor, Step.WEIGHTS) for stage in Stage),
    *((stage, to_float16, Step.WEIGHTS) for stage in Stage),
    *((stage, round_each_layer, Step.VECTOR) for stage in Stage),
    (Stage.VIDEO, one_frame_shifted, Step.DECODED),
    (Stage.VIDEO, resize_bicubic, Step.PREPARED),
    (Stage.VIDEO, other_means, Step.PREPARED),
    (Stage.AUDIO, another_resampler, Step.PREPARED),
]


@pytest.mark.parametrize(
    ("stage", "drift", "step"), DRIFTS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_drift_is_caught_and_the_step_is_named(
    stage: Stage,
    drift: Callable[..., Any],
    step: Step,
    load: Callable[..., Encoder],
    environment: Environment,
    folder_store: ObjectStore,
    tmp_path: Path,
) -> None:
    encoder = load(stage)
    check_canary(encoder, environment, folder_store, KEYS)
    before = {key: folder_store.get(key).data for key in folder_store.list()["key"].to_pylist()}
    later = replace(environment, libraries={**environment.libraries, "torch": "9.9"})

    around = drift() if drift in (one_frame_shifted, another_resampler) else contextlib.nullcontext()
    if drift not in (one_frame_shifted, another_resampler):
        drift(encoder)
    with around:
        report = check_canary(encoder, later, folder_store, KEYS)
        with pytest.raises(DriftError) as raised:
            check_before_writing(encoder, later, folder_store, KEYS, Home(tmp_path / "home"))

    assert (report.result, report.moved) == (Result.MOVED, step)
    assert (raised.value.stage, raised.value.step) == (stage, step)
    text = str(raised.value)
    assert f"{stage} canary moved at the step {step.value!r}" in text
    assert environment.id in text
    assert later.id in text
    assert f"torch {environment.libraries['torch']} → 9.9" in text
    assert "clipfarm canary" in text
    after = {key: folder_store.get(key).data for key in folder_store.list()["key"].to_pylist()}
    assert after == before


def test_the_last_environment_that_agreed_is_named(
    load: Callable[..., Encoder], environment: Environment, folder_store: ObjectStore
) -> None:
    encoder: Any = load(Stage.TEXT)
    second = replace(environment, libraries={**environment.libraries, "av": "99"})
    third = replace(second, libraries={**second.libraries, "pillow": "99"})
    check_canary(encoder, environment, folder_store, KEYS)
    check_canary(encoder, second, folder_store, KEYS)
    to_float16(encoder)
    report = check_canary(encoder, third, folder_store, KEYS)
    assert report.since is not None
    assert f"in environment {environment.id}" in report.since
    assert f"the last to agree was {second.id}" in report.since
    assert f"pillow {environment.libraries['pillow']} → 99" in report.since
    assert "av " not in report.since.partition("since then")[2]


def test_another_shape_has_no_distance_and_moves(
    load: Callable[..., Encoder], environment: Environment
) -> None:
    made = canary.measure(load(Stage.TEXT), environment)
    longer = replace(made, trace=replace(made.trace, prepared=np.append(made.trace.prepared, 1)))
    steps = compare(Stage.TEXT, "float32", made, longer)
    assert [(step.deviation, step.moved) for step in steps] == [
        (0, False),
        (None, True),
        (0, False),
        (0, False),
    ]


def test_a_vector_that_is_no_number_moves(load: Callable[..., Encoder], environment: Environment) -> None:
    made = canary.measure(load(Stage.TEXT), environment)
    broken = replace(made, trace=replace(made.trace, vector=made.trace.vector * np.nan))
    assert compare(Stage.TEXT, "float32", made, broken)[3].moved


# once


def test_each_environment_contract_and_baseline_is_checked_once(
    load: Callable[..., Encoder], environment: Environment, folder_store: ObjectStore, tmp_path: Path
) -> None:
    encoder = load(Stage.TEXT)

    def check(encoder: Encoder, environment: Environment, home: str = "home") -> Report | None:
        return check_before_writing(encoder, environment, folder_store, KEYS, Home(tmp_path / home))

    assert (first := check(encoder, environment)) is not None
    assert first.result == Result.STORED
    assert check(encoder, environment) is None
    assert check(encoder, environment, home="another machine") is not None
    assert check(encoder, replace(environment, threads=77)) is not None
    assert check(load(Stage.TEXT, dtype="bfloat16"), environment) is not None
    accept_canary(encoder, replace(environment, threads=78), folder_store, KEYS)
    assert (again := check(encoder, environment)) is not None
    assert again.result == Result.AGREES
    folder_store.delete(KEYS.canary_baseline(Stage.TEXT, encoder.contract.id))
    assert (anew := check(encoder, environment)) is not None
    assert anew.result == Result.STORED


def test_what_is_accepted_becomes_the_baseline(
    load: Callable[..., Encoder], environment: Environment, folder_store: ObjectStore
) -> None:
    encoder: Any = load(Stage.TEXT)
    check_canary(encoder, environment, folder_store, KEYS)
    to_float16(encoder)
    assert check_canary(encoder, environment, folder_store, KEYS).moved == Step.WEIGHTS
    accept_canary(encoder, environment, folder_store, KEYS)
    assert check_canary(encoder, environment, folder_store, KEYS).result == Result.AGREES


def test_two_first_runs_at_once_leave_one_baseline(
    load: Callable[..., Encoder], environment: Environment, folder_store: ObjectStore
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    encoders = [load(Stage.TEXT) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda e: check_canary(e, environment, folder_store, KEYS), encoders))
    assert sorted(report.result for report in reports)[-1] == Result.STORED
    assert [report.moved for report in reports] == [None] * 3
    assert len({report.baseline_etag for report in reports}) == 1


# the command


def test_the_command_stores_agrees_alarms_and_accepts(
    models: dict[Stage, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPFARM_HOME", str(tmp_path))
    monkeypatch.setenv("CLIPFARM_DEVICE", "cpu")
    monkeypatch.setenv("CLIPFARM_AUDIO_MODEL", str(models[Stage.AUDIO]))

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(app, ["canary", "--json", "--stage", "audio", *arguments])
        answer: dict[str, Any] = json.loads(done.stdout)
        return done.exit_code, answer["stages"]["audio"]

    code, first = run()
    assert (code, first["result"], first["moved"]) == (0, "stored", None)
    store = ObjectStore.open(str(tmp_path / "store"))
    key = KEYS.canary_baseline(Stage.AUDIO, first["contract"])
    baseline = Baseline.from_npz(store.get(key).data)
    moved = replace(baseline, trace=replace(baseline.trace, decoded=baseline.trace.decoded * np.float32(1.1)))
    store.put(key, moved.to_npz())
    code, alarm = run()
    assert (code, alarm["result"], alarm["moved"]) == (1, "moved", "decoder")
    shown = CliRunner().invoke(app, ["canary", "--stage", "audio"])
    assert shown.exit_code == 1
    assert "the audio canary moved at the step 'decoder'" in shown.stdout
    assert alarm["deviations"]["decoder"] == pytest.approx(1 - 1 / 1.1, rel=1e-4)
    assert run("--accept")[0] == 0
    code, last = run()
    assert (code, last["result"]) == (0, "agrees")
