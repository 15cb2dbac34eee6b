"""Reading the metadata CSV: what is accepted, what is refused and where, and the cache."""

from __future__ import annotations

import csv
import io
import os
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipfarm_dagster.catalog import metadata
from clipfarm_dagster.catalog.metadata import (
    REFUSED_SAMPLE,
    SPLIT_EVERY,
    LatestRows,
    read_latest_rows,
    rows_for,
    split_points,
)
from clipfarm_dagster.errors import MetadataError
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.hashing import metadata_hash

HEADER = "video_id,captured_at,title,description,query"
SOURCE = {Stage.TEXT: ("title", "description", "query")}


def read(tmp_path: Path, content: bytes | str | Path, etag: str | None = None, **more: Any) -> LatestRows:
    content = content.encode() if isinstance(content, str) else content
    arguments = {"url": "s3://b/x.csv", "source_columns": SOURCE, "cache_dir": tmp_path / "cache", **more}
    return read_latest_rows(content, etag=etag, **arguments)


def table(latest: LatestRows) -> dict[str, dict[str, Any]]:
    return {row["video_id"]: row for row in pq.read_table(latest.path).to_pylist()}


def titles(latest: LatestRows) -> dict[str, str]:
    return {video_id: row["title"] for video_id, row in table(latest).items()}


class Erased:
    """Videos that are left out."""

    def __init__(self, *video_ids: str) -> None:
        self.video_ids = set(video_ids)

    @property
    def version(self) -> str:
        return " ".join(sorted(self.video_ids))

    def among(self, video_ids: Iterable[str]) -> set[str]:
        return self.video_ids.intersection(video_ids)


def test_videos_that_were_erased_are_left_out_and_counted(tmp_path: Path) -> None:
    content = f"{HEADER}\na,2026-01-01,A,d,q\nb,2026-01-02,B,d,q\nb,2026-01-01,old,d,q\nc,2026-01-03,C,d,q\n"
    whole = read(tmp_path, content, etag="1")
    assert (whole.videos, whole.erased) == (3, 0)

    latest = read(tmp_path, content, etag="1", left_out=Erased("b", "x"))

    assert titles(latest) == {"a": "A", "c": "C"}
    assert {row["captured_at"].day for row in table(latest).values()} == {1, 3}
    assert (latest.videos, latest.erased, latest.refused_ids) == (2, 1, 0)
    assert latest.video_ids() == ["c", "a"]
    again = read(tmp_path, b"not read", etag="1", left_out=Erased("b", "x"))
    assert again == latest
    assert read(tmp_path, b"not read", etag="1", left_out=Erased()) == whole
    assert titles(read(tmp_path, content, etag="1", left_out=Erased("a", "b", "c"))) == {}


def test_all_columns_hashes_and_the_latest_row(tmp_path: Path) -> None:
    latest = read(
        tmp_path,
        "likes.all,video_id,captured_at,title,description,query,\n"
        "1,a,2026-01-01,old,x,q,0\n"
        "3,a,2026-01-03T10:00:00Z,newest,,q,1\n"
        "2,a,2026-01-02,older,x,q,2\n"
        "9,b.-_B,2026-01-01,é 漢,x,,3\n",
    )
    assert latest.videos == 2
    assert table(latest)["a"] == {
        "video_id": "a",
        "captured_at": datetime(2026, 1, 3, 10, tzinfo=UTC),
        "video_metadata_hash": metadata_hash([]),
        "audio_metadata_hash": metadata_hash([]),
        "text_metadata_hash": metadata_hash(["newest", "", "q"]),
        "likes.all": "3",
        "title": "newest",
        "description": "",
        "query": "q",
        "": "1",
    }
    assert table(latest)["b.-_B"]["text_metadata_hash"] == metadata_hash(["é 漢", "x", ""])
    row = rows_for(latest, ["b.-_B", "absent"])["b.-_B"]
    assert (row["likes.all"], row["title"], row["query"]) == ("9", "é 漢", "")
    assert set(rows_for(latest, ["a", "absent"])) == {"a"}


