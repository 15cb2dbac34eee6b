"""The sensor: unseen, unchanged, changed, bad row, failed read, run in flight, retry."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import time_machine
from dagster._core.events import EngineEventData

from clipfarm_dagster.corpus import Corpus, stage_corpus
from clipfarm_dagster.corpus import corpus as corpus_module
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.orchestration.launching import chunks
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.id_list import id_list, id_list_run_config, id_list_run_tags
from clipfarm_dagster.orchestration.sensors import watching
from clipfarm_dagster.orchestration.sensors.watching import LastPlan
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon, put_texts, requested
from clipfarm_dagster_tests.support.locks import write_lock_held
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript, wav
from clipfarm_dagster_tests.support.runs import create_run, run_status
from clipfarm_dagster_tests.support.stages import opened

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


@pytest.fixture
def daemon(instance: dg.DagsterInstance) -> Daemon:
    return Daemon(instance)


def test_new_videos_get_partitions_and_runs_and_then_there_is_nothing_to_do(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a", "b")

    requests = daemon.tick()
    assert requested(requests) == {"text": ["a", "b"]}
    assert set(daemon.instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)) == {"a", "b"}
    assert all(result.success for result in daemon.run(requests))

    assert daemon.tick() == []
    assert daemon.tick() == []
    assert "nothing new" in (daemon.skip or "")


def test_a_title_changes_one_text_vector_and_nothing_else(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a", "b")
    corpus.store.put(corpus.keys.raw(Stage.AUDIO, "a"), wav())
    daemon.run(daemon.tick())
    daemon.tick()
    put_metadata(corpus, [metadata_row("a"), metadata_row("b", title="another")])

    assert requested(daemon.tick()) == {"text": ["b"]}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a ledger was opened, and a contract resolved."""
    counts: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **named)

        return count

    monkeypatch.setattr(Ledger, "__init__", counting("ledgers", Ledger.__init__))
    for module in (corpus_module, stage_corpus):
        monkeypatch.setattr(module, "stage_contract", counting("contracts", module.stage_contract))
    return counts


def test_a_tick_opens_each_ledger_and_resolves_each_contract_once(
    corpus: Corpus, daemon: Daemon, counted: Counter[str]
):
    put_texts(corpus, "a", "b")

    requests = daemon.tick()
    assert requests
    assert counted == {"ledgers": 3, "contracts": 3}

    daemon.run(requests)
    daemon.tick()
    counted.clear()
    assert daemon.tick() == []
    assert "nothing new" in (daemon.skip or "")
    assert counted == {"ledgers": 3, "contracts": 3}


