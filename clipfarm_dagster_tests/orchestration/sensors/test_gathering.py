"""The sensor waits for more before it launches a run of few videos, if it is told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import time_machine

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.launching import gathering_since
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.sensors.watching import LastPlan
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon, put_texts, requested

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)
START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def daemon(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "3")
    monkeypatch.setenv("CLIPFARM_GATHER_SECONDS", "600")
    return Daemon(instance)


def tick(daemon: Daemon, minutes: float) -> dict[str, list[str]]:
    with time_machine.travel(START + timedelta(minutes=minutes), tick=False):
        return requested(daemon.tick())


def test_few_videos_wait_until_a_run_is_full(corpus: Corpus, daemon: Daemon) -> None:
    put_texts(corpus, "a", "b")
    assert tick(daemon, 0) == {}
    assert "text: 2 videos wait for more of them" in (daemon.skip or "")
    assert set(daemon.instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)) == {"a", "b"}

    assert tick(daemon, 1) == {}  # looks at the ledgers that the first tick has made
    assert tick(daemon, 5) == {}
    assert daemon.skip == "nothing new; text wait for more videos until 2026-03-01T00:10:00.000000Z"

    put_texts(corpus, "a", "b", "c")
    assert tick(daemon, 6) == {"text": ["a", "b", "c"]}


def test_few_videos_wait_no_longer_than_they_were_told_to(corpus: Corpus, daemon: Daemon) -> None:
    put_texts(corpus, "a")
    assert tick(daemon, 0) == {}
    put_texts(corpus, "a", "b")
    assert tick(daemon, 9) == {}
    assert tick(daemon, 10) == {"text": ["a", "b"]}
    assert not LastPlan.from_cursor(daemon.cursor).gathering


def test_the_next_few_wait_anew(corpus: Corpus, daemon: Daemon) -> None:
    put_texts(corpus, "a")
    tick(daemon, 0)
    with time_machine.travel(START + timedelta(minutes=11), tick=False):
        daemon.run(daemon.tick())
    put_texts(corpus, "b")
    assert tick(daemon, 12) == {}
    assert tick(daemon, 21) == {}
    assert tick(daemon, 22) == {"text": ["b"]}


@pytest.mark.parametrize(
    ("delta", "since", "gather_seconds", "expected"),
    [
        (0, 50.0, 60.0, None),
        (1, None, 60.0, 100.0),
        (1, None, 0.0, None),
        (1, 50.0, 60.0, 50.0),
        (1, 40.0, 60.0, None),
        (5, 90.0, 60.0, None),
        (4, 90.0, 60.0, 90.0),
        (1, 900.0, 60.0, 100.0),
    ],
)
def test_since_when_a_delta_gathers(
    store: object, delta: int, since: float | None, gather_seconds: float, expected: float | None
) -> None:
    found = gathering_since(delta, since, now=100.0, run_size=5, gather_seconds=gather_seconds)
    assert found == expected
