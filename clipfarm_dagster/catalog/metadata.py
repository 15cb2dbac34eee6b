"""The metadata CSV: the latest row of each `video_id`, as a Parquet file that planning reads by columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from clipfarm_dagster.catalog import csv_file
from clipfarm_dagster.catalog.duckdb_connection import duckdb_connection
from clipfarm_dagster.errors import MetadataError
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import cache_files
from clipfarm_dagster.store.keys import VIDEO_ID_PATTERN
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.hashing import metadata_hash_sql

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

REQUIRED_COLUMNS = ("video_id", "captured_at", "title", "description", "query")

REFUSED_SAMPLE = 100
"""How many refused ids are kept by name."""

CHANGED_MEANWHILE = "it changed while it was being read; the next attempt reads it again"

SPLIT_EVERY = 20_000
_SAMPLED_EVERY = 100

_FORMAT = 1
"""Raise it when the Parquet file or the reading of the CSV changes, so that older files are not read."""
_FILES_KEPT = 3
_SUFFIX = ".parquet"
_ROW_GROUP = 65_536
_INFO = b"clipfarm"
_SHOWN_CHARACTERS = 200

_ISO_8601 = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.]\d{1,9})?)?( ?(Z|[+-]\d\d(:?\d\d)?))?)?"


class LeftOut(Protocol):
    """Videos whose rows are not read, though the CSV has them: those that were erased."""

    @property
    def version(self) -> str:
        """A text that changes with the videos; empty for none."""

    def among(self, video_ids: Iterable[str]) -> set[str]:
        """Those of some ids that are left out."""


@dataclass(frozen=True)
class LatestRows:
    """The latest row of each accepted `video_id`."""

    path: Path
    """Parquet, one row per `video_id`, in no particular order: `video_id`, `captured_at` (timestamp, UTC),
    `<stage>_metadata_hash` for each stage, then all other CSV columns as text."""
    videos: int
    refused: Mapping[str, int]
    """Ids that are refused, with their numbers of rows; at most `REFUSED_SAMPLE`, cut at 200 characters."""
    refused_ids: int
    """How many ids are refused, whether named in `refused` or not."""
    erased: int = 0
    """How many ids are left out, since their videos were erased."""

    def video_ids(self) -> list[str]:
        """All accepted ids, the newest `captured_at` first, then by id."""
        with duckdb_connection() as connection:
            connection.read_parquet(str(self.path)).create_view("latest")
            newest = connection.sql("SELECT video_id FROM latest ORDER BY captured_at DESC, video_id")
            ids: list[str] = newest.to_arrow_table().column(0).to_pylist()
            return ids


def read_latest_rows(
    csv: bytes | Path,
    *,
    url: str,
    source_columns: Mapping[Stage, Sequence[str]],
    cache_dir: Path,
    etag: str | None,
    left_out: LeftOut | None = None,
) -> LatestRows:
    """The latest row by `captured_at` of each `video_id`; of rows of one instant the later line counts.

    A `captured_at` is an ISO 8601 date or timestamp; without a zone it is taken as UTC. Rows whose
    `video_id` is refused are left out and counted.

    Args:
        csv: the file, or its content.
        url: where it came from, for errors.
        source_columns: the columns that each stage hashes; none for a stage that is left out.
        cache_dir: folder of the Parquet files. What was read under the same `etag`, `url` and
            `source_columns`, without the same videos, is taken from there, unless it was damaged; the least
            recently used files are removed.
        etag: identifies the content; None if unknown, which reads the CSV in any case.
        left_out: videos whose rows are passed over.

    Raises:
        MetadataError: the file cannot be read as a whole, with line and column; nothing has changed.
    """
    hashed = {stage: list(source_columns.get(stage, ())) for stage in Stage}
    stem = _cache_stem(url, hashed, etag or os.urandom(16).hex(), left_out)
    if cached := _open_cached(cache_dir, stem):
        return cached
    cache_dir.mkdir(parents=True, exist_ok=True)
    part = cache_dir / f"{stem}.{os.urandom(8).hex()}.part"
    try:
        with io.BytesIO(csv) if isinstance(csv, bytes) else csv.open("rb") as file, _unchanged(file, url):
            latest = _write_latest(file, url, hashed, part, left_out)
        path = cache_files.keep(part, cache_dir, stem, _SUFFIX)
    finally:
        part.unlink(missing_ok=True)
    _prune(cache_dir)
    return replace(latest, path=path)


def open_latest_rows(
    *,
    url: str,
    source_columns: Mapping[Stage, Sequence[str]],
    cache_dir: Path,
    etag: str,
    left_out: LeftOut | None = None,
) -> LatestRows | None:
    """What `read_latest_rows` has read of this version before, without the CSV; None if it is not there."""
    hashed = {stage: list(source_columns.get(stage, ())) for stage in Stage}
    return _open_cached(cache_dir, _cache_stem(url, hashed, etag, left_out))


def split_points(latest: LatestRows) -> list[str]:
    """Ids, in order, that cut all accepted ids into parts of about `SPLIT_EVERY`; none for so few."""
    import pyarrow.parquet as pq

    if latest.videos <= SPLIT_EVERY:
        return []
    ids = pq.read_table(latest.path, columns=["video_id"])["video_id"]
    sample = sorted(ids.take(list(range(0, len(ids), _SAMPLED_EVERY))).to_pylist())
    step = SPLIT_EVERY // _SAMPLED_EVERY
    return sample[step::step]


def rows_for(latest: LatestRows, video_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """All columns of `LatestRows.path` but `video_id` for some videos, by `video_id`, `captured_at` as the
    ledger writes timestamps; ids that the metadata does not have are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = pa.array(video_ids, pa.string())
    rows: dict[str, dict[str, str]] = {}
    with pq.ParquetFile(latest.path) as parquet:
        for group in range(parquet.num_row_groups):
            hit = pc.is_in(parquet.read_row_group(group, columns=["video_id"]).column(0), value_set=wanted)
            if pc.any(hit).as_py():
                for row in parquet.read_row_group(group).filter(hit).to_pylist():
                    row["captured_at"] = timestamp(row["captured_at"])
                    rows[row.pop("video_id")] = row
    return rows


