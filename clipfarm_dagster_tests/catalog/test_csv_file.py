"""The CSV reader alone: rows longer than a block, and a reader that was left."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfarm_dagster.catalog import csv_file


class SlowFile(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.005)
        return super().read(size)


def test_a_reader_that_failed_leaves_the_file_alone() -> None:
    """Arrow goes on reading ahead after an error, while the file is being read anew."""
    file = SlowFile(b"a,b\n1,2\n1\n" + b"1,2\n" * 200_000)
    with pytest.raises(pa.ArrowInvalid):
        list(csv_file.read_batches(file, ["a", "b"], 1 << 10))
    file.seek(0)
    time.sleep(0.1)
    assert file.tell() == 0


def test_a_row_longer_than_a_block_is_an_error_of_that_block_size() -> None:
    file = io.BytesIO(b"a,b\n" + b"1,2\n" * 100 + b"1," + b"x" * 5_000 + b"\n")
    with pytest.raises(pa.ArrowInvalid):
        list(csv_file.read_batches(file, ["a", "b"], 1 << 10))
    assert csv_file.locate(file, "u", ["a", "b"]) is None
    assert sum(batch.num_rows for batch in csv_file.read_batches(file, ["a", "b"], 1 << 14)) == 101


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n", "\r\r\n"])
def test_an_end_of_line_in_a_cell_may_lie_where_a_block_ends(ending: str) -> None:
    """Arrow drops the line feed of a pair that a block's end parts, within quotes too."""
    for filling in range(60):
        text = f'a,b\n{"x" * filling},"1{ending}2"\n' + "y,z\n" * 40
        (first, *_) = csv_file.read_batches(io.BytesIO(text.encode()), ["a", "b"], 64)
        assert first.column(1)[0].as_py() == f"1{ending}2", filling


cells = st.text(st.sampled_from('ab,"\n\r é'), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("xyz"), cells, cells), max_size=60),
    style=st.sampled_from([{"lineterminator": "\n", "quoting": csv.QUOTE_ALL}, {"lineterminator": "\r\n"}]),
    cut=st.integers(0, 12),
)
def test_arrow_and_python_read_alike(
    rows: list[tuple[str, str, str]], style: dict[str, Any], cut: int
) -> None:
    """Whole, a file gives its rows; cut short, it is refused with a line, or what is left is well-formed."""
    header = ["a", "b", "c"]
    out = io.StringIO()
    csv.writer(out, **style).writerows([header, *rows])
    text = out.getvalue()
    assert read(text) == rows
    short = text[: max(len('"a","b","c"\n'), len(text) - cut)]
    found = read(short)
    if found is None:
        error = csv_file.locate(io.BytesIO(short.encode()), "u", header)
        assert error is not None
        assert error.line is not None
        assert 1 <= error.line <= len(short.splitlines())
    else:
        assert csv_file.locate(io.BytesIO(short.encode()), "u", header) is None
        plain = csv.reader(io.StringIO(short, newline=""), strict=True)
        assert found == [tuple(row) for row in plain if row][1:]
        for n in range(len(found)):
            assert csv_file.line_of_row(io.BytesIO(short.encode()), n) >= n + 2


def read(text: str) -> list[tuple[str, ...]] | None:
    """The rows, read in blocks so small that there are many; None if the file is refused."""
    header = ["a", "b", "c"]
    try:
        batches = list(csv_file.read_batches(io.BytesIO(text.encode()), header, 128))
    except pa.ArrowInvalid:
        return None
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]