@pytest.mark.parametrize(
    "content",
    {
        "plain": f"{HEADER}\nv,2026-01-01,t,d,q\n",
        "no newline at the end": f"{HEADER}\nv,2026-01-01,t,d,q",
        "CRLF": f"{HEADER}\r\nv,2026-01-01,t,d,q\r\n",
        "CR": f"{HEADER}\rv,2026-01-01,t,d,q\r",
        "BOM": f"\ufeff{HEADER}\nv,2026-01-01,t,d,q\n",
        "BOM and a quoted header": f'\ufeff"video_id"{HEADER[8:]}\nv,2026-01-01,t,d,q\n',
        "blank lines": f"\n{HEADER}\n\nv,2026-01-01,t,d,q\n\n\n",
        "quoted": f'{HEADER}\n"v","2026-01-01","t","d","q"\n',
    }.items(),
    ids=lambda case: case[0],
)
def test_accepted(tmp_path: Path, content: tuple[str, str]) -> None:
    latest = read(tmp_path, content[1])
    row = table(latest)["v"]
    assert (latest.videos, row["title"], row["description"], row["query"]) == (1, "t", "d", "q")


def test_quotes_and_newlines_inside_cells(tmp_path: Path) -> None:
    latest = read(
        tmp_path,
        f'{HEADER}\nv,2026-01-01,"two\nlines, ""quoted""\r\n\r\nfour",5" disc,"q"\nw,2026-01-01,t,,\n',
    )
    row = table(latest)["v"]
    assert (row["title"], row["description"]) == ('two\nlines, "quoted"\r\n\r\nfour', '5" disc')
    assert latest.videos == 2


def test_cells_of_ten_megabytes(tmp_path: Path) -> None:
    big = 'a "b",\n' * 1_500_000
    out = io.StringIO()
    rows = [["v", "2026-01-01", big, big, "q"], ["w", "2026-01-01", "t", big, "q"]]
    csv.writer(out).writerows([HEADER.split(","), *rows])
    latest = read(tmp_path, out.getvalue())
    found = table(latest)
    assert (found["v"]["title"], found["v"]["description"], found["w"]["description"]) == (big, big, big)
    assert found["v"]["text_metadata_hash"] == metadata_hash([big, big, "q"])


def test_header_alone_is_a_sheet_without_videos(tmp_path: Path) -> None:
    for content in (HEADER, HEADER + "\n"):
        latest = read(tmp_path, content)
        assert (latest.videos, pq.read_table(latest.path).num_rows) == (0, 0)


