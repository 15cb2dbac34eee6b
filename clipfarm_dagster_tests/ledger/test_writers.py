"""Many writers of one PostgreSQL ledger: nothing is lost, nobody queues, and a reader sees every change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.postgres import CONNECTIONS
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.postgres import PostgresServer, connections, new_database, postgres_server

WRITERS = 32
SUCCESS = LedgerRow(
    video_id="", status=Status.SUCCESS, vector_contract_id="c", vector_source_hash="s", artifact_key="k"
)


@pytest.fixture
def url(postgres_url: str) -> str:
    return new_database(postgres_url)


def opened(url: str) -> Ledger:
    return Ledger.open(Stage.TEXT, state_url=url, sqlite_path=Path("unused"))


def together(work: Callable[[int], None], count: int = WRITERS) -> None:
    """Do something in as many threads at the same time; raises what any of them has raised."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(begin, range(count)))


@pytest.mark.parametrize("generation", [None, "candidate"])
def test_thirty_two_writers_lose_nothing(url: str, generation: str | None) -> None:
    contested = [f"all-{n}" for n in range(20)]
    with closing(opened(url)):
        pass

    def write(number: int) -> None:
        with closing(opened(url)) as whole:
            ledger = whole if generation is None else whole.of(generation)
            for batch in range(3):
                # each in another order
                ids = [*contested[number % 20 :], f"{number}-{batch}", *contested[: number % 20]]
                versions = ledger.mark_overwriting(ids)
                ledger.record([replace(SUCCESS, video_id=i, row_version=versions[i]) for i in ids])

    together(write)

    with closing(opened(url)) as whole:
        ledger = whole if generation is None else whole.of(generation)
        own = ledger.rows(f"{number}-{batch}" for number in range(WRITERS) for batch in range(3))
        assert len(own) == WRITERS * 3
        assert {(row.status, row.vector_source_hash) for row in own.values()} == {(Status.SUCCESS, "s")}
        # each write has counted the one before it
        counted = {(row.row_version or 0) >> 32 for row in ledger.rows(contested).values()}
        assert counted == {WRITERS * 3 * 2}
        assert sum(ledger.counts().values()) == WRITERS * 3 + 20
        if generation is not None:
            assert whole.counts() == {}


def test_a_reader_whose_version_is_the_same_has_seen_all(url: str) -> None:
    seen: dict[tuple[str, str], int] = {}
    ended = threading.Event()
    with closing(opened(url)):
        pass

    def read() -> None:
        with closing(opened(url)) as ledger:
            last = False
            while not last:
                last = ended.is_set()
                before = ledger.version(), ledger.rows_version()
                count = sum(ledger.counts().values())
                if before == (ledger.version(), ledger.rows_version()):
                    assert seen.setdefault(before, count) == count

    def write(number: int) -> None:
        with closing(opened(url)) as ledger:
            for n in range(10):
                ledger.record([replace(SUCCESS, video_id=f"{number}-{n}")])
                time.sleep(0.02)

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read)
        together(write, 4)
        ended.set()
        reading.result()
    assert seen.popitem()[1] == 40


def test_writers_of_different_videos_do_not_wait_for_each_other(url: str) -> None:
    with closing(opened(url)) as one, closing(opened(url)) as other, one._writing() as (connection, items):
        one._lock(connection, items, ["a"])

        other.record([replace(SUCCESS, video_id="b")])  # would else wait for lock_timeout

        assert other.rows(["a", "b"]).keys() == {"b"}


def test_what_is_more_than_rows_waits_for_all_writers_and_lets_none_in(url: str) -> None:
    with closing(opened(url)) as ledger, closing(opened(url)) as other, ThreadPoolExecutor(1) as pool:
        ledger.name_serving("old")
        with ledger._writing() as (connection, items):
            ledger._lock(connection, items, ["a"])
            serving = pool.submit(other.serve, "new")
            with pytest.raises(TimeoutError):
                serving.result(0.5)
        serving.result(30)

        assert ledger.serving() == "new"


def test_threads_of_one_ledger_share_its_few_connections(url: str) -> None:
    with closing(opened(url)) as ledger, connections(url) as counted:

        def write(number: int) -> None:
            for n in range(5):
                ledger.record([replace(SUCCESS, video_id=f"{number}-{n}")])
                assert ledger.rows([f"{number}-{n}"])

        together(write, 16)

    assert 0 < max(counted) <= CONNECTIONS


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    with postgres_server() as server:
        yield server


def test_a_server_that_is_restarted_loses_and_doubles_nothing(own_server: PostgresServer) -> None:
    url = new_database(own_server.url)
    stopped = threading.Event()
    with closing(opened(url)):
        pass

    def write(number: int) -> None:
        with closing(opened(url)) as ledger:
            batch = 0
            while batch < 10 or not stopped.is_set():
                ids = [f"{number}-{batch}-{n}" for n in range(8)]
                versions = ledger.mark_overwriting(ids)
                ledger.record([replace(SUCCESS, video_id=i, row_version=versions[i]) for i in ids])
                batch += 1
            assert ledger.counts()[Status.SUCCESS] >= batch * 8

    def restart() -> None:
        for _ in range(2):
            own_server.stop()
            own_server.start()
        stopped.set()

    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(restart)
        together(write, 4)
        restarting.result()

    with closing(opened(url)) as ledger:
        rows = ledger.columns(["video_id", "status", "vector_source_hash"])
        assert set(rows["status"].to_pylist()) == {Status.SUCCESS}
        assert set(rows["vector_source_hash"].to_pylist()) == {"s"}