def _write_latest(
    file: BinaryIO,
    url: str,
    hashed: Mapping[Stage, Sequence[str]],
    path: Path,
    left_out: LeftOut | None,
) -> LatestRows:
    """Write the latest rows to `path`. Reads the file twice: for the rows that win, with two narrow columns
    in memory, and then for these rows' texts, which are hashed and written as they stream by."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = csv_file.read_header(file, url)
    columns = {name: f"c{i}" for i, name in enumerate(header)}
    for name in (*REQUIRED_COLUMNS, *(name for names in hashed.values() for name in names)):
        if name not in columns:
            found = ", ".join(map(repr, header))
            shown = found if len(found) <= _SHOWN_CHARACTERS else f"{found[:_SHOWN_CHARACTERS]}…"
            raise MetadataError(
                url, f"this column is missing; found, between commas: {shown}", line=1, column=name
            )
    rides_along = [name for name in header if name not in ("video_id", "captured_at")]
    hashes = {
        f"{stage}_metadata_hash": metadata_hash_sql([columns[n] for n in hashed[stage]]) for stage in Stage
    }
    for name in hashes:
        if name in columns:
            raise MetadataError(url, "this column's name is reserved; rename it", line=1, column=name)

    block_size, narrow = _read_narrow(file, url, header)
    winners = _choose(narrow, file, url, left_out)
    del narrow
    latest = LatestRows(path, int(winners.rows.sum()), winners.refused, winners.refused_ids, winners.erased)
    info = {"videos": latest.videos, "refused": latest.refused, "refused_ids": latest.refused_ids}
    if latest.erased:  # unknown to earlier versions, which may share the folder
        info["erased"] = latest.erased
    schema = pa.schema(
        [
            ("video_id", pa.string()),
            ("captured_at", pa.timestamp("us", "UTC")),
            *((name, pa.string()) for name in (*hashes, *rides_along)),
        ],
        metadata={_INFO: json.dumps(info)},
    )
    with (
        duckdb_connection() as connection,
        pq.ParquetWriter(
            path, schema, compression="lz4", use_dictionary=list(hashes), write_statistics=False
        ) as writer,
    ):
        texts = pa.schema(
            [*((name, pa.string()) for name in columns.values()), ("captured_at", pa.timestamp("us", "UTC"))]
        )
        connection.register(
            "texts",
            pa.RecordBatchReader.from_batches(texts, _latest_batches(file, header, block_size, winners)),
        )
        selected = ", ".join(
            [columns["video_id"], "captured_at", *hashes.values(), *(columns[name] for name in rides_along)]
        )
        for batch in connection.sql(f"SELECT {selected} FROM texts").to_arrow_reader(_ROW_GROUP):  # noqa: S608
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema), _ROW_GROUP)
    return latest


def _read_narrow(file: BinaryIO, url: str, header: Sequence[str]) -> tuple[int, pa.Table]:
    """`video_id` and `captured_at` of every row, in order, all columns of which are checked; and the block
    size that the file's longest row fits into."""
    import pyarrow as pa

    wanted = [f"c{header.index('video_id')}", f"c{header.index('captured_at')}"]
    for block_size in csv_file.BLOCK_SIZES:
        try:
            batches = [b.select(wanted) for b in csv_file.read_batches(file, header, block_size)]
        except pa.ArrowInvalid as error:
            unreadable = error
        else:
            table = pa.Table.from_batches(batches, batches[0].schema)
            return block_size, table.rename_columns(["video_id", "captured_at"])
    if found := csv_file.locate(file, url, header):
        raise found from unreadable
    raise MetadataError(url, f"it cannot be read as CSV: {unreadable}") from unreadable


