"""Rows in, rows out, in both databases."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger import reading
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LEDGER_COLUMNS, LedgerRow, Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster_tests.support.postgres import new_database

NUMBERS: dict[str, Any] = {
    "retry_count": 3,
    "embedding_dim": 3,
    "vector_norm": 1.0,
    "seconds": 0.25,
    "row_version": None,
}
TEXTS: dict[str, Any] = {
    f.name: f"{f.name}, 'quoted' \N{SNOWMAN}" for f in fields(LedgerRow) if f.name not in NUMBERS
}
FULL = LedgerRow(**TEXTS, **NUMBERS)


def with_nulls(row: LedgerRow, *names: str) -> LedgerRow:
    """A row with null in columns of which some may not be null."""
    nulls: dict[str, Any] = dict.fromkeys(names)
    return replace(row, **nulls)


def test_a_row_comes_back_as_it_was_recorded(ledger: Ledger):
    ledger.record([FULL, LedgerRow(video_id="b")])

    assert ledger.rows([FULL.video_id, "b", "absent"]) == {FULL.video_id: FULL, "b": LedgerRow(video_id="b")}


def test_recording_again_replaces_the_whole_row(ledger: Ledger):
    ledger.record([FULL])
    ledger.record([LedgerRow(video_id=FULL.video_id, status=Status.FAIL)])

    assert ledger.rows([FULL.video_id]) == {
        FULL.video_id: LedgerRow(video_id=FULL.video_id, status=Status.FAIL)
    }


def test_rows_are_replaced_only_where_they_are_as_they_were_read(ledger: Ledger):
    rows = [replace(FULL, video_id=video_id, status=Status.FAIL) for video_id in "abc"]
    ledger.record(rows)
    meanwhile = replace(rows[1], status=Status.SUCCESS, artifact_sha256="another vector")
    ledger.record([meanwhile])
    due = [(row, replace(row, retry_count=0)) for row in (*rows, replace(FULL, video_id="absent"))]

    assert ledger.replace(due) == ["a", "c"]

    assert ledger.rows(["a", "b", "c", "absent"]) == {"a": due[0][1], "b": meanwhile, "c": due[2][1]}
    assert ledger.replace([]) == []


def test_a_batch_is_recorded_whole_or_not_at_all(ledger: Ledger):
    bad = with_nulls(FULL, "video_id", "retry_count")

    with pytest.raises(LedgerError):
        ledger.record([LedgerRow(video_id="good"), bad])

    assert ledger.rows(["good"]) == {}


@pytest.mark.parametrize("rows_read_here", [0, 20_000], ids=["in another process", "here"])
def test_columns_give_every_row_typed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, rows_read_here: int):
    monkeypatch.setattr(reading, "_ROWS_READ_HERE", rows_read_here)
    # nulls first: the types must not be guessed from them
    ledger.record([*(LedgerRow(video_id=f"v{i}") for i in range(2000)), FULL])

    table = ledger.columns()

    assert table.column_names == list(LEDGER_COLUMNS)
    assert {str(field.type) for field in table.schema} == {"string", "int64", "double"}
    rows = {row["video_id"]: LedgerRow(**row) for row in table.to_pylist()}
    assert len(rows) == 2001
    assert rows[FULL.video_id] == FULL
    assert rows["v7"] == LedgerRow(video_id="v7")


@pytest.mark.parametrize("rows_read_here", [0, 20_000], ids=["in another process", "here"])
def test_an_empty_ledger_has_empty_columns(ledger: Ledger, monkeypatch, rows_read_here: int):
    monkeypatch.setattr(reading, "_ROWS_READ_HERE", rows_read_here)

    assert ledger.columns(["video_id", "seconds"]).to_pydict() == {"video_id": [], "seconds": []}


def test_bulk_reading_between_writes_loses_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    """A second copy of SQLite in this process would drop our locks, and with them the write-ahead log."""
    monkeypatch.setattr(reading, "_ROWS_READ_HERE", 0)
    for i in range(5):
        ledger.record([LedgerRow(video_id=f"v{i}")])
        assert ledger.columns(["video_id"]).num_rows == i + 1
    ledger.close()

    assert len(ledger.rows(f"v{i}" for i in range(5))) == 5


def test_counts_and_statuses(ledger: Ledger):
    rows = [
        LedgerRow(video_id="a", status=Status.SUCCESS, processed_at="2026-01-01T00:00:00.000000Z"),
        LedgerRow(video_id="b", status=Status.FAIL, processed_at="2026-01-02T00:00:00.000000Z"),
        LedgerRow(video_id="c", status=Status.FAIL, processed_at="2026-01-03T00:00:00.000000Z"),
    ]
    ledger.record(rows)

    assert ledger.counts() == {"success": 1, "fail": 2}
    assert ledger.with_status([Status.FAIL]) == [rows[2], rows[1]]
    assert ledger.with_status([Status.FAIL], limit=1) == [rows[2]]


def test_the_version_changes_with_every_write_and_with_nothing_else(
    ledger: Ledger, state_url: str, tmp_path: Path
):
    versions = [ledger.version()]
    rows = [replace(FULL, video_id=name, processed_at="2026-01-02") for name in "ab"]
    late = replace(rows[0], status=Status.SUCCESS, processed_at="2026-01-01")
    for write in (
        lambda: ledger.record(rows),
        lambda: ledger.record([late]),
        lambda: ledger.record([late]),
        lambda: ledger.mark_overwriting(["a"]),
    ):
        write()
        versions.append(ledger.version())
    assert len(set(versions)) == 5

    ledger.record([])
    ledger.mark_overwriting([])
    with pytest.raises(LedgerError):
        ledger.record([with_nulls(FULL, "video_id")])
    with closing(
        Ledger.open(Stage.VIDEO, state_url=state_url, sqlite_path=tmp_path / "video_embedding.sqlite")
    ) as again:
        assert again.version() == ledger.version() == versions[-1]


def test_a_ledger_from_before_versions_gets_one_that_lasts(ledger: Ledger, state_url: str, tmp_path: Path):
    ledger.record([FULL])
    before = ledger.version()
    engine = create_engine(state_url or f"sqlite:///{ledger.sqlite_path}")
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {'clipfarm_video.' if state_url else ''}ledger_version"))
    engine.dispose()

    found = []
    for _ in range(2):
        with closing(
            Ledger.open(Stage.VIDEO, state_url=state_url, sqlite_path=tmp_path / "video_embedding.sqlite")
        ) as opened:
            found.append(opened.version())
            assert opened.rows([FULL.video_id]) == {FULL.video_id: FULL}
    assert found[0] == found[1] != before


def test_overwriting_makes_the_stored_vector_unknown_and_keeps_the_rest(ledger: Ledger):
    other = replace(FULL, video_id="other")
    ledger.record([FULL, other])

    ledger.mark_overwriting([FULL.video_id, "never seen"])

    marked = replace(FULL, vector_source_hash=None, vector_contract_id=None)
    assert ledger.rows([FULL.video_id, "other", "never seen"]) == {
        FULL.video_id: marked,
        "other": other,
        "never seen": LedgerRow(video_id="never seen"),
    }


def test_a_row_that_is_written_from_an_old_reading_claims_no_vector(ledger: Ledger):
    """Somebody else wrote it meanwhile; who of the two put the vector last is not known."""
    ledger.record([FULL])
    old = ledger.rows([FULL.video_id])[FULL.video_id]
    ledger.record([replace(old, artifact_sha256="first")])
    assert ledger.rows([FULL.video_id])[FULL.video_id].vector_source_hash == FULL.vector_source_hash

    ledger.record([replace(old, artifact_sha256="second")])

    row = ledger.rows([FULL.video_id])[FULL.video_id]
    assert (row.vector_source_hash, row.vector_contract_id) == (None, None)


def test_a_ledger_belongs_to_one_corpus(ledger: Ledger):
    asked = []

    def ask() -> None:
        asked.append(True)
        ledger.set_corpus_id("one")

    ledger.before_first_write = ask
    assert ledger.corpus_id() is None
    ledger.columns()
    assert not asked
    ledger.record([FULL])
    ledger.record([FULL])
    ledger.set_corpus_id("another")
    assert asked == [True]
    assert ledger.corpus_id() == "one"


def test_contracts_are_remembered_by_id(ledger: Ledger):
    contract = Contract(
        stage=Stage.VIDEO,
        model_name="m",
        model_revision="r",
        preprocess_name="p",
        preprocess_version="1",
        preprocess_params={"frames": 16},
        pooling="mean",
        dtype="float32",
    )
    ledger.record_contract(contract)
    ledger.record_contract(contract)

    assert ledger.contract(contract.id) == contract
    assert ledger.contract("unknown") is None


def test_thousands_of_ids_are_asked_for_at_once(ledger: Ledger):
    rows = [LedgerRow(video_id=f"v{i}") for i in range(3000)]
    ledger.record(rows)

    assert len(ledger.rows(row.video_id for row in rows)) == 3000


ORIGINAL_SCHEMA = """CREATE TABLE processed_items (
    video_id TEXT PRIMARY KEY, source_hash TEXT, processed_at TEXT, status TEXT, error TEXT,
    artifact_key TEXT, vector_id TEXT, retry_count INTEGER)"""


def test_a_database_of_the_original_schema_is_brought_up_to_date_with_nothing_lost(tmp_path: Path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(ORIGINAL_SCHEMA)
        connection.execute(
            "INSERT INTO processed_items VALUES ('a', 'h', '2020-01-01', 'success', NULL, 'k', NULL, 2)"
        )
    connection.close()

    for _ in range(2):
        ledger = Ledger.open(Stage.AUDIO, state_url="", sqlite_path=path)
        assert ledger.rows(["a"]) == {
            "a": LedgerRow(
                video_id="a",
                source_hash="h",
                processed_at="2020-01-01",
                status="success",
                artifact_key="k",
                retry_count=2,
            )
        }
        ledger.close()


def test_stages_share_a_postgresql_database_without_meeting(postgres_url: str, tmp_path: Path):
    url = new_database(postgres_url)
    ledgers = [Ledger.open(stage, state_url=url, sqlite_path=tmp_path / "unused") for stage in Stage]
    for ledger in ledgers:
        ledger.record([LedgerRow(video_id="a", note=str(ledger.stage))])

    assert [ledger.rows(["a"])["a"].note for ledger in ledgers] == ["video", "audio", "text"]
    for ledger in ledgers:
        ledger.close()


def _record_many(state_url: str, path: Path, writer: int) -> None:
    ledger = Ledger.open(Stage.VIDEO, state_url=state_url, sqlite_path=path)
    for i in range(20):
        ledger.record([LedgerRow(video_id=f"{writer}-{i}-{k}") for k in range(10)])
    ledger.close()


def test_processes_write_at_the_same_time_and_lose_nothing(state_url: str, tmp_path: Path):
    path = tmp_path / "shared.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_record_many, args=(state_url, path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    ledger = Ledger.open(Stage.VIDEO, state_url=state_url, sqlite_path=path)
    assert ledger.columns(["video_id"]).num_rows == 600
    ledger.close()


def test_opening_a_new_file_waits_for_another_process_that_opens_it(tmp_path: Path):
    path = tmp_path / "new.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.3, other.execute, ["COMMIT"])
        timer.start()

        ledger = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=path)

        timer.join()
    ledger.record([LedgerRow(video_id="a")])
    ledger.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("not a url", "not a database URL"),
        ("postgresql://user:hunter2@host:port/db", "not a database URL"),
        ("mysql://user:hunter2@host/db", "'mysql'"),
        ("postgresql://user@127.0.0.1:1/db?password=hunter2", "cannot open"),
        ("postgresql://user:hunter2@127.0.0.1:1/db?bogus=1", "bogus"),
    ],
)
def test_an_unusable_url_is_refused_without_its_password(url: str, told: str, tmp_path: Path):
    with pytest.raises(LedgerError, match=told) as caught:
        Ledger.open(Stage.VIDEO, state_url=url, sqlite_path=tmp_path / "x")

    assert "hunter2" not in str(caught.value)


def test_an_unreachable_server_is_named_without_its_password(tmp_path: Path):
    with pytest.raises(LedgerError, match="cannot open the video ledger") as caught:
        Ledger.open(
            Stage.VIDEO,
            state_url="postgresql://user:hunter2@127.0.0.1:1/db",
            sqlite_path=tmp_path / "x",
        )

    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


@pytest.fixture
def with_password(postgres_url: str, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger on PostgreSQL whose password a URL has to quote."""
    url = new_database(postgres_url).replace("@", ":hunter%202%25%27%5C@") + "?application_name=a%20b"
    ledger = Ledger.open(Stage.VIDEO, state_url=url, sqlite_path=tmp_path / "unused")
    yield ledger
    ledger.close()


