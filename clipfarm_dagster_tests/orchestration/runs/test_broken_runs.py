"""A run that fails as a whole is not launched again at every tick."""

from __future__ import annotations

import errno
from datetime import timedelta

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.broken import MAX_WAIT, launch_again_at, wait_after
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon, requested
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


@pytest.fixture
def daemon(corpus: Corpus, instance: dg.DagsterInstance) -> Daemon:
    put_metadata(corpus, [metadata_row("a")])
    put_transcript(corpus, "a", "a")
    return Daemon(instance)


def test_a_run_without_a_model_is_waited_for_and_then_tried_again(
    corpus: Corpus, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    good = corpus.settings.text.model
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", str(corpus.settings.home / "nowhere" / "model"))
    with pytest.raises(dg.Failure, match="CLIPFARM_TEXT_MODEL"):
        daemon.tick()
    assert launch_again_at(daemon.instance, DEFAULT_NAMES.embedding_job(Stage.TEXT)) is None

    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", good)
    requests = daemon.tick()
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", str(corpus.settings.home / "nowhere" / "model"))
    [result] = daemon.run(requests)
    assert not result.success
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", good)

    assert daemon.tick() == []
    assert "the last run could not do its work" in (daemon.skip or "")

    monkeypatch.setattr("clipfarm_dagster.orchestration.runs.broken.FIRST_WAIT", timedelta(0))
    assert requested(daemon.tick()) == {"text": ["a"]}


def test_a_run_that_ends_in_an_unforeseen_error_is_waited_for_too(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("clipfarm_dagster.corpus.checked_encoder.check_before_writing", fail)
    [result] = daemon.run(daemon.tick())

    assert not result.success
    assert daemon.tick() == []
    assert "the last run could not do its work" in (daemon.skip or "")


def test_failed_items_hold_up_nobody(corpus: Corpus, daemon: Daemon):
    corpus.store.put(corpus.keys.raw(Stage.TEXT, "a"), b"no json")
    [result] = daemon.run(daemon.tick())

    assert not result.success
    assert launch_again_at(daemon.instance, DEFAULT_NAMES.embedding_job(Stage.TEXT)) is None


def test_waits_double_up_to_an_hour(store: object):
    assert [wait_after(n).total_seconds() for n in (1, 2, 3)] == [60, 120, 240]
    assert wait_after(100) == MAX_WAIT
