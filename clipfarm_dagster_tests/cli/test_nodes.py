"""`clipfarm nodes`: what a run would find, before there is one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clipfarm_dagster.canary.baseline import Baseline
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from workbench.ray_cluster import Cluster

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


def test_this_machine_is_the_one_node_of_the_local_engine(
    corpus: Corpus, clipfarm: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = clipfarm("nodes", "--json", "--stage", "text", "--stage", "audio")

    assert (first.code, first.errors) == (0, "")
    [node] = first.json["nodes"]
    assert first.json["cluster"] is None
    assert (node["device"], node["left_out"]) == ("cpu", False)
    assert node["free_memory_bytes"] > 0
    assert node["stages"].keys() == {"text", "audio"}
    for stage in node["stages"].values():
        assert (stage["model"], stage["canary"], stage["problem"]) == ("same", {}, None)
        assert stage["items_per_second"] > 0

    monkeypatch.setenv("COLUMNS", "80")
    again = clipfarm("nodes", "--stage", "text")
    assert again.code == 0
    for told in ("This machine", "same contract", "canary same", "a second", "of memory free"):
        assert told in again.output
    assert max(map(len, again.output.splitlines())) <= 80


def test_a_cluster_whose_nodes_agree(
    corpus: Corpus,
    clipfarm: Callable[..., Ended],
    on_cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPFARM_ENGINE", "ray")
    monkeypatch.setenv("CLIPFARM_RAY_ACTORS", "1")  # of a run: here all are asked
    monkeypatch.setenv("CLIPFARM_RAY_ACTOR_CORES", "1")

    ended = clipfarm("nodes", "--json", "--stage", "text")

    assert ended.code == 0, ended.errors
    assert ended.json["cluster"] == on_cluster.address
    [node] = ended.json["nodes"]
    assert node["node"].endswith(f" ({socket.gethostname()})")
    assert node["device"] == "2 × cpu"
    assert node["versions"].keys() >= {"python", "clipfarm-dagster", "ray", "torch", "transformers"}
    assert node["stages"]["text"]["model"] == "same"
    assert node["stages"]["text"]["items_per_second"] > 0


def test_a_node_that_would_be_left_out_is_named_with_the_reason_and_the_way_out(
    corpus: Corpus,
    clipfarm: Callable[..., Ended],
    on_cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert clipfarm("nodes", "--stage", "text").code == 0
    key = corpus.keys.canary_baseline(Stage.TEXT, corpus.contract(Stage.TEXT).id)
    stored = Baseline.from_npz(corpus.store.get(key).data)
    moved = replace(stored, trace=replace(stored.trace, vector=-stored.trace.vector))
    corpus.store.put(key, moved.to_npz())
    monkeypatch.setenv("CLIPFARM_ENGINE", "ray")

    ended = clipfarm("nodes", "--json", "--stage", "text")

    assert ended.code == 2
    [node] = ended.json["nodes"]
    assert node["left_out"]
    assert node["stages"]["text"]["model"] == "drifts"
    assert ended.errors.startswith("clipfarm: 1 of 1 nodes would be left out of runs. text: node ")
    for told in (
        "the text canary moved",
        "lies 2 from the baseline",
        "versions of the libraries",
        "`ray stop`",
    ):
        assert told in ended.errors
    assert ended.errors.count("\n") == 1


def test_without_a_model_the_node_says_so(
    corpus: Corpus, clipfarm: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLIPFARM_TEXT_MODEL")  # one of the hub, whose files are said to lie here
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL_PATH", str(tmp_path))

    ended = clipfarm("nodes", "--json", "--stage", "text")

    assert ended.code == 2
    [node] = ended.json["nodes"]
    assert node["stages"]["text"]["model"] == "no model"
    assert node["stages"]["text"]["items_per_second"] is None
    assert node["device"] is None
    assert node["free_memory_bytes"] > 0
    assert ended.errors.startswith("clipfarm: runs could not compute on this machine. text: ")


def test_a_cluster_that_is_not_there_is_one_sentence(
    corpus: Corpus, clipfarm: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPFARM_ENGINE", "ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    ended = clipfarm("nodes")

    assert (ended.code, ended.output) == (2, "")
    assert "RAY_ADDRESS" in ended.errors
