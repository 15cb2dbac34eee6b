"""Looks for what is left of erased videos: their ids in the bytes of files, and in tables of databases.

What a file compresses is not seen, except for Parquet's columns of text, gzip files, and columns of a
database that hold a zlib stream. An id of fewer than six characters can stand in binary data by chance.
"""

from __future__ import annotations

import gzip
import mmap
import re
import sqlite3
import tempfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.maintenance.sqlite_pages import Pages

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import Connection

Data: TypeAlias = mmap.mmap | bytes

_SQLITE_MAGIC = b"SQLite format 3\0"
_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"
_LOG_SUFFIXES = ("-wal", "-journal")
_DATABASE_SUFFIXES = (".db", ".sqlite")
_IN_MEMORY = 64 << 20
"""Bytes of a database that is copied into memory; a larger one is copied into a file."""
_WAIT_SECONDS = 30
"""How long another process may keep a database locked."""
_SURE = 6
"""Characters of an id that bytes without boundaries are searched for."""
_AROUND = 160
"""Bytes on either side of a find that tell whether it stands as a whole: more than an id is long."""
_FILES_AT_ONCE = 4
_BATCH = 500
"""Values or chunks that are searched at a time."""
_CHUNK = 1 << 16
_TEXT_TYPES = ("text", "character varying", "character", "json", "jsonb", "bytea", "ARRAY", "USER-DEFINED")


@dataclass(frozen=True)
class Trace:
    """Ids that are still there."""

    place: str
    """The path of a file, with table and column where it is a database, with the column where it is Parquet;
    or table and column of a server."""
    count: int


def scan_folder(folder: Path, ids: IdText, *, besides: Collection[Path] = ()) -> list[Trace]:
    """What is left in the files of a folder: names, contents and write-ahead logs. Links are not followed.

    Places that have an id in their own name are given with its tombstone.

    Args:
        besides: folders in it that are left out.

    Raises:
        OSError: a file cannot be read.
    """
    left_out = [one.resolve() for one in besides]
    paths = [
        path
        for path in sorted(folder.resolve().rglob("*"))
        if not any(path.is_relative_to(one) for one in left_out)
    ]

    def scan(path: Path) -> list[Trace]:
        named = len(list(ids.spans(path.name)))
        is_file = path.is_file() and not path.is_symlink()
        return [
            *([Trace(f"{path}: its name", named)] if named else []),
            *(scan_file(path, ids) if is_file else []),
        ]

    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="scan") as executor:
        traces = [trace for found in executor.map(scan, paths) for trace in found]
    return [Trace(ids.masked(trace.place), trace.count) for trace in traces]