REFUSED: dict[str, tuple[bytes, int | None, str | None]] = {
    "empty": (b"", 1, None),
    "blank": (b"\n\r\n", 1, None),
    "BOM alone": (b"\xef\xbb\xbf", 1, None),
    "missing column": (b"video_id,captured_at,title,query\nv,2026-01-01,t,q\n", 1, "description"),
    "duplicate header": (f"{HEADER},title\nv,2026-01-01,t,d,q,t\n".encode(), 1, "title"),
    "reserved name": (
        f"{HEADER},text_metadata_hash\nv,2026-01-01,t,d,q,t\n".encode(),
        1,
        "text_metadata_hash",
    ),
    "too few fields": (f"{HEADER}\nv,2026-01-01,t,d,q\nw,2026-01-01,t\n".encode(), 3, "description"),
    "too many fields": (f"{HEADER}\nv,2026-01-01,t,d,q,x\n".encode(), 2, "query"),
    "cut in the last row": (f"{HEADER}\nv,2026-01-01,t,d,q\nw,20".encode(), 3, "title"),
    "cut in a quoted cell": (f'{HEADER}\nv,2026-01-01,"a\nb",d,q\nw,2026-01-01,"a\nb'.encode(), 4, "title"),
    "cut in the last quoted cell": (f'{HEADER}\nv,2026-01-01,t,d,"q'.encode(), 2, "query"),
    "cut between two quotes": (f'{HEADER}\nv,2026-01-01,t,"d ""'.encode(), 2, "description"),
    "cut in the header": (b'video_id,captured_at,title,description,"que', 1, "que"),
    "Latin-1": (f"{HEADER}\nv,2026-01-01,t,d,q\nw,2026-01-01,caf\xe9,d,q\n".encode("latin-1"), 3, "title"),
    "Latin-1 header": (f"{HEADER},caf\xe9\n".encode("latin-1"), 1, "caf\\udce9"),
    "UTF-16": (f"{HEADER}\nv,2026-01-01,t,d,q\n".encode("utf-16"), 1, "\\udcff\\udcfev\\0i\\0d\\0"),
    "cut in a character": (f"{HEADER}\nv,2026-01-01,t,d,é".encode()[:-1], 2, "query"),
    "NUL": (f"{HEADER}\nv,2026-01-01,t,d\0,q\n".encode(), 2, "description"),
    "NULs at the end": (f"{HEADER}\nv,2026-01-01,t,d,q\n".encode() + bytes(512), 3, "video_id"),
    "NUL in the header": (b"video_id\0,captured_at,title,description,query\n", 1, "video_id\\0"),
    "no date": (f'{HEADER}\nv,2026-01-01,"a\n\nb",d,q\n\nw,,t,d,q\n'.encode(), 6, "captured_at"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_a_whole(tmp_path: Path, case: str) -> None:
    content, line, column = REFUSED[case]
    before = read(tmp_path, f"{HEADER}\nv,2026-01-01,t,d,q\n", etag="good")
    with pytest.raises(MetadataError) as caught:
        read(tmp_path, content, etag="bad")
    assert (caught.value.url, caught.value.line) == ("s3://b/x.csv", line)
    if case == "UTF-16":
        assert caught.value.column is not None
        assert caught.value.column.startswith("\\udcff")
    else:
        assert caught.value.column == column
    assert list((tmp_path / "cache").iterdir()) == [before.path]


def test_a_bad_row_far_down_is_found(tmp_path: Path) -> None:
    rows = [f'v{i},2026-01-01,"two\nlines",{"d" * 100},q\n' for i in range(40_000)]
    rows[33_333] = "v33333,2026-01-01,short\n"
    with pytest.raises(MetadataError) as caught:
        read(tmp_path, f"{HEADER}\n{''.join(rows)}")
    assert (caught.value.line, caught.value.column) == (2 + 2 * 33_333, "description")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04", datetime(2026, 1, 2, 3, 4, tzinfo=UTC)),
        ("2026-01-02 03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.678Z", datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123_456, tzinfo=UTC)),
        ("2026-01-02 03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05-0930", datetime(2026, 1, 2, 12, 34, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04+02:00", datetime(2026, 1, 2, 1, 4, tzinfo=UTC)),
        ("2024-02-29T23:59:59Z", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_dates(tmp_path: Path, text: str, moment: datetime) -> None:
    assert table(read(tmp_path, f"{HEADER}\nv,{text},t,d,q\n"))["v"]["captured_at"] == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "epoch",
        "infinity",
        "2026-02-29",
        "2026-13-01",
        "2026-01-01T25:00",
        "2026-1-1",
        "01.02.2026",
        "02/01/2026",
        "1767225600",
        "2026-01-01T10:00 Europe/Berlin",
        "0000-01-01",
        "2026-01",
    ],
)
def test_unreadable_dates(tmp_path: Path, text: str) -> None:
    with pytest.raises(MetadataError, match="ISO 8601") as caught:
        read(tmp_path, f"{HEADER}\nv,2026-01-01,t,d,q\nw,{text},t,d,q\n")
    assert (caught.value.line, caught.value.column) == (3, "captured_at")


def test_zones_compare_as_instants(tmp_path: Path) -> None:
    latest = read(
        tmp_path,
        f"{HEADER}\n"
        "a,2026-01-01T23:30:00-05:00,later instant,,\na,2026-01-02T01:00:00+00:00,earlier instant,,\n"
        "b,2026-01-01T12:00:00+02:00,same instant first,,\nb,2026-01-01T10:00:00,same instant second,,\n",
    )
    assert titles(latest) == {"a": "later instant", "b": "same instant second"}


def test_the_later_line_wins_a_tie_in_a_file_of_many_blocks(tmp_path: Path) -> None:
    rng = random.Random(7)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    lines: list[str] = []
    expected: dict[str, tuple[int, int]] = {}
    for n in range(60_000):
        video_id, day = f"v{rng.randrange(9_000)}", rng.randrange(3)
        lines.append(f"{video_id},{start + timedelta(days=day)},{n},{'d' * rng.randrange(200)},q\n")
        if day >= expected.get(video_id, (0, 0))[0]:
            expected[video_id] = (day, n)
    path = tmp_path / "x.csv"
    path.write_text(HEADER + "\n" + "".join(lines))
    assert path.stat().st_size > 5 << 20
    latest = read(tmp_path, path)
    assert titles(latest) == {video_id: str(n) for video_id, (_, n) in expected.items()}
    some = list(expected)[::500]
    assert {v: row["title"] for v, row in rows_for(latest, some).items()} == {
        v: str(expected[v][1]) for v in some
    }


def test_refused_ids_are_named_and_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    bad = ["", ".hidden", "../up", "a/b", "x" * 129, "é", "a b", "a\nb", "v\n"]
    out = io.StringIO()
    csv.writer(out).writerows([HEADER.split(",")])
    csv.writer(out).writerows([v, "not even a date", "t", "d", "q"] for v in [*bad, "../up"])
    csv.writer(out).writerows([v, "2026-01-01", "t", "d", "q"] for v in ("x" * 128, "-", "a..b"))
    latest = read(tmp_path, out.getvalue())
    assert latest.refused == {**dict.fromkeys(bad, 1), "../up": 2}
    assert latest.refused_ids == len(bad)
    assert set(titles(latest)) == {"x" * 128, "-", "a..b"}


def test_the_sample_of_refused_ids_is_bounded(tmp_path: Path) -> None:
    lines = "".join(f"{'/' * 1000}{i},2026-01-01,t,d,q\n" for i in range(1_000))
    latest = read(tmp_path, f"{HEADER}\n{lines}" + "".join(f"/{i},2026-01-01,t,d,q\n" for i in range(1_000)))
    assert latest.refused_ids == 2_000
    assert len(latest.refused) <= REFUSED_SAMPLE
    assert max(map(len, latest.refused)) <= 200


def test_a_missing_source_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match="'lyrics'"):
        read(tmp_path, f"{HEADER}\nv,2026-01-01,t,d,q\n", source_columns={Stage.AUDIO: ["lyrics"]})


def test_a_file_that_is_written_to_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"{HEADER}\n" + "v,2026-01-01,t,d,q\n" * 10)
    choose = metadata._choose

    def choose_and_append(*arguments: Any) -> Any:
        with path.open("a") as file:
            file.write("w,2026-01-01,t,d,q\n" * 10)
        return choose(*arguments)

    monkeypatch.setattr(metadata, "_choose", choose_and_append)
    with pytest.raises(MetadataError, match="changed while"):
        read(tmp_path, path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache(tmp_path: Path) -> None:
    first = read(tmp_path, f"{HEADER}\nv,2026-01-01,t,d,q\n../x,,,,\n", etag="1")
    again = read(tmp_path, b"not read at all", etag="1")
    assert again == first
    assert again.refused == {"../x": 1}
    other = read(tmp_path, f"{HEADER}\nw,2026-01-01,t,d,q\n", etag="1", source_columns={})
    assert titles(other) == {"w": "t"}
    assert titles(read(tmp_path, f"{HEADER}\nu,2026-01-01,t,d,q\n", etag=None)) == {"u": "t"}


def test_a_damaged_cache_file_is_made_anew(tmp_path: Path) -> None:
    content = f"{HEADER}\nv,2026-01-01,t,d,q\n"
    for damage in (b"", b"PAR1 and then something else"):
        read(tmp_path, content, etag="1").path.write_bytes(damage)
        assert titles(read(tmp_path, content, etag="1")) == {"v": "t"}


def test_old_cache_files_are_removed(tmp_path: Path) -> None:
    kept = read(tmp_path, f"{HEADER}\nv,2026-01-01,t,d,q\n", etag="0")
    leftover = tmp_path / "cache" / "latest-0.parquet.1.part"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    for etag in range(1, 8):
        latest = read(tmp_path, f"{HEADER}\nv,2026-01-01,{etag},d,q\n", etag=str(etag))
        assert read(tmp_path, b"", etag="0") == kept
    assert titles(latest) == {"v": "7"}
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 3
    assert {kept.path, latest.path} <= set(files)


def test_split_points_cut_the_ids_into_like_parts(tmp_path: Path) -> None:
    count = 3 * SPLIT_EVERY
    ids = [f"v-{number * 7919 % count:06}" for number in range(count)]
    latest = read(tmp_path, "\n".join([HEADER, *(f"{video_id},2026-01-01,t,d,q" for video_id in ids)]))

    points = split_points(latest)

    cuts = [0, *(sorted(ids).index(point) for point in points), count]
    assert len(points) == 2
    assert all(0.8 * SPLIT_EVERY < after - before < 1.2 * SPLIT_EVERY for before, after in pairwise(cuts))


def test_few_ids_are_not_split(tmp_path: Path) -> None:
    assert split_points(read(tmp_path, HEADER + "\na,2026-01-01,t,d,q\n")) == []