@dataclass(frozen=True)
class _Winners:
    rows: np.ndarray[Any, np.dtype[np.bool_]]
    """For each row of the CSV, whether it is the latest of its video, and the video is not left out."""
    captured_at: pa.ChunkedArray
    """Of these rows, in their order."""
    refused: dict[str, int]
    refused_ids: int
    erased: int


def _choose(narrow: pa.Table, file: BinaryIO, url: str, left_out: LeftOut | None) -> _Winners:
    """The latest row of each video.

    Raises:
        MetadataError: an accepted row has no readable `captured_at`.
    """
    import numpy as np
    import pyarrow as pa

    with duckdb_connection() as connection:
        connection.register(
            "narrow", narrow.append_column("n", pa.array(np.arange(narrow.num_rows, dtype=np.int64)))
        )
        connection.execute(
            """CREATE TEMP TABLE dated AS SELECT n, video_id,
                regexp_full_match(video_id, ?) AS accepted,
                CASE WHEN regexp_full_match(captured_at, ?)
                    THEN try_cast(captured_at AS TIMESTAMPTZ) END AS captured_at
            FROM narrow""",
            [VIDEO_ID_PATTERN, _ISO_8601],
        )
        [(undated,)] = connection.execute(
            """SELECT min(n) FROM dated WHERE accepted AND (captured_at IS NULL
            OR NOT captured_at BETWEEN '0001-01-02 00:00Z' AND '9999-12-30 00:00Z')"""
        ).fetchall()
        if undated is not None:
            raise MetadataError(
                url,
                f"{narrow['captured_at'][undated].as_py()[:100]!r} is not an ISO 8601 date or timestamp",
                line=csv_file.line_of_row(file, undated),
                column="captured_at",
            )
        refused = connection.execute(
            """SELECT left(video_id, 200), count(*) FROM dated WHERE NOT accepted
            GROUP BY video_id ORDER BY min(n)"""
        ).fetchall()
        latest = connection.sql(
            """SELECT n, captured_at FROM dated WHERE accepted
            QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY captured_at DESC, n DESC) = 1
            ORDER BY n"""
        ).to_arrow_table()
    latest, erased = _without(latest, narrow["video_id"], left_out)
    rows = np.zeros(narrow.num_rows, dtype=np.bool_)
    rows[latest["n"].to_numpy()] = True
    return _Winners(rows, latest["captured_at"], dict(refused[:REFUSED_SAMPLE]), len(refused), erased)


