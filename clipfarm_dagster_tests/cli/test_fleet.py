"""`clipfarm plan --nodes`: from what a run recorded to hours and cost, and back in the next run's summary."""

from __future__ import annotations

import re
from collections.abc import Callable

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from workbench.ray_cluster import Cluster

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


def put_texts(corpus: Corpus, count: int, *, there: int = 0) -> None:
    names = [f"v{n}" for n in range(count)]
    put_metadata(corpus, [metadata_row(name) for name in names])
    for name in names[there:]:
        put_transcript(corpus, name, f"words of {name}")


def test_without_a_recorded_rate_it_says_how_to_get_one(corpus: Corpus, clipfarm: Callable[..., Ended]):
    put_texts(corpus, 2)

    ended = clipfarm("plan", "--nodes", "4", "--price", "2.5")
    told = clipfarm("plan", "--nodes", "4", "--json").json["fleet"]

    assert ended.code == 0
    assert "No run has recorded how fast a node is with text. Embed a few hundred" in ended.output
    assert told == {"nodes": 4, "price": None, "unknown": ["text"], "kinds": []}
    assert "fleet" not in clipfarm("plan", "--json").json


def test_a_price_without_nodes_is_refused(corpus: Corpus, clipfarm: Callable[..., Ended]):
    put_texts(corpus, 1)

    ended = clipfarm("plan", "--price", "2.5")

    assert (ended.code, ended.output) == (2, "")
    assert "--nodes" in ended.errors


def test_a_run_is_what_the_next_plan_goes_by_and_is_compared_with(
    corpus: Corpus, clipfarm: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    put_texts(corpus, 8)
    assert clipfarm("sync", "--stage", "text").code == 0
    put_texts(corpus, 20, there=8)

    ended = clipfarm("plan", "--stage", "text", "--nodes", "3", "--price", "2", "--json")

    fleet = ended.json["fleet"]
    [kind] = fleet["kinds"]
    text = kind["stages"]["text"]
    assert fleet["unknown"] == []
    assert re.match(r"\d+ cores of ", kind["kind"])
    assert (text["items"], text["known_from_items"]) == (12, 8)
    assert text["hours"] == pytest.approx(12 / (3 * text["items_per_second"]) / 3600)
    assert kind["cost"] == pytest.approx(text["hours"] * 3 * 2)
    monkeypatch.setenv("COLUMNS", "80")
    shown = clipfarm("plan", "--stage", "text", "--nodes", "3", "--price", "2").output
    assert "On 3 nodes with " in shown
    assert "(of 8)" in shown

    assert clipfarm("sync", "--stage", "text").code == 0
    with dg.DagsterInstance.get() as instance:
        first, second = sorted(
            instance.get_run_records(dg.RunsFilter(job_name=DEFAULT_NAMES.embedding_job(Stage.TEXT))),
            key=lambda record: record.storage_id,
        )
    assert "clipfarm/planned_seconds" not in first.dagster_run.tags
    tags = second.dagster_run.tags
    planned = float(tags["clipfarm/planned_seconds"])
    assert planned == pytest.approx(12 / text["items_per_second"], abs=0.002)
    assert float(tags["clipfarm/computing_seconds"]) > 0


@pytest.mark.slow
def test_nodes_of_a_cluster_record_their_kind(
    corpus: Corpus,
    clipfarm: Callable[..., Ended],
    on_cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("CLIPFARM_ENGINE", "ray")
    monkeypatch.setenv("CLIPFARM_RAY_ACTOR_CORES", "1")
    put_texts(corpus, 8)
    assert clipfarm("sync", "--stage", "text").code == 0
    put_texts(corpus, 9, there=8)

    [kind] = clipfarm("plan", "--stage", "text", "--nodes", "1", "--json").json["fleet"]["kinds"]

    assert kind["kind"].startswith("2 cores of "), "both processes are of one node"
    assert kind["stages"]["text"]["known_from_items"] == 8
