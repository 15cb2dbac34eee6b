"""`clipfarm sync` on a cluster: what ledger, Dagster and output say is what they say of one machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.names import CONTRACT_TAG, DEFAULT_NAMES, ENVIRONMENT_TAG
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript, wav
from workbench.ray_cluster import Cluster

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


def test_three_stages_are_embedded_on_the_nodes(
    corpus: Corpus,
    clipfarm: Callable[..., Ended],
    on_cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPFARM_ENGINE", "ray")
    put_metadata(corpus, [metadata_row(name) for name in ("a", "b")])
    for name in ("a", "b"):
        put_transcript(corpus, name, f"words of {name}")
    corpus.store.put(corpus.keys.raw(Stage.AUDIO, "a"), wav(pitch=300.0))

    ended = clipfarm("sync", "--json")

    assert ended.code == 0, ended.errors
    done: dict[str, Any] = ended.json["stages"]
    counted = {stage: {k: v for k, v in entry.items() if k != "seconds"} for stage, entry in done.items()}
    assert counted == {
        "video": {"missing_raw_object": 2, "model_calls": 0},
        "audio": {"success": 1, "missing_raw_object": 1, "model_calls": 1},
        "text": {"success": 2, "model_calls": 2},
    }
    with dg.DagsterInstance.get() as instance:
        runs = {run.job_name: run for run in instance.get_runs()}
        tags = runs[DEFAULT_NAMES.embedding_job(Stage.TEXT)].tags
        assert tags[CONTRACT_TAG] == corpus.contract(Stage.TEXT).id
        assert len(tags[ENVIRONMENT_TAG]) == 16
        assert materialized_versions(instance, DEFAULT_NAMES.embedding(Stage.TEXT)).keys() == {"a", "b"}

    again = clipfarm("sync", "--json")
    assert again.json["stages"]["text"]["model_calls"] == 0


def test_a_cluster_that_cannot_be_used_is_one_sentence_and_loses_nothing(
    corpus: Corpus, clipfarm: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPFARM_ENGINE", "ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    put_metadata(corpus, [metadata_row("a")])
    put_transcript(corpus, "a", "words")

    ended = clipfarm("sync", "--stage", "text")

    assert ended.code != 0
    assert "RAY_ADDRESS" in ended.errors
    with corpus.ledger(Stage.TEXT) as ledger:
        assert ledger.counts() == {}
