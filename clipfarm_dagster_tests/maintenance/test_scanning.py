"""What is left of an id is found, in files and in databases, and other videos' ids are not taken for it."""

from __future__ import annotations

import gzip
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlalchemy

from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.maintenance.scanning import Trace, bytes_hold, scan_folder, scan_postgres
from clipfarm_dagster_tests.support.postgres import new_database

OTHERS = {"clip-00012", "x-clip-0001"}


@pytest.fixture(params=[1, 700])
def ids(request: pytest.FixtureRequest) -> IdText:
    """The id to find, alone and among many that are not there."""
    absent = {f"absent-{n}": "" for n in range(request.param - 1)}
    ids = IdText({**absent, "clip-0001": "…"}, OTHERS)
    assert ids.are_few == (request.param == 1)
    return ids


def found(folder: Path, ids: IdText) -> dict[str, int]:
    return {trace.place.removeprefix(f"{folder}/"): trace.count for trace in scan_folder(folder, ids)}


def test_files_and_their_names(tmp_path: Path, ids: IdText):
    (tmp_path / "clip-0001.npy").write_bytes(b"\0\1")
    (tmp_path / "text").write_bytes(b"clip-00012 x-clip-0001 'clip-0001' \\nclip-0001: \xff clip-0001.")
    (tmp_path / "others").write_bytes(b"clip-00012 x-clip-0001")
    (tmp_path / "empty").touch()
    (tmp_path / "long").write_bytes(b" " * 65_530 + b"clip-0001")  # in two of the pieces that are searched
    (tmp_path / "link").symlink_to("text")

    assert found(tmp_path, ids) == {"….npy: its name": 1, "long": 1, "text": 3}


def test_rows_of_sqlite_and_what_was_deleted(tmp_path: Path, ids: IdText):
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute('CREATE TABLE "a table" (name TEXT, "the id" TEXT, body BLOB)')
        rows: list[tuple[str, str, bytes | None]]
        rows = [(f"video_id{n}", "clip-0001" if n == 3 else f"clip-1{n}", None) for n in range(200)]
        rows += [("b", "clip-00012", zlib.compress(b"x" * 300 + b" clip-0001 "))]
        connection.executemany('INSERT INTO "a table" VALUES (?, ?, ?)', rows)
        connection.commit()

        assert found(tmp_path, ids) == {"some.db: a table.the id": 1, "some.db: a table.body": 1}

        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute("""DELETE FROM "a table" WHERE "the id" IN ('clip-0001', 'clip-00012')""")
        connection.commit()
        assert found(tmp_path, ids) == {"some.db": 1}
        assert bytes_hold(path, ids)

        connection.execute("VACUUM")
        assert found(tmp_path, ids) == {}
        assert not bytes_hold(path, ids)


def test_the_write_ahead_log_counts(tmp_path: Path, ids: IdText):
    with closing(sqlite3.connect(tmp_path / "some.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (a TEXT, b TEXT)")
        connection.execute("INSERT INTO t VALUES ('joined', 'clip-0001')")
        connection.commit()
        assert found(tmp_path, ids) == {"some.db: t.b": 1, "some.db-wal": 1}
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("DELETE FROM t")
        connection.commit()
        assert found(tmp_path, ids) == {"some.db-wal": 1}
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert found(tmp_path, ids) == {}


def test_looking_takes_no_lock_from_whoever_uses_a_database(tmp_path: Path, ids: IdText):
    """Where it does, another process that closes the database removes the log that is still written to."""
    path = tmp_path / "some.db"

    def count_elsewhere() -> int:
        code = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM t'))"
        done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
        return int(done.stdout.strip("(,)\n"))

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.execute("INSERT INTO t VALUES ('first')")
        connection.commit()

        scan_folder(tmp_path, ids)
        bytes_hold(path, ids)

        assert count_elsewhere() == 1
        connection.execute("INSERT INTO t VALUES ('second')")
        connection.commit()
        assert count_elsewhere() == 2


@pytest.mark.parametrize("logged", [False, True])
def test_values_beside_each_other_are_not_taken_for_an_id(tmp_path: Path, logged: bool):
    """`clip-10` and a number that begins with `0` are not `clip-100`, in rows, indexes and deleted rows."""
    path, ids = tmp_path / "some.db", IdText({"clip-100": "…", "v1": "…"}, {"clip-10", "clip-1001", "v"})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA secure_delete=OFF")
        if logged:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, hash TEXT, body TEXT)")
        connection.execute("CREATE INDEX i ON t (name, id)")
        rows = [(n, "clip-10" if n % 3 else "v", f"{n % 10:x}ab", "x" * (n * 37 % 9000)) for n in range(900)]
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO t VALUES (1000, 'clip-100', '1', '')")
        connection.commit()
        raw = b"".join(file.read_bytes() for file in tmp_path.glob("some.db*"))
        assert raw.count(b"clip-100") > 20

        told = found(tmp_path, ids)
        assert told.pop("some.db: t.name") == 1
        assert told.keys() == ({"some.db-wal"} if logged else set())
        assert sum(told.values()) < 10  # a page may be in the log more than once

        connection.execute("DELETE FROM t WHERE name = 'clip-100'")
        connection.commit()
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert found(tmp_path, ids) == {}
        assert not bytes_hold(path, ids, within_others=False)


