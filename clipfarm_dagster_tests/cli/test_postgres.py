"""Ledgers and Dagster's instance on one PostgreSQL server, as docs/operations.md sets it up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.instance import POSTGRES_SETTINGS, SETTINGS_FILE
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.postgres import (
    PostgresServer,
    connections,
    new_database,
    postgres_server,
)
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

TEXTS = 200
MOST_CONNECTIONS = 6
"""As docs/operations.md says it of a `sync`."""


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def on_postgres(
    corpus: Corpus, server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Corpus, str]:
    """A corpus with much text, and the URL of the database of its ledgers and its instance."""
    url = new_database(server.url)
    home = tmp_path / "dagster"
    home.mkdir()
    (home / SETTINGS_FILE).write_text(POSTGRES_SETTINGS.read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("CLIPFARM_STATE_URL", url)
    names = [f"text-{n:03}" for n in range(TEXTS)]
    put_metadata(corpus, [metadata_row(name) for name in names])
    raw = [(corpus.keys.raw(Stage.TEXT, n), b'{"transcript": "%s"}' % n.encode()) for n in names]
    corpus.store.put_many(raw)
    return Corpus.open(load_settings()), url


def sync() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from clipfarm_dagster.cli import main; main()"]
    return subprocess.Popen(
        [*command, "sync", "--stage", "text", "--json"],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    output, errors = process.communicate(timeout=300)
    return Ended(process.returncode, output, errors)


def asked(url: str, query: str) -> Any:
    with closing(psycopg2.connect(url, application_name="looking")) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetchall()


def successes(url: str) -> int:
    try:
        [[count]] = asked(url, "SELECT count(*) FROM clipfarm_text.processed_items WHERE status = 'success'")
    except psycopg2.Error:  # the table is not made yet
        return 0
    return int(count)


def materialized(url: str) -> list[int]:
    """How often each partition was."""
    query = (
        "SELECT count(*) FROM public.event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
        """ AND asset_key = '["text_embedding"]' GROUP BY partition"""
    )
    return [count for (count,) in asked(url, query)]


def test_a_server_that_is_restarted_in_a_run_is_waited_for_and_has_few_connections(
    on_postgres: tuple[Corpus, str], server: PostgresServer
) -> None:
    corpus, url = on_postgres
    with connections(url) as counted:
        process = sync()
        while successes(url) < 32:
            assert process.poll() is None, ended(process)
            time.sleep(0.02)
        server.stop()
        time.sleep(2)
        server.start()
        assert successes(url) < TEXTS, "it was in the middle"
        done = ended(process)

    assert done.code == 0, done.errors
    counts = {name: count for name, count in done.json["stages"]["text"].items() if name != "seconds"}
    assert counts == {"success": TEXTS, "model_calls": TEXTS}
    with corpus.ledger(Stage.TEXT) as ledger:
        rows = ledger.columns(["status", "vector_source_hash"])
    assert rows["status"].to_pylist() == [Status.SUCCESS] * TEXTS
    assert rows["vector_source_hash"].null_count == 0
    assert materialized(url) == [1] * TEXTS
    assert 0 < max(counted) <= MOST_CONNECTIONS, Counter(counted)
    assert len(corpus.store.list(corpus.keys.embedding_folder(Stage.TEXT))) == TEXTS


def test_the_shipped_settings_are_those_of_sqlite_but_for_the_storage(store: object) -> None:
    of_sqlite = yaml.safe_load(POSTGRES_SETTINGS.with_name(SETTINGS_FILE).read_text())
    of_postgres = yaml.safe_load(POSTGRES_SETTINGS.read_text())

    assert of_sqlite.pop("event_log_storage")
    for storage in ("run_storage", "schedule_storage", "event_log_storage"):
        assert of_postgres.pop(storage)["config"] == {"postgres_url": {"env": "CLIPFARM_STATE_URL"}}
    assert of_postgres == of_sqlite