def test_a_tick_without_changes_waits_for_nobody_who_writes(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a")
    daemon.run(daemon.tick())
    daemon.tick()
    started = time.monotonic()
    daemon.tick()
    alone = time.monotonic() - started

    with write_lock_held(corpus, Stage.TEXT) as is_held:
        started = time.monotonic()
        assert daemon.tick() == []
        beside = time.monotonic() - started
        assert is_held()

    assert "nothing new" in (daemon.skip or "")
    assert beside < 10 * alone


def test_an_older_row_changes_nothing(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a")
    daemon.run(daemon.tick())
    put_metadata(corpus, [metadata_row("a", captured_at="2020-01-01", title="older"), metadata_row("a")])

    assert daemon.tick() == []


def test_a_missing_raw_object_costs_no_run_and_comes_back_within_a_tick(corpus: Corpus, daemon: Daemon):
    put_metadata(corpus, [metadata_row("a")])
    assert daemon.tick() == []
    with corpus.ledger(Stage.TEXT) as ledger:
        assert ledger.rows(["a"])["a"].status == Status.MISSING_RAW_OBJECT
    assert daemon.tick() == []

    put_transcript(corpus, "a", "here now")

    assert requested(daemon.tick()) == {"text": ["a"]}


def test_an_object_that_is_overwritten_is_noticed_within_a_tick(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a", "b")
    daemon.run(daemon.tick())
    daemon.tick()
    put_transcript(corpus, "b", "another")

    assert requested(daemon.tick()) == {"text": ["b"]}


def test_a_store_that_is_slow_to_list_is_listed_now_and_then_and_missing_objects_are_asked_for(
    corpus: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    put_texts(corpus, "a", "b", "late")
    corpus.store.delete(corpus.keys.raw(Stage.TEXT, "late"))
    daemon.run(daemon.tick())
    daemon.tick()
    slow = replace(LastPlan.from_cursor(daemon.cursor), listing_seconds=30.0, listed_at=time.time())
    daemon.cursor = slow.to_cursor()

    put_transcript(corpus, "b", "another")
    assert daemon.tick() == []
    put_transcript(corpus, "late", "here now")
    requests = daemon.tick()
    assert requested(requests) == {"text": ["b", "late"]}
    daemon.run(requests)

    # more than can be asked for one by one
    monkeypatch.setattr(watching, "MAX_ASKED_FOR", 1)
    more = ("a", "b", "late", "x", "y", "z")
    put_metadata(corpus, [metadata_row(video_id) for video_id in more])
    daemon.tick()
    daemon.cursor = replace(LastPlan.from_cursor(daemon.cursor), listing_seconds=30.0).to_cursor()
    assert daemon.tick() == []
    put_transcript(corpus, "y", "here now")
    assert requested(daemon.tick()) == {"text": ["y"]}

    # and in the end everything is listed again
    put_transcript(corpus, "b", "yet another")
    daemon.run(daemon.tick())
    daemon.tick()
    seen = LastPlan.from_cursor(daemon.cursor)
    put_transcript(corpus, "b", "the last")
    daemon.cursor = replace(seen, listing_seconds=30.0, listed_at=time.time() - 4000).to_cursor()
    assert requested(daemon.tick()) == {"text": ["b"]}


def test_an_object_of_a_video_that_left_the_metadata_does_not_keep_the_sensor_busy(
    corpus: Corpus, daemon: Daemon
):
    put_texts(corpus, "a", "gone")
    corpus.store.delete(corpus.keys.raw(Stage.TEXT, "gone"))
    daemon.run(daemon.tick())
    put_metadata(corpus, [metadata_row("a")])
    put_transcript(corpus, "gone", "too late")
    daemon.tick()

    assert daemon.tick() == []
    assert "nothing new" in (daemon.skip or "")
    daemon.cursor = replace(
        LastPlan.from_cursor(daemon.cursor), listing_seconds=30.0, listed_at=time.time()
    ).to_cursor()
    assert daemon.tick() == []
    assert "nothing new" in (daemon.skip or "")


def test_the_csv_is_not_read_again_while_it_is_the_same(
    corpus: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    put_texts(corpus, "a")
    daemon.run(daemon.tick())
    files = sorted((corpus.settings.home / "cache").iterdir())
    put_transcript(corpus, "a", "another")
    path = Path(corpus.store.url) / corpus.keys.metadata()
    stat = path.stat()
    with path.open("r+b") as file:
        file.write(b"x" * stat.st_size)  # unreadable, were it read
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert requested(daemon.tick()) == {"text": ["a"]}
    assert sorted((corpus.settings.home / "cache").iterdir()) == files


def test_a_run_whose_process_was_killed_gives_its_videos_back(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a")
    job = defs.resolve_job_def(DEFAULT_NAMES.embedding_job(Stage.TEXT))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run = daemon.instance.create_run_for_job(
            job,
            run_config=id_list_run_config(DEFAULT_NAMES, Stage.TEXT, ["a"]),
            tags=id_list_run_tags(DEFAULT_NAMES, Stage.TEXT, ["a"]),
            status=dg.DagsterRunStatus.STARTED,
        )
        daemon.instance.report_engine_event(
            "Executing steps in process", run, EngineEventData.in_process(process.pid)
        )
        assert daemon.tick() == []
        process.kill()

    assert requested(daemon.tick()) == {"text": ["a"]}
    assert run_status(daemon.instance, run) == dg.DagsterRunStatus.FAILURE


def test_ids_of_a_run_in_flight_are_not_requested_again(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a", "b")
    job = defs.resolve_job_def(DEFAULT_NAMES.embedding_job(Stage.TEXT))
    run = daemon.instance.create_run_for_job(
        job,
        run_config=id_list_run_config(DEFAULT_NAMES, Stage.TEXT, ["a"]),
        tags=id_list_run_tags(DEFAULT_NAMES, Stage.TEXT, ["a"]),
        status=dg.DagsterRunStatus.STARTED,
    )

    assert requested(daemon.tick()) == {"text": ["b"]}

    daemon.instance.report_run_failed(run)
    assert requested(daemon.tick()) == {"text": ["a", "b"]}


@pytest.mark.parametrize(
    "status",
    sorted(
        set(dg.DagsterRunStatus)
        - {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED},
        key=str,
    ),
)
def test_ids_are_asked_for_once_while_their_run_is_unfinished_and_again_when_it_is_cancelled(
    corpus: Corpus, daemon: Daemon, status: dg.DagsterRunStatus
):
    put_texts(corpus, "a", "b")
    runs = daemon.create_runs(daemon.tick(), status)
    for _ in range(3):
        assert requested(daemon.tick()) == {}
    put_texts(corpus, "a", "b", "c")
    runs += daemon.create_runs(requests := daemon.tick(), status)
    assert requested(requests) == {"text": ["c"]}
    assert requested(daemon.tick()) == {}

    for run in runs:
        daemon.instance.report_run_canceled(run)
    assert requested(daemon.tick()) == {"text": ["a", "b", "c"]}


def test_a_run_whose_launch_died_gives_its_videos_back_and_a_queued_one_waits(corpus: Corpus, tmp_path: Path):
    put_texts(corpus, "not-started", "queued", "starting")
    statuses = {
        "not-started": dg.DagsterRunStatus.NOT_STARTED,
        "queued": dg.DagsterRunStatus.QUEUED,
        "starting": dg.DagsterRunStatus.STARTING,
    }
    overrides = {"run_monitoring": {"enabled": True, "start_timeout_seconds": 60}}
    with dg.instance_for_test(overrides, temp_dir=str(tmp_path)) as instance:
        daemon = Daemon(instance)
        for video_id, status in statuses.items():
            run_config = id_list_run_config(DEFAULT_NAMES, Stage.TEXT, [video_id])
            create_run(instance, DEFAULT_NAMES.embedding_job(Stage.TEXT), status, run_config=run_config)
        assert daemon.tick() == []

        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=2)):
            requests = daemon.tick()

        assert requested(requests) == {"text": ["not-started", "starting"]}
        assert instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])) == 2


def test_a_backfill_in_flight_keeps_its_range(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a", "b", "c")
    daemon.instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, ["a", "b", "c"])
    selection = frozenset({dg.AssetKey("text_embedding")})
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=selection)
    daemon.instance.create_run_for_job(
        job,
        asset_selection=selection,
        tags={"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"},
        status=dg.DagsterRunStatus.STARTED,
    )

    assert requested(daemon.tick()) == {"text": ["c"]}


def test_a_large_delta_is_launched_in_chunks_over_several_ticks_newest_first(
    corpus: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "2")
    monkeypatch.setenv("CLIPFARM_MAX_RUNS_PER_TICK", "2")
    ids = [f"v{i}" for i in range(7)]
    put_metadata(corpus, [metadata_row(v, captured_at=f"2026-01-0{n + 1}") for n, v in enumerate(ids)])
    for video_id in ids:
        put_transcript(corpus, video_id, video_id)

    first = daemon.tick()
    assert [id_list(DEFAULT_NAMES, Stage.TEXT, request.run_config) for request in first] == [
        ["v6", "v5"],
        ["v4", "v3"],
    ]
    daemon.run(first)
    second = daemon.tick()
    assert [id_list(DEFAULT_NAMES, Stage.TEXT, request.run_config) for request in second] == [
        ["v2", "v1"],
        ["v0"],
    ]
    daemon.run(second)
    assert daemon.tick() == []


def test_a_failed_item_is_asked_for_again_when_it_is_due(
    corpus: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    put_texts(corpus, "a")
    monkeypatch.setenv("CLIPFARM_RETRY_SECONDS", "0.000001")
    with corpus.ledger(Stage.TEXT) as ledger:
        daemon.run(daemon.tick())
        [row] = ledger.rows(["a"]).values()
        failed = replace(row, status=Status.FAIL, vector_source_hash=None, next_attempt_at="2999")
        ledger.record([failed])
        assert daemon.tick() == []
        assert "due at 2999" in (daemon.skip or "")
        ledger.record([replace(failed, next_attempt_at="2000", processed_at="2999")])

    assert requested(daemon.tick()) == {"text": ["a"]}


def test_a_refused_id_never_becomes_a_partition_and_the_rest_goes_on(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a")
    put_metadata(corpus, [metadata_row("a"), metadata_row("../evil"), metadata_row("")])

    assert requested(daemon.tick()) == {"text": ["a"]}
    assert list(daemon.instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)) == ["a"]


@pytest.mark.parametrize(
    "data",
    [None, b"", b"video_id,captured_at\na,2026\n", b"video_id,captured_at,title,description,query\na,2"],
)
def test_a_file_that_cannot_be_read_changes_nothing_and_is_tried_again(
    corpus: Corpus, daemon: Daemon, data: bytes | None
):
    put_texts(corpus, "a")
    good = corpus.store.get(corpus.keys.metadata()).data
    if data is None:
        corpus.store.delete(corpus.keys.metadata())
    else:
        corpus.store.put(corpus.keys.metadata(), data)

    with pytest.raises(
        dg.Failure, match=r"shorts_metadata_horizon\.csv.*The next tick tries again"
    ) as caught:
        daemon.tick()
    assert isinstance(caught.value.__cause__, ClipFarmError)
    assert list(daemon.instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)) == []

    corpus.store.put(corpus.keys.metadata(), good)
    assert requested(daemon.tick()) == {"text": ["a"]}


def test_a_video_that_left_the_metadata_keeps_its_vector(corpus: Corpus, daemon: Daemon):
    put_texts(corpus, "a", "b")
    daemon.run(daemon.tick())
    put_metadata(corpus, [metadata_row("a")])

    assert daemon.tick() == []
    assert corpus.store.head(corpus.keys.embedding(Stage.TEXT, "b")) is not None
    with corpus.ledger(Stage.TEXT) as ledger:
        assert opened(corpus, ledger).orphans(corpus.latest_rows()) == {"b"}


def test_chunks_keep_order_and_bounds(store: object):
    assert chunks("abcdefg", 3) == ["abc", "def", "g"]
    assert chunks("", 3) == []