def test_any_password_serves_bulk_reading(with_password: Ledger):
    with_password.record([FULL])

    assert with_password.columns(["video_id"]).to_pydict() == {"video_id": [FULL.video_id]}


@pytest.mark.parametrize("note", ["hunter 2%'\\", "hunter%202%25%27%5C"], ids=["plain", "quoted"])
def test_a_password_is_masked_in_every_form(with_password: Ledger, note: str):
    with pytest.raises(LedgerError, match=r"\*\*\*") as caught:
        with_password.record([with_nulls(LedgerRow(video_id="a", note=note), "video_id")])

    assert "hunter" not in str(caught.value)


def test_a_database_that_is_gone_is_told_by_bulk_reading(with_password: Ledger, postgres_url: str):
    import psycopg2

    name = with_password.name.rpartition("/")[2]
    with closing(psycopg2.connect(f"{postgres_url}/postgres")) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"DROP DATABASE {name} WITH (FORCE)")

    with pytest.raises(LedgerError, match=f"cannot read the video ledger.*{name}"):
        with_password.columns(["video_id"])


def test_a_connection_that_breaks_while_rows_are_read_is_told(with_password: Ledger, postgres_url: str):
    import psycopg2

    with closing(psycopg2.connect(f"{postgres_url}/{with_password.name.rpartition('/')[2]}")) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(
            """INSERT INTO clipfarm_video.processed_items (video_id, error)
            SELECT i, repeat('x', 2000) FROM generate_series(1, 40000) i"""
        )

        def read() -> None:
            with with_password.stream(["video_id", "error"]) as reader:
                assert reader.read_next_batch().num_rows < 40_000
                cursor.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()"""
                )
                reader.read_all()

        with pytest.raises(LedgerError, match="cannot read the video ledger"):
            read()


def test_trouble_of_a_reader_stays_its_own(ledger: Ledger):
    with pytest.raises(OSError, match="disk full"), ledger.stream():
        raise OSError("disk full")


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "broken.sqlite"
    path.write_bytes(b"no database at all" * 100)

    with pytest.raises(LedgerError, match=r"broken\.sqlite: file is not a database; move the file away"):
        Ledger.open(Stage.VIDEO, state_url="", sqlite_path=path)


def test_timestamps_sort_as_text():
    moments = [
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 5, tzinfo=timezone(timedelta(hours=2))),
    ]
    assert [timestamp(m) for m in moments] == sorted(timestamp(m) for m in moments)
    with pytest.raises(ValueError, match="no time zone"):
        timestamp(datetime(2026, 1, 1))
