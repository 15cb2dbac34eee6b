"""An erased video is gone from everything at once, and stays away, whatever is at work or broken off."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.ledger.tombstones import Tombstones
from clipfarm_dagster.maintenance.erasure_notes import Begun, ErasureNotes
from clipfarm_dagster.manifests.vectors import read_vectors
from clipfarm_dagster.orchestration import erasing, erasure_finishing
from clipfarm_dagster.orchestration.erasing import scan_dagster
from clipfarm_dagster.orchestration.erasure import erase_videos
from clipfarm_dagster.orchestration.erasure_finishing import begin_erasure, finish_erasures
from clipfarm_dagster.orchestration.erasure_looking import find_holdings, look_for
from clipfarm_dagster.orchestration.in_process import run_in_process
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.reconcile import reconcile
from clipfarm_dagster.orchestration.runs.id_list import id_list, id_list_run_config, id_list_run_tags
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.orchestration.erasing.story import launch_backfill, statuses
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon
from clipfarm_dagster_tests.support.killing import Killed, killing
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from clipfarm_dagster_tests.support.runs import create_run

TEXT = Stage.TEXT
GONE = "clip-0001"
NEIGHBOURS = ["clip-00012", "clip-0003"]
IDS = [GONE, *NEIGHBOURS]

pytestmark = [
    pytest.mark.parametrize("store", ["folder"], indirect=True),
    pytest.mark.filterwarnings("ignore:Function `AssetSelection.sources`:DeprecationWarning"),  # Dagster's
]


def put_texts(corpus: Corpus) -> None:
    put_metadata(corpus, [metadata_row(video_id) for video_id in IDS])
    for video_id in IDS:
        put_transcript(corpus, video_id, f"said in {video_id}")


@pytest.fixture
def lived(corpus: Corpus, instance: dg.DagsterInstance) -> Corpus:
    """A corpus of texts that was synced."""
    put_texts(corpus)
    sync_corpus(corpus, instance, [TEXT], quiet=True)
    return corpus


def is_gone(corpus: Corpus, instance: dg.DagsterInstance, *, kept: int = 1) -> None:
    left = look_for(corpus, instance, DEFAULT_NAMES, [GONE], raw=False)
    assert left.nothing, (left.holdings, left.traces, left.refused)
    assert left.holdings.found.raw_objects_kept == kept
    assert set(instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)) == set(NEIGHBOURS)
    assert statuses(instance)["materialized"] == set(NEIGHBOURS)


def test_it_is_gone_everywhere_and_stays_away(lived: Corpus, instance: dg.DagsterInstance):
    before = {video_id: lived.store.get(lived.keys.embedding(TEXT, video_id)).data for video_id in NEIGHBOURS}
    there = find_holdings(lived, instance, DEFAULT_NAMES, [GONE], raw=False)
    said: list[str] = []

    done = erase_videos(lived, instance, DEFAULT_NAMES, [GONE], say=said.append)

    assert done.complete
    assert done.removed == there
    assert (there.found.vectors, there.found.ledger_rows, there.dagster["partitions"]) == (1, 1, 1)
    assert GONE not in str(done.to_dict()) + str(said)
    assert done.tombstones == [lived.tombstones.read().tombstone(GONE)]
    assert "still has 1 of the videos" in done.left.out_of_reach[0]
    is_gone(lived, instance)
    put_transcript(lived, GONE, "said again")
    counts = sync_corpus(lived, instance, [TEXT], quiet=True)
    assert counts.stages["text"]["model_calls"] == 0
    assert Daemon(instance).tick() == []
    is_gone(lived, instance)
    for video_id, data in before.items():
        assert lived.store.get(lived.keys.embedding(TEXT, video_id)).data == data
    assert finish_erasures(lived, instance, DEFAULT_NAMES).waits_for == frozenset()


def embedding_run(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, *video_ids: str
) -> dg.DagsterRun:
    return create_run(
        instance,
        DEFAULT_NAMES.embedding_job(TEXT),
        status,
        run_config=id_list_run_config(DEFAULT_NAMES, TEXT, video_ids),
        tags=id_list_run_tags(DEFAULT_NAMES, TEXT, video_ids),
    )


def waits_for(corpus: Corpus, instance: dg.DagsterInstance) -> set[str]:
    return set(finish_erasures(corpus, instance, DEFAULT_NAMES).waits_for)


def test_runs_that_may_write_of_it_end_first_and_others_are_not_waited_for(
    lived: Corpus, instance: dg.DagsterInstance
):
    running = dg.DagsterRunStatus.STARTED
    at_work = [
        embedding_run(instance, running, GONE, NEIGHBOURS[0]),
        create_run(instance, DEFAULT_NAMES.manifests_job, running),
    ]
    embedding_run(instance, running, *NEIGHBOURS)
    queued = embedding_run(instance, dg.DagsterRunStatus.QUEUED, GONE)
    launch_backfill(instance, IDS)

    begin_erasure(lived, [GONE], raw=False)

    assert waits_for(lived, instance) == {*(run.run_id for run in at_work), "backfill1"}
    assert find_holdings(lived, instance, DEFAULT_NAMES, [GONE], raw=False).found.vectors == 0
    assert scan_dagster(instance, [GONE])
    lived.store.put(lived.keys.embedding(TEXT, GONE), b"one of them came too late")
    [backfill] = instance.get_backfills()
    instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
    instance.report_run_failed(at_work[0])
    assert waits_for(lived, instance) == {at_work[1].run_id}
    instance.report_run_failed(at_work[1])

    assert waits_for(lived, instance) == set()

    is_gone(lived, instance)
    [tombstone] = lived.tombstones.read().erasures
    now = instance.get_run_by_id(queued.run_id)
    assert now is not None
    assert id_list(DEFAULT_NAMES, TEXT, now.run_config) == [tombstone]
    job = defs.resolve_job_def(DEFAULT_NAMES.embedding_job(TEXT))
    assert run_in_process(job, instance, now.run_config).success
    is_gone(lived, instance)


def test_a_run_that_begins_while_dagster_is_cleaned_is_waited_for(
    lived: Corpus, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    queued = embedding_run(instance, dg.DagsterRunStatus.QUEUED, GONE)
    clean = erasing.erase_from_dagster

    def begins(*arguments: Any, **named: Any) -> Any:
        done = clean(*arguments, **named)
        instance.run_storage.handle_run_event(
            queued.run_id, dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, queued.job_name)
        )
        return done

    with monkeypatch.context() as patch:
        patch.setattr(erasure_finishing, "erase_from_dagster", begins)
        begin_erasure(lived, [GONE], raw=False)
        assert waits_for(lived, instance) == {queued.run_id}
    instance.report_engine_event(f"wrote {GONE}", queued)
    assert waits_for(lived, instance) == {queued.run_id}
    instance.report_run_failed(queued)

    assert waits_for(lived, instance) == set()
    is_gone(lived, instance)


def test_a_run_that_was_requested_before_and_came_after_is_cleaned_by_the_next_tick(
    lived: Corpus, instance: dg.DagsterInstance
):
    erase_videos(lived, instance, DEFAULT_NAMES, [GONE])
    job = defs.resolve_job_def(DEFAULT_NAMES.embedding_job(TEXT))

    assert run_in_process(job, instance, id_list_run_config(DEFAULT_NAMES, TEXT, IDS)).success

    assert lived.store.head(lived.keys.embedding(TEXT, GONE)) is None
    assert scan_dagster(instance, [GONE])
    assert Daemon(instance).tick() == []
    is_gone(lived, instance)


def test_the_job_erases_and_the_next_tick_removes_its_own_trace(lived: Corpus, instance: dg.DagsterInstance):
    definitions = defs
    job = definitions.resolve_job_def(DEFAULT_NAMES.erasure_job)
    config = {"ops": {DEFAULT_NAMES.erasure_op: {"config": {"video_ids": [GONE], "raw": True}}}}

    done = run_in_process(job, instance, config)

    assert done.success
    assert lived.store.head(lived.keys.embedding(TEXT, GONE)) is None
    assert lived.store.head(lived.keys.raw(TEXT, GONE)) is None
    assert ErasureNotes(lived.settings.home_files).begun().runs == {done.run_id}
    Daemon(instance).tick()
    is_gone(lived, instance, kept=0)
    run = instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run_in_process(job, instance, run.run_config).success  # executed again, as in the UI
    assert waits_for(lived, instance) == set()
    is_gone(lived, instance, kept=0)


def test_another_machine_follows_with_its_own_home_and_dagster(
    lived: Corpus, instance: dg.DagsterInstance, tmp_path: Path
):
    other = Corpus.open(load_settings(home=tmp_path / "other"))
    (tmp_path / "theirs").mkdir()
    theirs = dg.DagsterInstance.from_config(str(ensure_instance(tmp_path / "theirs")))
    reconcile(other, theirs, DEFAULT_NAMES, TEXT)
    assert read_vectors(other, TEXT).video_ids == IDS
    assert look_for(other, theirs, DEFAULT_NAMES, [GONE], raw=False).traces

    erase_videos(lived, instance, DEFAULT_NAMES, [GONE])

    assert look_for(other, theirs, DEFAULT_NAMES, [GONE], raw=False).traces
    assert waits_for(other, theirs) == set()
    is_gone(other, theirs)
    is_gone(lived, instance)
    new = Corpus.open(load_settings(home=tmp_path / "new"))
    assert waits_for(new, theirs) == set()
    assert read_vectors(new, TEXT).video_ids == NEIGHBOURS
    theirs.dispose()


def test_an_erasure_that_is_broken_off_anywhere_is_finished_by_the_next_tick(
    lived: Corpus, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    steps = [
        (Tombstones, "add"),
        (Tombstones, "finish"),
        (ErasureNotes, "begin"),
        (ErasureNotes, "end"),
        (ErasureNotes, "mark_clean"),
        (erasure_finishing, "clear_caches"),
        (erasure_finishing, "erase_from_dagster"),
        (erasure_finishing, "_mark_clean"),
        (erasing, "delete_partitions"),
    ]
    done = False
    for at in itertools.count(1):
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            killing(patch, at, *steps)
            erase_videos(lived, instance, DEFAULT_NAMES, [GONE])
            done = True
        if done:
            break
        if at > 1:  # noted
            Daemon(instance).tick()
            is_gone(lived, instance)
            assert ErasureNotes(lived.settings.home_files).begun() == Begun()
            finish_erasures(lived, instance, DEFAULT_NAMES)
        instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, [GONE])
        event = dg.AssetMaterialization(DEFAULT_NAMES.embedding(TEXT), partition=GONE)
        instance.report_runless_asset_event(event)
        lived.store.put(lived.keys.embedding(TEXT, GONE), b"again")
    assert at > len(steps)
    is_gone(lived, instance)


def test_a_dagster_that_is_not_known_is_told_and_all_else_is_removed(
    lived: Corpus, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(dg, "__version__", "1.14.0")
        done = erase_videos(lived, instance, DEFAULT_NAMES, [GONE])

    assert not done.complete
    [refused] = done.left.refused
    assert "what Dagster 1.14.0 stores is not known" in refused
    assert not done.left.holdings
    assert done.left.traces == []
    Daemon(instance).tick()
    is_gone(lived, instance)


def test_an_id_that_is_a_word_is_looked_for_where_ids_are_kept(corpus: Corpus, instance: dg.DagsterInstance):
    put_metadata(corpus, [metadata_row("video"), metadata_row("clip-0003")])
    for video_id in ("video", "clip-0003"):
        put_transcript(corpus, video_id, "words")
    sync_corpus(corpus, instance, [TEXT], quiet=True)
    assert not look_for(corpus, instance, DEFAULT_NAMES, ["video"], raw=False).nothing

    done = erase_videos(corpus, instance, DEFAULT_NAMES, ["video"])

    assert (done.complete, done.left.words, done.left.traces) == (True, 1, [])
    assert set(instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)) == {"clip-0003"}
    assert Daemon(instance).tick() == []
