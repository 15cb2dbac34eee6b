"""Explaining one video, and estimating a delta."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from clipfarm_dagster.catalog.metadata import LatestRows, read_latest_rows
from clipfarm_dagster.planning.delta import DELTA_COLUMNS, NoWorkReason, Reason
from clipfarm_dagster.planning.estimate import estimate_seconds
from clipfarm_dagster.planning.explain import Change, Explanation, explain
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.hashing import metadata_hash, source_hash

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TEXT = ("title", "description", "query")
META = metadata_hash(["a title", "", "q"])
OLD = Contract(
    stage=Stage.TEXT,
    model_name="org/model",
    model_revision="1" * 40,
    preprocess_name="text",
    preprocess_version="1",
    pooling="mean",
    dtype="float32",
)
NEW = replace(OLD, model_revision="2" * 40, pooling="cls")


@pytest.fixture
def latest(tmp_path: Path) -> LatestRows:
    return read_latest_rows(
        b"video_id,captured_at,title,description,query\nv,2026-01-01,a title,,q\nw,2026-01-01,,,\n",
        url="x.csv",
        source_columns={Stage.TEXT: TEXT},
        cache_dir=tmp_path,
        etag=None,
    )


def ask(latest: LatestRows, video_id: str, *, contract: Contract = NEW, etag: str = "e") -> Explanation:
    columns = dict.fromkeys(DELTA_COLUMNS) | {
        "status": "success",
        "metadata_hash": META,
        "raw_etag": "e",
        "contract_id": OLD.id,
        "source_hash": source_hash(META, "e"),
        "vector_source_hash": source_hash(META, "e"),
        "vector_contract_id": OLD.id,
    }
    return explain(
        Stage.TEXT,
        video_id,
        latest,
        pa.table({"key": [f"clipfarm/raw/text/{v}.json" for v in "vw"], "etag": [etag, etag]}),
        pa.Table.from_pylist([columns | {"video_id": "v"}, columns | {"video_id": "gone"}]),
        contract=contract,
        recorded={OLD.id: OLD},
        source_columns=TEXT,
        now=NOW,
        in_flight={"w"},
    )


def test_a_changed_contract_names_its_fields(latest: LatestRows) -> None:
    found = ask(latest, "v")
    assert (found.verdict, found.status, found.in_flight) == (Reason.CONTRACT_CHANGED, "success", False)
    assert found.source == {"title": "a title", "description": "", "query": "q"}
    assert set(found.changes) == {
        Change("contract_id", OLD.id, NEW.id),
        Change("model_revision", "1" * 40, "2" * 40),
        Change("pooling", "mean", "cls"),
    }


def test_nothing_changed(latest: LatestRows) -> None:
    found = ask(latest, "v", contract=OLD)
    assert (found.verdict, found.changes) == (NoWorkReason.DONE, ())


def test_a_changed_object_shows_both_etags(latest: LatestRows) -> None:
    found = ask(latest, "v", contract=OLD, etag="f")
    assert (found.verdict, found.changes) == (Reason.RAW_CHANGED, (Change("raw_etag", "e", "f"),))


def test_new_orphaned_and_unknown_videos(latest: LatestRows) -> None:
    new = ask(latest, "w")
    assert (new.verdict, new.status, new.in_flight, new.changes) == (Reason.NEW, None, True, ())
    gone = ask(latest, "gone")
    assert (gone.verdict, gone.status, gone.source, gone.changes) == (
        NoWorkReason.ORPHANED,
        "success",
        {},
        (),
    )
    nobody = ask(latest, "nobody'); DROP TABLE latest; --")
    assert (nobody.verdict, nobody.status, nobody.source, nobody.changes) == (None, None, {}, ())


def test_estimates() -> None:
    seen = {Stage.VIDEO: [float(i) for i in range(11)], Stage.TEXT: [0.5] * 3}
    found = estimate_seconds(seen, {Stage.VIDEO: 100, Stage.TEXT: 10, Stage.AUDIO: 0})
    assert found is not None
    assert (found.low, found.seconds, found.high) == pytest.approx((105, 505, 905))
    assert estimate_seconds(seen, {Stage.AUDIO: 1}) is None
    nothing = estimate_seconds({}, {})
    assert nothing is not None
    assert nothing.seconds == 0
