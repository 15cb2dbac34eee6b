"""The delta rule, case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipfarm_dagster.catalog.delta import DELTA_COLUMNS, StagePlan, plan_stage
from clipfarm_dagster.catalog.metadata import LatestRows, metadata_hash, read_latest_rows, source_hash
from clipfarm_dagster.ledger.schema import LedgerRow, timestamp
from clipfarm_dagster.stages import Stage

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
C, OLD_C = "c" * 16, "b" * 16
TEXT = ["title", "description", "query"]
META = metadata_hash(["a title", "", ""])
OTHER_META = metadata_hash(["another title", "", ""])


def read(tmp_path: Path, csv: str) -> LatestRows:
    return read_latest_rows(
        csv.encode(), url="x.csv", source_columns={Stage.TEXT: TEXT}, cache_dir=tmp_path, etag=None
    )


@pytest.fixture
def one(tmp_path: Path) -> LatestRows:
    return read(tmp_path, "video_id,captured_at,title,description,query\nv,2026-01-01,a title,,\n")


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
    assert (made.missing.num_rows, made.restored.num_rows, made.missing_raw_object, made.orphaned) == (
        0,
        0,
        0,
        0,
    )
