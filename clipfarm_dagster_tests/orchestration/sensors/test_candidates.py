"""A changed model: filled beside what serves by sensor, sync and UI, and then serving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.ledger.verify import verify_vectors
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.id_list import candidate_id_list
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.hashing import data_version
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon, put_texts, requested
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

TEXT = Stage.TEXT


@pytest.fixture
def daemon(corpus: Corpus, instance: dg.DagsterInstance) -> Daemon:
    """Three videos are embedded."""
    put_texts(corpus, "a", "b", "c")
    daemon = Daemon(instance)
    daemon.run(daemon.tick())
    assert daemon.tick() == []
    return daemon


@pytest.fixture
def changed(daemon: Daemon, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """The settings ask for another text model than the one that serves."""
    monkeypatch.setenv("CLIPFARM_TEXT_DTYPE", "bfloat16")
    changed = Corpus.open(load_settings())
    assert changed.contract(TEXT).id != corpus.contract(TEXT).id
    return changed


def for_candidates(requests: list[dg.RunRequest]) -> dict[str, list[str]]:
    """Ids of the runs that fill a candidate, by its contract."""
    found = [candidate_id_list(DEFAULT_NAMES, TEXT, request.run_config) for request in requests]
    return dict(one for one in found if one is not None)


def cut_overs(requests: list[dg.RunRequest]) -> int:
    return sum(request.job_name == DEFAULT_NAMES.cut_over_job for request in requests)


def add_d(corpus: Corpus) -> None:
    put_metadata(corpus, [metadata_row(video_id) for video_id in "abcd"])
    put_transcript(corpus, "d", "said in d")


def serving_contract(corpus: Corpus) -> str:
    return corpus.serving.read()[TEXT].contract_id


def agrees_with_dagster(
    corpus: Corpus, instance: dg.DagsterInstance, asset: dg.AssetKey, contract: str
) -> bool:
    with corpus.stage(TEXT, contract) as opened:
        rows = opened.ledger.rows(["a", "b", "c", "d"]).values()
        versions = {row.video_id: data_version(row.source_hash or "", contract) for row in rows}
        bad = [f for f in verify_vectors(opened.ledger, corpus.store, corpus.keys) if f.problem is not None]
    return not bad and materialized_versions(instance, asset) == versions


def test_a_changed_model_is_filled_beside_what_serves_and_then_serves(
    corpus: Corpus, changed: Corpus, daemon: Daemon
):
    old, new = corpus.contract(TEXT).id, changed.contract(TEXT).id
    assert serving_contract(corpus) == old
    requests = daemon.tick()
    assert for_candidates(requests) == {new: ["a", "b", "c"]}
    assert requested(requests) == {}
    assert requests[0].tags["dagster/priority"] == "-1"

    add_d(corpus)
    between = daemon.tick()
    assert requested(between) == {"text": ["d"]}, "what is new gets its serving vector first"
    assert for_candidates(between) == {new: ["a", "b", "c"]}
    assert all(result.success for result in daemon.run([*between, *requests]))
    assert serving_contract(corpus) == old
    assert agrees_with_dagster(corpus, daemon.instance, DEFAULT_NAMES.embedding(TEXT), old)

    requests = daemon.tick()
    assert for_candidates(requests) == {new: ["d"]}
    assert cut_overs(requests) == 0
    daemon.run(requests)
    assert agrees_with_dagster(corpus, daemon.instance, DEFAULT_NAMES.candidate(TEXT), new)

    requests = daemon.tick()
    assert (cut_overs(requests), len(requests)) == (1, 1)
    [result] = daemon.run(requests)
    assert result.success
    assert serving_contract(corpus) == new
    assert agrees_with_dagster(corpus, daemon.instance, DEFAULT_NAMES.embedding(TEXT), new)
    with changed.stage(TEXT) as opened:
        rows = opened.ledger.rows(["a", "b", "c", "d"])
    assert {row.artifact_key for row in rows.values()} == {corpus.keys.embedding(TEXT, i) for i in "abcd"}
    assert corpus.store.list(corpus.keys.generation_folder(TEXT, old)).num_rows == 4

    assert daemon.tick() == []
    assert daemon.tick() == []
    assert "nothing new" in (daemon.skip or "")


def test_candidates_take_no_more_than_their_share_of_the_runs(
    changed: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CLIPFARM_MIGRATION_SHARE", "0.1")
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "1")
    monkeypatch.setenv("CLIPFARM_MAX_RUNS_PER_TICK", "1")
    requests = daemon.tick()
    assert len(for_candidates(requests)) == 1, "one of the two runs that Dagster has at work at a time"
    daemon.create_runs(requests, dg.DagsterRunStatus.QUEUED)
    assert daemon.tick() == []

    monkeypatch.setenv("CLIPFARM_MIGRATION_SHARE", "0")
    daemon.cursor = None
    assert daemon.tick() == []


def test_a_broken_candidate_holds_up_nothing_that_serves(
    corpus: Corpus, changed: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError("it cannot be loaded")

    with monkeypatch.context() as broken:
        broken.setattr("clipfarm_dagster.corpus.checked_encoder.check_before_writing", fail)
        [result] = daemon.run(daemon.tick())
        assert not result.success
    add_d(corpus)

    requests = daemon.tick()

    assert requested(requests) == {"text": ["d"]}
    assert for_candidates(requests) == {}
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", str(corpus.settings.home / "nowhere"))
    assert requested(daemon.tick()) == {"text": ["d"]}


def test_where_the_serving_model_is_gone_new_videos_wait_for_the_next_one(
    corpus: Corpus, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gone = Path(shutil.copytree(corpus.settings.text.model, tmp_path / "gone"))
    config = json.loads((gone / "config.json").read_text())
    (gone / "config.json").write_text(json.dumps({**config, "another": "model"}))
    with monkeypatch.context() as before:
        before.setenv("CLIPFARM_TEXT_MODEL", str(gone))
        put_texts(corpus, "a", "b", "c")
        daemon = Daemon(instance)
        daemon.run(daemon.tick())
    shutil.rmtree(gone)
    add_d(corpus)
    wanted = corpus.contract(TEXT).id
    assert serving_contract(corpus) != wanted

    requests = daemon.tick()
    assert requested(requests) == {}
    assert for_candidates(requests) == {wanted: ["a", "b", "c", "d"]}
    daemon.run(requests)
    requests = daemon.tick()
    assert cut_overs(requests) == 1
    daemon.run(requests)

    assert serving_contract(corpus) == wanted
    with corpus.ledger(TEXT) as ledger:
        assert ledger.counts() == {Status.SUCCESS: 4}
    assert daemon.tick() == []


def test_nothing_serves_by_itself_where_the_setting_is_manual(
    changed: Corpus, corpus: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CLIPFARM_CUT_OVER", "manual")
    daemon.run(daemon.tick())
    assert daemon.tick() == []
    assert serving_contract(corpus) == corpus.contract(TEXT).id


def test_a_run_for_a_model_that_nobody_asks_for_any_more_does_nothing(
    corpus: Corpus, changed: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    requests = daemon.tick()
    monkeypatch.setenv("CLIPFARM_TEXT_DTYPE", "float32")
    [result] = daemon.run(requests)

    assert result.success
    with corpus.stage(TEXT) as opened:
        assert opened.ledger.of(changed.contract(TEXT).id).counts() == {}
    assert daemon.tick() == []


def test_a_cut_over_that_was_broken_off_is_finished_by_the_next_tick(
    corpus: Corpus, changed: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    daemon.run(daemon.tick())

    def fail(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as killed:
        killed.setattr("clipfarm_dagster.maintenance.migration._publish", fail)
        [result] = daemon.run(daemon.tick())
        assert not result.success
    assert not corpus.serving.read()[TEXT].settled
    assert daemon.tick() == []  # the last one broke: a while is waited

    monkeypatch.setattr("clipfarm_dagster.orchestration.runs.broken.FIRST_WAIT", -1 * daemon_wait())
    requests = daemon.tick()
    assert cut_overs(requests) == 1
    [result] = daemon.run(requests)
    assert result.success
    assert corpus.serving.read()[TEXT].settled


def daemon_wait():
    from clipfarm_dagster.orchestration.runs.broken import FIRST_WAIT

    return FIRST_WAIT


@pytest.mark.parametrize("ask", ["before", "after"])
def test_a_candidate_is_materialized_in_the_ui_while_there_is_one(
    corpus: Corpus, daemon: Daemon, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, ask: str
):
    if ask == "after":
        monkeypatch.setenv("CLIPFARM_TEXT_DTYPE", "bfloat16")
    definitions = defs
    job = definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance, partition_key="b", asset_selection=[DEFAULT_NAMES.candidate(TEXT)]
    )

    assert result.success
    shown = materialized_versions(instance, DEFAULT_NAMES.candidate(TEXT))
    assert list(shown) == ([] if ask == "before" else ["b"])
    assert serving_contract(corpus) == corpus.contract(TEXT).id
    with corpus.stage(TEXT) as opened:
        rows = opened.ledger.of(Corpus.open(load_settings()).contract(TEXT).id).rows(["b"])
    assert rows["b"].artifact_key == (
        corpus.keys.embedding(TEXT, "b")
        if ask == "before"
        else corpus.keys.generation(TEXT, Corpus.open(load_settings()).contract(TEXT).id, "b")
    )