def test_an_id_is_found_where_the_next_value_makes_it_another_one(tmp_path: Path):
    """As of a table that was dropped."""
    path, ids = tmp_path / "some.db", IdText({"clip-100": "…"}, {"clip-1001"})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute("CREATE TABLE t (name TEXT, hash TEXT)")
        connection.execute("CREATE TABLE kept (name TEXT, hash TEXT)")
        rows = [("clip-100", "1ab") if n == 50 else (f"other-{n}", "x" * 100) for n in range(100)]
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
        connection.execute("INSERT INTO kept VALUES ('clip-1001', 'ab')")
        connection.commit()
        connection.execute("DROP TABLE t")
        connection.commit()

        assert found(tmp_path, ids) == {"some.db": 1}
        assert bytes_hold(path, ids, within_others=False)


def test_columns_of_parquet_and_lines_of_gzip(tmp_path: Path, ids: IdText):
    names = [None, *(f"clip-1{n}" for n in range(5000)), "clip-0001", "clip-00012"]
    notes = pa.array([f"about {name}" for name in names], pa.large_string())
    table = pa.table({"id": names, "note": notes, "n": list(range(len(names)))})
    for name, codec in (("a.parquet", "zstd"), ("b.parquet", "lz4")):
        pq.write_table(table, tmp_path / name, compression=codec, row_group_size=1000, write_statistics=False)
    pq.write_table(table.filter(pc.not_equal(table["id"], "clip-0001")), tmp_path / "c.parquet")
    (tmp_path / "rows.gz").write_bytes(gzip.compress(b'{"id": "clip-00012"}\n{"id": "clip-0001"}\n' * 700))
    (tmp_path / "others.gz").write_bytes(gzip.compress(b"clip-00012"))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 clip-0001")
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(b"clip-0001\n" * 5000)[:-4])

    assert not any(b"clip-0001" in (tmp_path / name).read_bytes() for name in ("a.parquet", "rows.gz"))
    told = found(tmp_path, ids)
    assert told.pop("damaged.gz") > 0
    assert told == {
        "a.parquet: id": 1,
        "a.parquet: note": 1,
        "b.parquet: id": 1,
        "b.parquet: note": 1,
        "damaged.parquet": 1,
        "rows.gz": 700,
    }


def test_columns_of_postgresql(postgres_url: str, ids: IdText):
    engine = sqlalchemy.create_engine(new_database(postgres_url))
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Other"; CREATE TABLE "Other"."T" ("A b" jsonb, n int)')
        connection.exec_driver_sql("CREATE TABLE t (a text[], b bytea)")
        connection.exec_driver_sql(
            """INSERT INTO "Other"."T" VALUES ('{"id": "clip-0001"}', 1), ('["clip-00012"]', 2)"""
        )
        connection.exec_driver_sql(
            "INSERT INTO t VALUES (ARRAY['clip-0001', 'x'], %s)", (zlib.compress(b"clip-0001"),)
        )
    with engine.connect() as connection:
        assert scan_postgres(connection, ids) == [
            Trace("Other.T.A b", 1),
            Trace("public.t.a", 1),
            Trace("public.t.b", 1),
        ]
        assert scan_postgres(connection, IdText({"clip-1": ""})) == []
    engine.dispose()