def scan_file(path: Path, ids: IdText) -> list[Trace]:
    """What is left in one file; none if it has gone meanwhile.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with _bytes_of(path) as data:
            head = data[: len(_SQLITE_MAGIC)]
            is_sqlite = head == _SQLITE_MAGIC
            packed = is_sqlite or path.name.endswith(_LOG_SUFFIXES)
            count = _count_packed(data, ids) if packed else _count_whole(data, ids)
    except FileNotFoundError:
        return []
    if is_sqlite:
        inside = _scan_sqlite(path, ids)
    elif head.startswith(_PARQUET_MAGIC):
        inside = _scan_parquet(path, ids)
    else:
        inside = _scan_gzip(path, ids) if head.startswith(_GZIP_MAGIC) else []
    return inside or ([Trace(str(path), count)] if count else [])


def scan_postgres(
    connection: Connection, ids: IdText, *, schemas: Collection[str] | None = None
) -> list[Trace]:
    """What is left in the tables of a PostgreSQL database, of some schemas or of all that the user may read.

    Dead rows that no query returns, and that no dump has, are not seen.
    """
    from sqlalchemy import text

    columns = connection.execute(
        text(
            """SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns
            JOIN information_schema.tables USING (table_schema, table_name)
            WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')
              AND data_type = ANY(:types) ORDER BY 1, 2, ordinal_position"""
        ),
        {"types": list(_TEXT_TYPES)},
    ).fetchall()
    quote = connection.dialect.identifier_preparer.quote
    traces = []
    for schema, table, column, kind in columns:
        if schemas is not None and schema not in schemas:
            continue
        name = quote(column)
        in_server = kind != "bytea" and ids.are_few
        value = name if kind == "bytea" else f"{name}::text"
        condition = _any_of(ids, name) if in_server else f"{name} IS NOT NULL"
        query = f"SELECT {value} FROM {quote(schema)}.{quote(table)} WHERE {condition}"  # noqa: S608 - quoted
        rows = connection.execution_options(yield_per=_BATCH).execute(
            text(query), _bound(ids) if in_server else {}
        )
        count = _count_values((row[0] for row in rows), ids)
        if count:
            traces.append(Trace(f"{schema}.{table}.{column}", count))
    return traces


def bytes_hold(path: Path, ids: IdText, *, within_others: bool = True) -> bool:
    """Whether the bytes of a file have one of the ids anywhere, short or long, as a whole or not.

    Args:
        within_others: also inside other videos' ids.
    """
    try:
        with _bytes_of(path) as data:
            held = _held(data, ids)
            return any(within_others or any(True for _ in _packed(data, one, ids)) for one in held)
    except FileNotFoundError:
        return False


@contextmanager
def _bytes_of(path: Path) -> Iterator[Data]:
    """The bytes of a file; none of an index of a write-ahead log, which has no values.

    Of a database they are those of a copy of all its pages, with what was deleted. A process that closes a
    file loses all locks that it has on it: if a database were opened here past SQLite, another process could
    take it for unused, and remove the log that this one still writes to
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    if path.name.endswith("-shm"):
        yield b""
    elif path.suffix not in _DATABASE_SUFFIXES:
        with _mapped(path) as data:
            yield data
    elif path.stat().st_size <= _IN_MEMORY:
        with closing(sqlite3.connect(":memory:")) as copy:
            if is_database := _copied(path, copy):
                yield copy.serialize()
        if not is_database:
            with _mapped(path) as data:
                yield data
    else:
        with tempfile.TemporaryDirectory(prefix="clipfarm-") as folder:
            with closing(sqlite3.connect(Path(folder) / "copy")) as copy:
                is_database = _copied(path, copy)
            with _mapped(Path(folder) / "copy" if is_database else path) as data:
                yield data


@contextmanager
def _mapped(path: Path) -> Iterator[Data]:
    if not path.stat().st_size:
        yield b""
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _copied(path: Path, copy: sqlite3.Connection) -> bool:
    """Copy all pages of a database; False of a file that has its suffix and is none, or is gone."""
    try:
        source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)
        with closing(source):
            source.backup(copy)
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN):
            raise
        return False
    return True


def _scan_sqlite(path: Path, ids: IdText) -> list[Trace]:
    """What is left in the rows of a SQLite file; what its pages hold besides is for the bytes to tell."""
    traces = []
    with closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)
    ) as connection:
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        wanted = [*ids.tombstones] if ids.are_few else []
        for table, columns in _sqlite_tables(connection).items():
            names = [_quoted(column) for column in columns]
            held = " OR ".join(_may_hold(name, len(wanted)) for name in names)
            query = f"SELECT {', '.join(names)} FROM {_quoted(table)} WHERE {held}"  # noqa: S608 - quoted
            counts = [0] * len(columns)
            rows = connection.execute(query, wanted)
            while batch := rows.fetchmany(_BATCH):
                for number, values in enumerate(zip(*batch, strict=True)):
                    counts[number] += _count_values((one for one in values if one is not None), ids)
            traces += [
                Trace(f"{path}: {table}.{column}", count)
                for column, count in zip(columns, counts, strict=True)
                if count
            ]
    return traces


