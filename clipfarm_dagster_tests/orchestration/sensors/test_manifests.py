"""The manifest sensor: one run a burst."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster import DagsterRunStatus

from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.manifests.refresh import refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config
from clipfarm_dagster.orchestration.sensors.manifests import (
    LONGEST_WAIT,
    LastManifests,
    decide,
)
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.corpora import embed, embed_all, open_corpus
from clipfarm_dagster_tests.support.runs import create_run
from clipfarm_dagster_tests.support.stages import opened

NOW = datetime(2026, 2, 1, tzinfo=UTC)
IDS = ["a", "b"]


def _ticks(*ticks, seen=None):
    """Numbers of the ticks that launch a run; a tick is (version, busy) or (version, busy, failed)."""
    seen, launched = seen or LastManifests(), []
    for number, (version, busy, *failed) in enumerate(ticks):
        decision = decide(
            LastManifests.from_cursor(seen.to_cursor()),
            {"video": version},
            busy=busy,
            refreshing=False,
            failed=any(failed),
            now=NOW + number * timedelta(seconds=45),
        )
        seen = decision.seen
        if decision.launch:
            launched.append(number)
    return launched


def test_a_burst_of_runs_launches_one_run_after_it():
    burst = [("1", True), ("2", True), ("3", False), ("4", True), ("5", False), ("5", False), ("5", False)]

    assert _ticks(*burst) == [5]


def test_a_change_between_two_ticks_without_a_run_in_flight_is_seen():
    assert _ticks(("1", False), ("1", False), ("1", False), ("2", False), ("2", False)) == [1, 4]


def test_embeddings_that_never_rest_do_not_keep_manifests_away():
    ticks = int(LONGEST_WAIT / timedelta(seconds=45)) + 2
    launched = _ticks(*[(str(number), True) for number in range(2 * ticks)])

    assert launched == [40, 81]


def test_a_failed_run_is_repeated_after_a_while_and_not_at_once():
    ticks = int(LONGEST_WAIT / timedelta(seconds=45)) + 3
    quiet = [("1", False), ("1", False)]

    assert _ticks(*quiet, *[("1", False, True)] * ticks) == [1, 41]
    assert _ticks(*quiet, *[("1", False, False)] * ticks) == [1]


def test_a_run_of_manifests_in_progress_is_waited_for():
    decision = decide(
        LastManifests(last={"video": "1"}), {"video": "1"}, busy=False, refreshing=True, failed=False, now=NOW
    )

    assert not decision.launch
    assert decision.seen.done == {}


def test_a_cursor_of_somebody_else_counts_as_nothing_seen():
    assert (
        LastManifests.from_cursor("not json")
        == LastManifests.from_cursor('{"other": 1}')
        == LastManifests.from_cursor(None)
        == LastManifests()
    )


@pytest.fixture
def corpus(tmp_path):
    return open_corpus(tmp_path / "home")


@pytest.fixture
def instance(tmp_path):
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


def _tick(corpus, instance, cursor):
    resources = {
        "object_store": ObjectStoreResource(url=corpus.settings.store_url),
        "stage_state": StageStateResource(home=str(corpus.settings.home)),
    }
    definitions = build_definitions(resource_overrides=resources)
    sensor = definitions.resolve_sensor_def(DEFAULT_NAMES.manifest_sensor)
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, resources=definitions.resources
    ) as context:
        answer = sensor(context)
        if isinstance(answer, dg.SensorResult):
            return answer.run_requests, answer.cursor
        return [], context.cursor


def test_landed_embeddings_lead_to_one_run_once_they_rest(corpus, instance):
    embed_all(corpus, IDS)
    run = create_run(
        instance,
        DEFAULT_NAMES.embedding_job(Stage.TEXT),
        DagsterRunStatus.STARTED,
        run_config=id_list_run_config(DEFAULT_NAMES, Stage.TEXT, ["a"]),
    )
    requests, cursor = _tick(corpus, instance, None)
    assert requests == []
    requests, cursor = _tick(corpus, instance, cursor)
    assert requests == []  # a run has embeddings in hand

    instance.delete_run(run.run_id)
    [request], cursor = _tick(corpus, instance, cursor)
    assert request.run_config["ops"]["fused_manifest"]["config"]["strategies"] == ["concat"]

    requests, cursor = _tick(corpus, instance, cursor)
    assert requests == []
    embed(corpus, Stage.AUDIO, ["c"])
    requests, cursor = _tick(corpus, instance, cursor)
    assert requests == []
    requests, cursor = _tick(corpus, instance, cursor)
    assert len(requests) == 1


def test_strategies_that_were_materialized_once_are_kept_fresh(corpus, instance):
    embed_all(corpus, IDS)
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(opened(corpus, ledger))
    refresh_fused(corpus, make_strategy("weighted", ""))
    _, cursor = _tick(corpus, instance, None)

    [request], _ = _tick(corpus, instance, cursor)

    assert request.run_config["ops"]["fused_manifest"]["config"]["strategies"] == ["concat", "weighted"]


@pytest.mark.parametrize(
    "status", [DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED]
)
def test_runs_of_manifests_are_not_launched_beside_each_other(corpus, instance, status):
    embed_all(corpus, IDS)
    create_run(instance, DEFAULT_NAMES.manifests_job, status)
    cursor = None
    for _ in range(4):
        requests, cursor = _tick(corpus, instance, cursor)
        assert requests == []


def test_queued_embeddings_are_waited_for(corpus, instance):
    embed_all(corpus, IDS)
    create_run(
        instance,
        DEFAULT_NAMES.embedding_job(Stage.TEXT),
        DagsterRunStatus.QUEUED,
        run_config=id_list_run_config(DEFAULT_NAMES, Stage.TEXT, ["c"]),
    )
    cursor = None
    for _ in range(4):
        requests, cursor = _tick(corpus, instance, cursor)
        assert requests == []


def test_a_ledger_that_cannot_be_read_fails_the_tick(corpus, instance, tmp_path):
    path = tmp_path / "home" / "state" / "video_embedding.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database, but long enough to be looked at as if it were one" * 100)

    with pytest.raises(dg.Failure, match="The next tick tries again"):
        _tick(corpus, instance, None)
