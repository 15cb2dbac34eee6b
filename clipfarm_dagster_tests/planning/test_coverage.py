"""What another generation has of what is served, case by case."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from clipfarm_dagster.catalog.metadata import LatestRows, read_latest_rows
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.planning.coverage import COVERAGE_COLUMNS, Cover, Coverage, coverage
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.timestamps import timestamp

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OLD, NEW = "a" * 16, "b" * 16
SERVED = LedgerRow(
    video_id="v",
    status="success",
    source_hash="input",
    metadata_hash="meta",
    contract_id=OLD,
    vector_source_hash="input",
    vector_contract_id=OLD,
)


@pytest.fixture(scope="module")
def latest(tmp_path_factory: pytest.TempPathFactory) -> LatestRows:
    """The video `v` alone."""
    csv = b"video_id,captured_at,title,description,query\nv,2026-01-01,t,,\n"
    columns = {Stage.TEXT: ["title"]}
    folder = tmp_path_factory.mktemp("metadata")
    return read_latest_rows(csv, url="x.csv", source_columns=columns, cache_dir=folder, etag=None)


def table(*rows: LedgerRow) -> pa.Table:
    return pa.table(
        {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in COVERAGE_COLUMNS}
    )


def compared(latest: LatestRows, served: LedgerRow, *others: LedgerRow) -> Coverage:
    return coverage(latest, table(served), table(*others), contract_id=NEW, now=NOW)


def other(status: str, source_hash: str | None = "input", **more: Any) -> LedgerRow:
    """The row of the other generation."""
    vector = source_hash if status == Status.SUCCESS else None
    row = replace(
        SERVED,
        status=status,
        source_hash=source_hash,
        contract_id=NEW,
        vector_source_hash=vector,
        vector_contract_id=vector and NEW,
    )
    return replace(row, **more)


LATER, EARLIER = timestamp(NOW + timedelta(hours=1)), timestamp(NOW - timedelta(hours=1))
CASES = {
    "no row": (None, Cover.TO_DO),
    "the same input": (other("success"), Cover.DONE),
    "another input": (other("success", "earlier input"), Cover.OUTDATED),
    "its vector was lost": (other("success", vector_source_hash=None), Cover.TO_DO),
    "a vector of a third contract": (other("success", vector_contract_id=OLD), Cover.TO_DO),
    "invalid": (other("invalid_raw_object"), Cover.FAILED),
    "quarantined": (other("quarantined"), Cover.FAILED),
    "invalid with another input": (other("invalid_raw_object", "earlier input"), Cover.TO_DO),
    "quarantined with another input": (other("quarantined", "earlier input"), Cover.TO_DO),
    "quarantined under a third contract": (other("quarantined", contract_id=OLD), Cover.TO_DO),
    "without raw object": (other("missing_raw_object", None), Cover.MISSING_RAW_OBJECT),
    "without raw object, other metadata": (
        other("missing_raw_object", None, metadata_hash="other"),
        Cover.TO_DO,
    ),
    "waiting": (other("fail", next_attempt_at=LATER), Cover.WAITING),
    "due": (other("fail", next_attempt_at=EARLIER), Cover.TO_DO),
    "made due by a person": (other("fail", next_attempt_at=None), Cover.TO_DO),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_other_generation_has(latest: LatestRows, case: str):
    row, cover = CASES[case]

    found = compared(latest, SERVED, *([row] if row else []))

    assert found.counts == {cover: 1}
    assert found.examples == ({} if cover == Cover.DONE else {cover: ("v",)})


def test_videos_that_the_metadata_lost_are_told_apart(latest: LatestRows):
    gone = replace(SERVED, video_id="gone")

    assert compared(latest, gone).counts == {Cover.ORPHANED: 1}
    assert compared(latest, gone, replace(other("quarantined"), video_id="gone")).counts == {
        Cover.ORPHANED: 1
    }
    for source_hash in ("input", "earlier input"):
        row = replace(other("success", source_hash), video_id="gone")
        assert compared(latest, gone, row).counts == {Cover.DONE: 1}


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.SUCCESS}))
def test_what_is_not_served_does_not_count(latest: LatestRows, status: Status):
    found = compared(latest, replace(SERVED, status=str(status)), other("success"))

    assert (found.served, found.covered, found.share) == (0, 0, 1.0)


def test_shares_are_of_what_is_served(latest: LatestRows):
    rows = [replace(SERVED, video_id=video_id) for video_id in ("v", "v1", "v2", "v3")]
    others = [replace(other("success", "x"), video_id="v"), replace(other("success"), video_id="v1")]

    found = coverage(latest, table(*rows).to_reader(), table(*others).to_reader(), contract_id=NEW, now=NOW)

    assert found.counts == {Cover.DONE: 1, Cover.OUTDATED: 1, Cover.ORPHANED: 2}
    assert (found.served, found.covered, found.share) == (4, 2, 0.5)
    assert found.examples[Cover.ORPHANED] == ("v2", "v3")