def _may_hold(name: str, ids: int) -> str:
    """The condition that a column is looked into: it has one of some ids, or bytes that may hide one; any
    value, where the ids are too many."""
    if not ids:
        return f"{name} IS NOT NULL"
    return " OR ".join([f"typeof({name}) = 'blob'", *(f"instr({name}, ?{n + 1})" for n in range(ids))])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sqlite_tables(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """The columns of each table, in order."""
    tables: dict[str, list[str]] = {}
    for table, column in connection.execute(
        """SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c
        WHERE m.type = 'table' ORDER BY m.name, c.cid"""
    ):
        tables.setdefault(table, []).append(column)
    return tables


def _scan_parquet(path: Path, ids: IdText) -> list[Trace]:
    """What is left in the columns of text of a Parquet file; one that is damaged has its bytes alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    traces = []
    with suppress(pa.ArrowException), pq.ParquetFile(path) as file:
        for field in file.schema_arrow:
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                batches = file.iter_batches(columns=[field.name])
                count = sum(_count_column(batch[0], ids) for batch in batches)
                if count:
                    traces.append(Trace(f"{path}: {field.name}", count))
    return traces


def _count_column(column: pa.Array, ids: IdText) -> int:
    """Ids that stand in a column of text, which may be long."""
    held = column.filter(ids.mask(column))
    return sum(len(list(ids.spans(text))) for text in held.to_pylist())


def _scan_gzip(path: Path, ids: IdText) -> list[Trace]:
    """What is left in the lines of a gzip file; one that is damaged, up to there."""
    count = 0
    with suppress(OSError, EOFError, zlib.error), gzip.open(path) as lines:
        while batch := list(islice(lines, _BATCH)):
            count += _count_values(batch, ids)
    return [Trace(str(path), count)] if count else []


def _count_values(values: Iterable[object], ids: IdText) -> int:
    """Ids that stand in the values of a column."""
    count, texts = 0, map(_text_of, values)
    while batch := list(islice(texts, _BATCH)):
        held = ids.held_in(batch)
        count += sum(len(list(ids.spans(text))) for text, has in zip(batch, held, strict=True) if has)
    return count


def _text_of(value: object) -> str:
    if not isinstance(value, (bytes, memoryview)):
        return str(value)
    data = bytes(value)
    with suppress(zlib.error):  # one that is no zlib stream is searched as it is
        data = zlib.decompress(data)
    return data.decode("latin-1")


def _count_whole(data: Data, ids: IdText) -> int:
    """Ids that stand in bytes as wholes."""
    return sum(1 for video_id in _held(data, ids) for _ in _wholes(data, video_id, ids))


def _wholes(data: Data, video_id: str, ids: IdText) -> Iterator[int]:
    """Where an id stands in bytes as a whole."""
    for at in _finds(data, video_id.encode()):
        start = max(0, at - _AROUND)
        window = data[start : at + len(video_id) + _AROUND].decode("latin-1")
        if any(found == at - start for found, _, _ in ids.spans(window)):
            yield at


def _count_packed(data: Data, ids: IdText) -> int:
    """Ids in bytes that have no boundaries, as where one column of a row follows another.

    Short ids count as wholes only, and an id within another video's is not counted.
    """
    return sum(1 for video_id in _held(data, ids) for _ in _packed(data, video_id, ids))


def _packed(data: Data, video_id: str, ids: IdText) -> Iterator[int]:
    """Where an id stands in bytes, other than inside another video's or across two values of a row."""
    pages, length = Pages.of(data), len(video_id)
    finds = _wholes(data, video_id, ids) if length < _SURE else _any_finds(data, video_id, ids, pages)
    return (at for at in finds if pages is None or not pages.in_two_values(at, length))


def _any_finds(data: Data, video_id: str, ids: IdText, pages: Pages | None) -> Iterator[int]:
    wanted = video_id.encode()
    candidates = [*ids.longer_than(video_id), video_id]
    pattern = re.compile("|".join(map(re.escape, candidates)).encode())
    for match in pattern.finditer(data):
        if match[0] == wanted:
            yield match.start()
        elif pages is not None and pages.in_two_values(match.start(), len(match[0])):
            # not another video's id, but perhaps this one, and the value after it
            yield from (match.start() + at for at in _finds(match[0], wanted))


def _held(data: Data, ids: IdText) -> list[str]:
    """The ids that bytes have anywhere, within others too."""
    if ids.are_few:
        return [video_id for video_id in ids.tombstones if data.find(video_id.encode()) >= 0]
    held: dict[str, None] = {}
    starts = iter(range(0, len(data), _CHUNK))
    while batch := [data[start : start + _CHUNK + _AROUND] for start in islice(starts, _BATCH)]:
        for chunk, has in zip(batch, ids.held_in(batch), strict=True):
            if has:
                held.update(dict.fromkeys(one for one in ids.tombstones if one.encode() in chunk))
    return list(held)


def _finds(data: Data, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def _any_of(ids: IdText, column: str) -> str:
    return " OR ".join(f"strpos({column}::text, :id{n}) > 0" for n in range(len(ids.tombstones))) or "false"


def _bound(ids: IdText) -> dict[str, str]:
    return {f"id{n}": video_id for n, video_id in enumerate(ids.tombstones)}
