"""The delta rule: case by case, and against a row-by-row model on random data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfarm_dagster.catalog.metadata import LatestRows, read_latest_rows
from clipfarm_dagster.ledger.rows import vector_stands
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.planning.delta import DELTA_COLUMNS, Reason, StagePlan, plan_stage
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.hashing import metadata_hash, source_hash

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
C, OLD_C = "c" * 16, "b" * 16
TEXT = ["title", "description", "query"]
META = metadata_hash(["a title", "", ""])
OTHER_META = metadata_hash(["another title", "", ""])


def read(tmp_path: Path, video_ids: list[str]) -> LatestRows:
    """Videos that all have the metadata hash `META`."""
    lines = "".join(f"{video_id},2026-01-01,a title,,\n" for video_id in video_ids)
    csv = f"video_id,captured_at,title,description,query\n{lines}"
    return read_latest_rows(
        csv.encode(), url="x.csv", source_columns={Stage.TEXT: TEXT}, cache_dir=tmp_path, etag=None
    )


@pytest.fixture
def one(tmp_path: Path) -> LatestRows:
    return read(tmp_path, ["v"])


def ledger(*rows: LedgerRow) -> pa.Table:
    return pa.table(
        {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in DELTA_COLUMNS}
    )


def listing(**etags: str) -> pa.Table:
    keys = [f"clipfarm/raw/text/{video_id}.json" for video_id in etags]
    return pa.table({"key": keys, "etag": list(etags.values()), "size": [1] * len(keys)}, schema=LISTING)


LISTING = pa.schema([("key", pa.string()), ("etag", pa.string()), ("size", pa.int64())])


def plan(latest: LatestRows, objects: pa.Table | None, *rows: LedgerRow, **more: Any) -> StagePlan:
    return plan_stage(Stage.TEXT, latest, objects, ledger(*rows), contract_id=C, now=NOW, **more)


def row(status: str, meta: str = META, etag: str | None = "e", contract: str = C, **more: Any) -> LedgerRow:
    """The row that an attempt leaves; with `vector=(meta, etag, contract)`, what the stored vector is of."""
    vector = more.pop("vector", (meta, etag, contract) if status == "success" else None)
    return LedgerRow(
        video_id="v",
        status=status,
        metadata_hash=meta,
        raw_etag=etag,
        contract_id=contract,
        source_hash=None if etag is None else source_hash(meta, etag),
        vector_source_hash=source_hash(vector[0], vector[1]) if vector else None,
        vector_contract_id=vector[2] if vector else None,
        **more,
    )


LATER, EARLIER = timestamp(NOW + timedelta(hours=1)), timestamp(NOW - timedelta(hours=1))

WORK = {
    "no row": (None, "new"),
    "title changed": (row("success", OTHER_META), "source_changed"),
    "object changed": (row("success", etag="d"), "raw_changed"),
    "contract changed": (row("success", contract=OLD_C), "contract_changed"),
    "title and contract changed": (row("success", OTHER_META, contract=OLD_C), "source_changed"),
    "retry due": (row("fail", next_attempt_at=EARLIER), "retry_due"),
    "retry due this moment": (row("fail", next_attempt_at=timestamp(NOW)), "retry_due"),
    "retry at any time": (row("fail"), "retry_due"),
    "failed with another input": (row("fail", etag="d", next_attempt_at=LATER), "raw_changed"),
    "vector lost": (row("success", vector=None), "artifact_lost"),
    "vector of something else": (row("success", vector=(META, "d", C)), "artifact_lost"),
    "was missing": (row("missing_raw_object", etag=None), "new"),
    "was embedded, then missing": (
        row("missing_raw_object", etag=None, vector=(OTHER_META, "d", C)),
        "raw_changed",
    ),
    "quarantined with another contract": (row("quarantined", contract=OLD_C), "contract_changed"),
    "invalid with another object": (row("invalid_raw_object", etag="d"), "raw_changed"),
    "old schema": (LedgerRow(video_id="v", status="success", source_hash="0" * 64), "contract_changed"),
}


@pytest.mark.parametrize("case", WORK)
def test_work(one: LatestRows, case: str) -> None:
    before, reason = WORK[case]
    made = plan(one, listing(v="e"), *([before] if before else []))
    assert made.work.to_pylist() == [
        {
            "video_id": "v",
            "reason": reason,
            "source_hash": source_hash(META, "e"),
            "metadata_hash": META,
            "raw_etag": "e",
            "captured_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
    ]
    assert made.reasons == {reason: 1}
    assert counts(made) == (1, 0, 0, 0, 0)


def counts(made: StagePlan) -> tuple[int, int, int, int, int]:
    return (
        made.delta,
        made.missing.num_rows,
        made.restored.num_rows,
        made.missing_raw_object,
        made.orphaned,
    )


NO_WORK = {
    "done": row("success"),
    "done, though the attempt says otherwise": row("success", OTHER_META, vector=(META, "e", C)),
    "retry not due": row("fail", next_attempt_at=LATER),
    "invalid": row("invalid_raw_object"),
    "quarantined": row("quarantined", next_attempt_at=EARLIER),
}


@pytest.mark.parametrize("case", NO_WORK)
def test_no_work(one: LatestRows, case: str) -> None:
    made = plan(one, listing(v="e"), NO_WORK[case])
    assert counts(made) == (0, 0, 0, 0, 0)
    assert made.next_attempt_at == (LATER if case == "retry not due" else None)


@pytest.mark.parametrize("status", ["fail", "quarantined", "invalid_raw_object", "missing_raw_object"])
def test_changed_back_while_the_vector_is_still_the_right_one(one: LatestRows, status: str) -> None:
    before = row(status, OTHER_META, etag="d", vector=(META, "e", C), next_attempt_at=LATER)
    made = plan(one, listing(v="e"), before)
    assert counts(made) == (0, 0, 1, 0, 0)
    assert made.restored.to_pylist() == [
        {
            "video_id": "v",
            "source_hash": source_hash(META, "e"),
            "metadata_hash": META,
            "raw_etag": "e",
            "captured_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
    ]


ABSENT = {
    "no row": (None, 1, 1),
    "success stays": (row("success"), 0, 0),
    "success of another object stays": (row("success", vector=(META, "d", C)), 0, 0),
    "title changed": (row("success", OTHER_META), 1, 1),
    "contract changed": (row("success", contract=OLD_C), 1, 1),
    "vector lost": (row("success", vector=None), 1, 1),
    "vector of no known input": (replace(row("success"), vector_source_hash=None), 1, 1),
    "failed": (row("fail", next_attempt_at=LATER), 1, 1),
    "recorded": (row("missing_raw_object", etag=None), 0, 1),
    "recorded with another title": (row("missing_raw_object", OTHER_META, etag=None), 1, 1),
    "recorded with another contract": (row("missing_raw_object", etag=None, contract=OLD_C), 1, 1),
}


@pytest.mark.parametrize("case", ABSENT)
def test_raw_object_absent(one: LatestRows, case: str) -> None:
    before, to_record, missing = ABSENT[case]
    made = plan(one, listing(), *([before] if before else []))
    assert counts(made) == (0, to_record, 0, missing, 0)
    if to_record:
        assert made.missing.to_pylist() == [
            {"video_id": "v", "metadata_hash": META, "captured_at": datetime(2026, 1, 1, tzinfo=UTC)}
        ]


def test_other_objects_in_the_listing_are_ignored(one: LatestRows) -> None:
    others = pa.table(
        {
            "key": [
                "clipfarm/raw/text/v.mp4",
                "clipfarm/raw/text/v.json.tmp",
                "clipfarm/raw/text/sub/v.json",
                "clipfarm/raw/video/v.json",
                "other/raw/text/v.json",
                "clipfarm/raw/text/../v.json",
                "clipfarm/raw/text/.json",
            ],
            "etag": ["e"] * 7,
        }
    )
    assert counts(plan(one, others)) == (0, 1, 0, 1, 0)
    assert counts(plan(one, others, keys=Keys("other"))) == (1, 0, 0, 0, 0)


def test_orphans_are_counted_and_left_alone(one: LatestRows) -> None:
    gone = [replace(row(status), video_id=f"gone-{status}") for status in Status]
    assert counts(plan(one, listing(v="e", **{"gone-fail": "e"}), *gone, row("success"))) == (0, 0, 0, 0, 5)


def test_ids_in_flight_are_left_out(tmp_path: Path) -> None:
    latest = read(tmp_path, ["new", "absent", "waiting", "restored", "other"])
    rows = [
        replace(row("fail", next_attempt_at=LATER), video_id="waiting"),
        replace(row("fail", etag="d", vector=(META, "e", C)), video_id="restored"),
        replace(row("success"), video_id="gone"),
    ]
    objects = listing(new="e", waiting="e", restored="e", other="e")
    made = plan(latest, objects, *rows)
    assert (counts(made), made.next_attempt_at) == ((2, 1, 1, 1, 1), LATER)
    made = plan(latest, objects, *rows, in_flight={"new", "absent", "waiting", "restored", "gone"})
    assert (counts(made), made.next_attempt_at) == ((1, 0, 0, 0, 1), None)
    assert made.work["video_id"].to_pylist() == ["other"]


def test_the_newest_come_first_and_a_limit_cuts_only_the_work(tmp_path: Path) -> None:
    latest = read_latest_rows(
        b"video_id,captured_at,title,description,query\n"
        b"b,2026-01-02,,,\nold,2026-01-01,,,\na,2026-01-02,,,\nnewest,2026-01-03,,,\nabsent,2026-01-05,,,\n",
        url="x.csv",
        source_columns={},
        cache_dir=tmp_path,
        etag=None,
    )
    objects = listing(a="e", b="e", old="e", newest="e")
    assert plan(latest, objects).work["video_id"].to_pylist() == ["newest", "a", "b", "old"]
    made = plan(latest, objects, limit=2)
    assert made.work["video_id"].to_pylist() == ["newest", "a"]
    assert (made.reasons, made.missing.num_rows) == ({"new": 4}, 1)


def test_without_a_listing_raw_objects_are_as_last_seen(tmp_path: Path) -> None:
    latest = read(tmp_path, ["new", "done", "missing", "changed"])
    rows = [
        replace(row("success"), video_id="done"),
        replace(row("missing_raw_object", etag=None), video_id="missing"),
        replace(row("success", OTHER_META), video_id="changed"),
    ]
    made = plan(latest, None, *rows)
    assert counts(made) == (2, 0, 0, 1, 0)
    assert {r["video_id"]: (r["reason"], r["raw_etag"], r["source_hash"]) for r in made.work.to_pylist()} == {
        "new": ("new", None, None),
        "changed": ("source_changed", "e", source_hash(META, "e")),
    }


def test_a_ledger_can_be_a_stream_and_have_columns_of_nulls(one: LatestRows) -> None:
    columns = {name: [None] for name in DELTA_COLUMNS} | {"video_id": ["v"]}
    for nulls in (pa.int64(), pa.null(), pa.string()):
        schema = pa.schema([(n, pa.string() if n == "video_id" else nulls) for n in DELTA_COLUMNS])
        reader = pa.table(columns, schema=schema).to_reader()
        made = plan_stage(Stage.TEXT, one, listing(v="e"), reader, contract_id=C, now=NOW)
        assert made.reasons == {"new": 1}


def test_nothing_at_all(tmp_path: Path) -> None:
    empty = pa.table({"key": [], "etag": []})
    assert counts(plan(read(tmp_path, []), empty)) == (0, 0, 0, 0, 0)
    assert counts(plan(read(tmp_path, []), empty, row("success"))) == (0, 0, 0, 0, 1)
    assert counts(plan(read(tmp_path, ["v"]), empty)) == (0, 1, 0, 1, 0)


METAS = (META, OTHER_META)
moments = st.sampled_from([None, EARLIER, timestamp(NOW), LATER])
pairs = st.none() | st.tuples(st.sampled_from(METAS), st.sampled_from("ed"), st.sampled_from([C, OLD_C]))


@st.composite
def ledger_rows(draw: st.DrawFn) -> LedgerRow:
    """A row, consistent or as an older schema or a crash may leave one."""
    meta = draw(st.sampled_from([*METAS, None]))
    etag = draw(st.sampled_from(["e", "d", None]))
    vector = draw(pairs)
    known = draw(st.sampled_from([True, True, True, False]))
    return LedgerRow(
        video_id="",
        status=draw(st.sampled_from([*Status, Status.SUCCESS, None])),
        metadata_hash=meta,
        raw_etag=etag,
        source_hash=source_hash(meta, etag)
        if meta and etag and known
        else draw(st.sampled_from([None, "0"])),
        contract_id=draw(st.sampled_from([C, C, C, OLD_C, None])),
        next_attempt_at=draw(moments),
        vector_source_hash=source_hash(vector[0], vector[1]) if vector else None,
        vector_contract_id=draw(st.sampled_from([vector[2] if vector else None] * 3 + [C])),
    )


def model(before: LedgerRow | None, present: bool, etag: str | None) -> str:
    """The delta rule, read off the specification for one video whose metadata hash is `META`."""
    now_hash = source_hash(META, etag) if etag is not None else None
    if not present:
        if before is None:
            return "missing"
        if vector_stands(before, C, META, None):
            return "done"
        recorded = (before.status, before.metadata_hash, before.contract_id)
        return "still_missing" if recorded == ("missing_raw_object", META, C) else "missing"
    if before is None:
        return "new"
    if etag and vector_stands(before, C, META, etag):
        return "done" if before.status == "success" else "restored"
    same_source = (
        before.source_hash == now_hash
        if now_hash
        else before.source_hash is None and before.metadata_hash == META
    )
    if same_source and before.contract_id == C:
        match before.status:
            case "success":
                return "artifact_lost"
            case "missing_raw_object":
                return "raw_changed"
            case "invalid_raw_object" | "quarantined":
                return "given_up"
        due = before.next_attempt_at is None or before.next_attempt_at <= timestamp(NOW)
        return "retry_due" if due else "waiting"
    if before.source_hash is None and before.vector_source_hash is None:
        return "new"
    if before.metadata_hash not in (None, META):
        return "source_changed"
    if before.status == "missing_raw_object" or (etag and before.raw_etag not in (None, etag)):
        return "raw_changed"
    return "source_changed" if before.contract_id == C else "contract_changed"


@pytest.fixture(scope="module")
def latest_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], LatestRows]:
    """Latest rows of `v0`, `v1`, …, read once for each number of videos."""
    return cache(lambda videos: read(tmp_path_factory.mktemp("cache"), [f"v{i}" for i in range(videos)]))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_plans_agree_with_the_model(latest_of: Callable[[int], LatestRows], data: st.DataObject) -> None:
    videos = data.draw(
        st.lists(
            st.tuples(st.none() | ledger_rows(), st.sampled_from(["e", "e", "d", None]), st.booleans()),
            min_size=1,
            max_size=40,
        )
    )
    with_listing, limit = data.draw(st.booleans()), data.draw(st.none() | st.integers(0, 10))
    names = [f"v{i}" for i in range(len(videos))]
    rows = [replace(r, video_id=name) for name, (r, _, _) in zip(names, videos, strict=True) if r]
    etags = {name: etag for name, (_, etag, _) in zip(names, videos, strict=True) if etag}
    in_flight = {name for name, (_, _, flying) in zip(names, videos, strict=True) if flying and with_listing}

    expected: dict[str, list[str]] = defaultdict(list)
    for name, (before, etag, _) in zip(names, videos, strict=True):
        if not with_listing:
            etag = before.raw_etag if before else None
            present = before is None or before.status != "missing_raw_object"
        else:
            present = etag is not None
        if name not in in_flight:
            expected[model(before, present, etag)].append(name)

    made = plan(
        latest_of(len(names)),
        listing(**etags) if with_listing else None,
        *rows,
        in_flight=in_flight,
        limit=limit,
    )
    reasons = {str(reason): len(expected[reason]) for reason in Reason if expected[reason]}
    work = {name: str(reason) for reason in Reason for name in expected[reason]}
    assert made.reasons == reasons
    found = {r["video_id"]: r["reason"] for r in made.work.to_pylist()}
    assert found.items() <= work.items()
    assert list(found) == sorted(work)[:limit]
    assert made.missing["video_id"].to_pylist() == sorted(expected["missing"])
    assert made.restored["video_id"].to_pylist() == sorted(expected["restored"])
    assert made.missing_raw_object == len(expected["missing"]) + len(expected["still_missing"])
    waiting = [r.next_attempt_at for r in rows if r.video_id in expected["waiting"]]
    assert made.next_attempt_at == min(filter(None, waiting), default=None)
