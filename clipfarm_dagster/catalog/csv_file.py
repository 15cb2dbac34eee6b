"""Reading a CSV file strictly, fast and in the order of its rows, and finding where a bad one is bad.

Two readers that understand CSV alike: Arrow's, which reads a gigabyte in seconds but cannot name a line,
and Python's, which is slow and runs only over the header and to say where a refused file went wrong. Both
are shown one more row after the file's last, the sentinel: a quote that is never closed swallows it, which
is how a file cut inside a quoted cell is told from a whole one.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

from clipfarm_dagster.errors import MetadataError

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_SIZES = (1 << 20, 96 << 20)
"""Bytes that are read at a time. A row must fit into one block, so the larger is tried after the smaller."""

_SENTINEL = "clipfarm-end-of-file"
"""First cell of the sentinel row."""
_UNDECODABLE = re.compile("[\udc80-\udcff]")


def read_header(file: BinaryIO, url: str) -> list[str]:
    """Column names of a CSV file, from the first line that is not blank.

    Raises:
        MetadataError: the file is empty, or its header is cut, not UTF-8, or names a column twice.
    """
    with _rows(file) as rows:
        for line, names in rows:
            _check_cells(url, line, names, names)
            for i, name in enumerate(names):
                if name in names[:i]:
                    raise MetadataError(url, "the header names this column twice", line=line, column=name)
            return names
    raise MetadataError(url, "the file is empty", line=1)


def read_batches(file: BinaryIO, header: Sequence[str], block_size: int) -> Iterator[pa.RecordBatch]:
    """All rows below the header, in order. Columns are named `c0`, `c1`, … and hold text without nulls.

    Raises:
        pyarrow.ArrowInvalid: the file is not well-formed, or a row is longer than `block_size`; `locate`
            tells which and where.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    names = [f"c{i}" for i in range(len(header))]
    held = None
    with closing(_Source(file, sentinel=_SENTINEL.encode() + b"," * (len(header) - 1))) as source:
        reader = arrow_csv.open_csv(
            pa.PythonFile(source, mode="r"),
            read_options=arrow_csv.ReadOptions(block_size=block_size),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                strings_can_be_null=False, column_types=dict.fromkeys(header, pa.string())
            ),
        )
        for batch in reader:
            if held is not None:
                yield held.rename_columns(names)
                held = None
            if batch.num_rows:
                held = batch
    if source.has_nul:
        raise pa.ArrowInvalid("there are NUL bytes")
    if held is None or held.column(0)[-1].as_py() != _SENTINEL:
        raise pa.ArrowInvalid("a quote is never closed")
    yield held.slice(0, held.num_rows - 1).rename_columns(names)


def locate(file: BinaryIO, url: str, header: Sequence[str]) -> MetadataError | None:
    """What is wrong with the first bad row of a file, with its line and column; None if no row is bad."""
    with _rows(file) as rows:
        try:
            for line, cells in rows:
                _check_cells(url, line, cells, header)
        except MetadataError as error:
            return error
    return None


def line_of_row(file: BinaryIO, n: int) -> int:
    """Line, from 1, on which the `n`-th row below the header begins, from 0."""
    with _rows(file) as rows:
        for i, (line, _) in enumerate(rows, start=-1):
            if i == n:
                return line
    raise IndexError(n)


def _check_cells(url: str, line: int, cells: Sequence[str], header: Sequence[str]) -> None:
    for i, cell in enumerate(cells):
        problem = None
        if _UNDECODABLE.search(cell):
            problem = "this is not UTF-8; save the file with that encoding"
        elif "\0" in cell:
            problem = "there is a NUL byte"
        elif cell.endswith(_SENTINEL + "\n"):
            problem = "a quote opens here and is never closed; is the file complete?"
        if problem:
            name = header[min(i, len(header) - 1)].removesuffix(_SENTINEL + "\n").rstrip("\n")
            shown = name.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
            raise MetadataError(url, problem, line=line, column=shown)
    if len(cells) != len(header):
        raise MetadataError(
            url,
            f"the row has {len(cells)} fields and the header {len(header)}; is the file complete?",
            line=line,
            column=header[min(len(cells), len(header) - 1)],
        )


class _Source(io.RawIOBase):
    """A file's bytes from its start, with the sentinel row behind them; remembers whether there was a NUL.

    No block ends with a carriage return: Arrow would drop a line feed at the start of the next one, even
    within a quoted cell.

    Arrow reads ahead in a thread of its own, which a reader that failed or was left leaves running. Once
    closed, this never touches the file again, so that the file can be read anew.
    """

    def __init__(self, file: BinaryIO, sentinel: bytes) -> None:
        file.seek(0)
        self._file = file
        self._tail = b"\n" + sentinel + b"\n"
        self._held = b""
        self._lock = Lock()
        self.has_nul = False

    def readable(self) -> bool:
        return True

    def read(self, size: int) -> bytes:  # type: ignore[override]
        with self._lock:
            if self.closed:
                return b""
            data, self._held = self._held + self._file.read(size - len(self._held)), b""
            if (room := size - len(data)) > 0:
                data, self._tail = data + self._tail[:room], self._tail[room:]
            if data.endswith(b"\r") and len(data) > 1:
                data, self._held = data[:-1], b"\r"
            self.has_nul = self.has_nul or b"\0" in data
            return data

    def close(self) -> None:
        with self._lock:
            super().close()


@contextmanager
def _rows(file: BinaryIO) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Every row that is not blank, with the line it begins on. Bytes that are not UTF-8 come as lone
    surrogates. Cells of any length are read, for which the limit that Python's `csv` keeps for the whole
    process is lifted meanwhile."""

    def numbered() -> Iterator[tuple[int, list[str]]]:
        begins = 1
        for cells in reader:
            if cells and cells[0] != _SENTINEL:
                yield begins, cells
            begins = reader.line_num + 1

    file.seek(0)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(chain(text, ["\n", _SENTINEL + "\n"]))
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield numbered()
    finally:
        csv.field_size_limit(limit)
        text.detach()
