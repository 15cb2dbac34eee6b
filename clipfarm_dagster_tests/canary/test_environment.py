"""The environment names what a vector should not depend on, and tells two of them apart."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from clipfarm_dagster.canary.environment import Environment, current_environment


def test_it_names_versions_device_and_threads() -> None:
    environment = current_environment("cpu")
    assert environment.libraries["torch"] == version("torch")
    assert {"av", "libavcodec", "libswscale", "librosa", "soxr", "pillow"} <= environment.libraries.keys()
    assert environment.device == "cpu"
    assert environment.threads == torch.get_num_threads()
    assert current_environment("cpu").id == environment.id


def test_threads_and_kernels_are_other_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads = current_environment("cpu"), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        after = current_environment("cpu")
    finally:
        torch.set_num_threads(threads)
    assert after.id != before.id
    assert before.differences(after) == [f"threads {threads} → {threads + 1}"]
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert before.differences(current_environment("cpu")) == ["mkldnn True → False"]


def test_its_serialisation_comes_back_and_a_new_library_is_a_difference() -> None:
    environment = current_environment("cpu")
    stored = json.loads(environment.to_json())
    assert Environment.from_fields(stored) == environment
    assert Environment.from_fields({**stored, "of an earlier version": 8}) == environment
    newer = replace(environment, libraries={**environment.libraries, "torch": "9", "new": "1"})
    assert newer.id != environment.id
    assert environment.differences(newer) == [
        "new absent → 1",
        f"torch {environment.libraries['torch']} → 9",
    ]