def _without(latest: pa.Table, ids: pa.ChunkedArray, left_out: LeftOut | None) -> tuple[pa.Table, int]:
    """The rows of videos that are not left out, and how many were; `n` is a row's place among the ids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if left_out is None or not left_out.version:
        return latest, 0
    names = ids.take(latest["n"])
    gone = left_out.among(names.to_pylist())
    kept = latest.filter(pc.invert(pc.is_in(names, value_set=pa.array(gone, names.type))))
    return kept, latest.num_rows - kept.num_rows


def _latest_batches(
    file: BinaryIO, header: Sequence[str], block_size: int, winners: _Winners
) -> Iterator[pa.RecordBatch]:
    """The rows that win, with `captured_at` as a timestamp behind the CSV's columns."""
    import pyarrow as pa

    read = written = 0
    for batch in csv_file.read_batches(file, header, block_size):
        kept = batch.filter(pa.array(winners.rows[read : read + batch.num_rows]))
        read += batch.num_rows
        captured_at = winners.captured_at.slice(written, kept.num_rows).combine_chunks()
        written += kept.num_rows
        yield kept.append_column("captured_at", captured_at)


def _cache_stem(url: str, hashed: Mapping[Stage, Sequence[str]], etag: str, left_out: LeftOut | None) -> str:
    without = [] if left_out is None or not left_out.version else [left_out.version]
    identity = json.dumps([_FORMAT, url, etag, hashed, *without], sort_keys=True)
    return f"latest-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"


def _open_cached(cache_dir: Path, stem: str) -> LatestRows | None:
    import pyarrow.parquet as pq

    path = cache_files.find(cache_dir, stem, _SUFFIX)
    if path is None:
        return None
    info = json.loads(pq.read_schema(path).metadata[_INFO])
    return LatestRows(path, **info)


def _prune(cache_dir: Path) -> None:
    """Remove all but the files used last, and what a killed process left half-written."""
    files = sorted(cache_dir.glob(f"latest-*{_SUFFIX}"), key=lambda f: f.stat().st_mtime, reverse=True)
    yesterday = time.time() - 86_400
    parts = (f for f in cache_dir.glob("latest-*.part") if f.stat().st_mtime < yesterday)
    for file in (*files[_FILES_KEPT:], *parts):
        file.unlink(missing_ok=True)


@contextmanager
def _unchanged(file: BinaryIO, url: str) -> Iterator[None]:
    """Refuse a file that another program writes to meanwhile, also where that makes the reading fail."""

    def state() -> tuple[int, int]:
        if isinstance(file, io.BytesIO):
            return 0, 0
        stat = os.fstat(file.fileno())
        return stat.st_size, stat.st_mtime_ns

    before = state()
    try:
        yield
    finally:
        if state() != before:
            raise MetadataError(url, CHANGED_MEANWHILE)


def metadata_columns(
    latest_rows: LatestRows, video_ids: Sequence[str], columns: Sequence[str]
) -> dict[str, list[str]]:
    """Some columns of the latest metadata of each video, as text; empty for videos that it does not have."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    latest = pq.read_table(latest_rows.path, columns=["video_id", *columns])
    numbers = pc.index_in(pa.array(video_ids, pa.string()), latest["video_id"].combine_chunks())
    return {
        name: pc.fill_null(latest[name].combine_chunks().take(numbers).cast(pa.string()), "").to_pylist()
        for name in columns
    }
