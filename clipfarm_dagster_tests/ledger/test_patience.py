"""A PostgreSQL that stops answering, or whose rows another session locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import make_url

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.postgres import silence_seconds, with_limits
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.postgres import PostgresServer, new_database, postgres_server

QUICK = "connect_timeout=2&options=-c%20statement_timeout%3D1000%20-c%20lock_timeout%3D500"

Freeze = Callable[[], None]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of these tests' own."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def freeze(server: PostgresServer) -> Iterator[Freeze]:
    """Stops all processes of the server in the middle of what they do; they go on after the test."""
    stopped: list[int] = []

    def stop() -> None:
        first = server.process_id
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in (first, *map(int, children)):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

    yield stop
    for pid in stopped:
        with suppress(ProcessLookupError):  # one that was about to end
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def url(server: PostgresServer) -> str:
    return new_database(server.url)


@contextmanager
def opened(url: str) -> Iterator[Ledger]:
    ledger = Ledger.open(Stage.TEXT, state_url=url, sqlite_path=Path("unused"))
    with closing(ledger):
        yield ledger


def test_a_server_that_stops_answering_is_given_up(url: str, freeze: Freeze):
    with opened(f"{url}?{QUICK}") as ledger:
        freeze()
        with pytest.raises(LedgerError, match=r"has not answered for [26] s; check that it is running"):
            ledger.record([LedgerRow(video_id="a")])


def test_a_server_that_takes_no_connection_is_given_up(url: str, freeze: Freeze):
    freeze()
    with pytest.raises(LedgerError, match=r"cannot open the text ledger.*has not answered for 2 s"):
        Ledger.open(Stage.TEXT, state_url=f"{url}?{QUICK}", sqlite_path=Path("unused"))


def test_a_bulk_reading_that_gets_no_further_is_given_up(url: str, freeze: Freeze):
    import psycopg2

    with opened(f"{url}?{QUICK}") as ledger:
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            connection.cursor().execute(
                """INSERT INTO clipfarm_text.processed_items (video_id, error)
                SELECT i, repeat('x', 2000) FROM generate_series(1, 40000) i"""
            )

        def read() -> None:
            with ledger.stream(["video_id", "error"]) as reader:
                assert reader.read_next_batch().num_rows < 40_000
                freeze()
                reader.read_all()

        with pytest.raises(LedgerError, match=r"cannot read the text ledger.*has not answered for 6 s"):
            read()


def test_a_lock_of_another_session_is_not_waited_for_without_end(url: str):
    import psycopg2

    with opened(f"{url}?{QUICK}") as ledger, closing(psycopg2.connect(url)) as other:
        other.cursor().execute("LOCK TABLE clipfarm_text.processed_items IN ACCESS EXCLUSIVE MODE")

        for call in (ledger.counts, lambda: ledger.record([LedgerRow(video_id="a")])):
            with pytest.raises(LedgerError, match=r"another session has held a lock.*pg_stat_activity"):
                call()

        other.rollback()
        ledger.record([LedgerRow(video_id="a")])
        assert ledger.rows(["a"]).keys() == {"a"}


def test_the_times_are_set_where_the_url_asks_for_no_others(url: str):
    with opened(url) as ledger, ledger._connection() as connection:
        shown = [
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("lock_timeout", "statement_timeout")
        ]
    assert shown == ["20s", "30s"]
    with opened(f"{url}?{QUICK}") as ledger, ledger._connection() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "1s"


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("", 35),
        ("?options=-c statement_timeout=2000", 7),
        ("?options=-c statement_timeout=2min -c search_path=x", 125),
        ("?options=--statement_timeout=3s", 8),
        ("?options=-c statement_timeout=0", float("inf")),
    ],
)
def test_silence_lasts_a_little_longer_than_a_statement_may(query: str, seconds: float):
    assert silence_seconds(make_url(f"postgresql://host/db{query}")) == seconds


def test_the_url_wins_over_the_times_of_libpq():
    limited = with_limits(make_url("postgresql://host/db?connect_timeout=99")).query
    assert (limited["connect_timeout"], limited["tcp_user_timeout"]) == ("99", "30000")


WAITS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from clipfarm_dagster.orchestration.interrupts import first_interrupt_noted
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.stages import Stage

ledger = Ledger.open(Stage.TEXT, state_url=sys.argv[1], sqlite_path=Path("unused"))
with first_interrupt_noted():
    print("ready", flush=True)
    sys.stdin.readline()
    print("waits", flush=True)
    if sys.argv[2] == "here":
        ledger.counts()
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ledger.counts).result()
"""


@pytest.mark.parametrize("where", ["here", "in-a-thread"])
def test_an_interrupt_ends_the_wait_for_a_server(url: str, freeze: Freeze, where: str):
    endless = f"{url}?options=-c%20statement_timeout%3D0"  # so that nothing else can end it
    command = [sys.executable, "-c", WAITS, endless, where]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "ready\n"
            freeze()
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "waits\n"
            time.sleep(2)  # until it waits in the call
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors
