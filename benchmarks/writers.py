"""Many processes that record in one PostgreSQL ledger at the same time: how fast, and how long they queue.

Each writer marks and records batches of 32 rows of its own, as the runs of a stage do. A server in another
room answers a statement after some milliseconds; here the client waits so long before each. What waits for a
lock is asked of the server every 20 ms.

Usage: python benchmarks/writers.py [--writers 1 8 32] [--seconds 10] [--milliseconds-a-statement 2]
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
BATCH = 32


def main() -> None:
    """Run the benchmark that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--writers", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--milliseconds-a-statement", type=float, default=2.0)
    arguments = parser.parse_args()
    from clipfarm_dagster_tests.support.postgres import new_database, postgres_server

    with postgres_server() as server:
        for writers in arguments.writers:
            url = new_database(server.url)
            _measure(url, writers, arguments.seconds, arguments.milliseconds_a_statement / 1000)


def _measure(url: str, writers: int, seconds: float, wait: float) -> None:
    import psycopg2

    from clipfarm_dagster.ledger.ledger import Ledger
    from clipfarm_dagster.stages import Stage

    Ledger.open(Stage.TEXT, state_url=url, sqlite_path=Path("unused")).close()
    done = [0] * writers
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_write, args=(url, number, until, wait, done)) for number in range(writers)
    ]
    for thread in threads:
        thread.start()
    waiting: list[int] = []
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        while time.monotonic() < until:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            waiting.append(cursor.fetchone()[0])
            time.sleep(0.02)
    connection.close()
    for thread in threads:
        thread.join()
    print(
        f"{writers} writers: {sum(done) / seconds:.0f} rows a second,"
        f" {sum(waiting) / len(waiting):.1f} of them waiting for a lock on average",
        flush=True,
    )


def _write(url: str, number: int, until: float, wait: float, done: list[int]) -> None:
    """Mark and record batches until the time is over."""
    from dataclasses import replace

    from sqlalchemy import event

    from clipfarm_dagster.ledger.ledger import Ledger
    from clipfarm_dagster.ledger.schema import LedgerRow, Status
    from clipfarm_dagster.stages import Stage

    ledger = Ledger.open(Stage.TEXT, state_url=url, sqlite_path=Path("unused"))
    event.listen(ledger._engine, "before_cursor_execute", lambda *_: time.sleep(wait))
    batch = 0
    while time.monotonic() < until:
        ids = [f"writer-{number}-{batch}-{row}" for row in range(BATCH)]
        versions = ledger.mark_overwriting(ids)
        row = LedgerRow(video_id="", status=Status.SUCCESS, vector_contract_id="c", vector_source_hash="s")
        ledger.record([replace(row, video_id=i, row_version=versions[i]) for i in ids])
        batch += 1
        done[number] += len(ids)
    ledger.close()


if __name__ == "__main__":
    main()
