"""Each question to a ledger's columns, answered with yes and with no."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest

from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.maintenance.audit import (
    AUDIT_COLUMNS,
    SHOWN,
    Audit,
    Finding,
    audit,
    compare_with_events,
    sample_successes,
)
from clipfarm_dagster.stages import Stage


def success(number: int) -> LedgerRow:
    return LedgerRow(
        video_id=f"v{number}",
        status=Status.SUCCESS,
        source_hash=f"source-{number}",
        contract_id="contract-a",
        model_name="model",
        model_revision="revision",
        embedding_dim=768,
        vector_norm=1.0,
        vector_contract_id="contract-a",
        vector_raw_sha256=f"raw-{number}",
        artifact_sha256=f"vector-{number}",
    )


ROWS = [success(i) for i in range(4)]
FAILED = replace(success(9), status=Status.FAIL, vector_norm=7.0, embedding_dim=3, vector_contract_id="old")


def table(rows: list[LedgerRow]) -> pa.Table:
    return pa.table({name: [asdict(row)[name] for row in rows] for name in AUDIT_COLUMNS}, schema=SCHEMA)


SCHEMA = pa.schema(
    [
        (
            name,
            pa.int64() if name == "embedding_dim" else pa.float64() if name == "vector_norm" else pa.string(),
        )
        for name in AUDIT_COLUMNS
    ]
)


@pytest.mark.parametrize("rows", [[], ROWS, [*ROWS, FAILED]], ids=["none", "good", "failed"])
def test_good_ledgers_have_nothing_bad(rows: list[LedgerRow]) -> None:
    findings = audit(table(rows))
    assert set(findings) == set(Audit)
    assert {name: finding.bad for name, finding in findings.items()} == dict.fromkeys(Audit, 0)
    assert findings[Audit.FINITE].more["successes"] == len([row for row in rows if row != FAILED])


@pytest.mark.parametrize(
    ("question", "bad"),
    [
        (Audit.UNIT_NORM, {"vector_norm": 0.9998}),
        (Audit.UNIT_NORM, {"vector_norm": 1.01}),
        (Audit.FINITE, {"vector_norm": None}),
        (Audit.FINITE, {"vector_norm": math.inf}),
        (Audit.FINITE, {"vector_norm": math.nan}),
        (Audit.DIMENSION, {"embedding_dim": 384}),
        (Audit.DIMENSION, {"embedding_dim": None}),
    ],
)
def test_one_bad_vector_is_found_and_named(question: Audit, bad: dict[str, float | None]) -> None:
    findings = audit(table([*ROWS, replace(success(7), **bad)]))  # type: ignore[arg-type]
    assert (findings[question].bad, findings[question].examples) == (1, ("v7",))
    assert [name for name, finding in findings.items() if finding.bad] == [question]


def test_a_norm_within_float32_is_a_unit_norm() -> None:
    assert audit(table([*ROWS, replace(success(7), vector_norm=1 - 3e-7)]))[Audit.UNIT_NORM].bad == 0


def test_a_norm_that_is_no_number_is_found_through_sqlite(tmp_path: Path) -> None:
    ledger = Ledger.open(Stage.TEXT, state_url="", sqlite_path=tmp_path / "l.sqlite")
    ledger.record([*ROWS, replace(success(7), vector_norm=math.nan)])
    findings = audit(ledger.columns(AUDIT_COLUMNS))
    ledger.close()
    assert findings[Audit.FINITE].examples == ("v7",)


def test_a_mixed_store_is_named_with_its_contracts_and_models() -> None:
    other = replace(
        success(7), vector_contract_id="contract-b", contract_id="contract-b", model_revision="later"
    )
    finding = audit(table([*ROWS, other]))[Audit.ONE_CONTRACT]
    assert finding.bad == 1
    assert finding.examples == ("4 under contract-a (model@revision)", "1 under contract-b (model@later)")
    assert "contract-b (model@later)" in finding.summary


def test_rows_of_the_original_schema_are_told_and_not_called_bad() -> None:
    old = replace(
        success(7), vector_norm=None, artifact_sha256=None, embedding_dim=768, vector_raw_sha256=None
    )
    findings = audit(table([*ROWS, old]))
    assert {name: finding.bad for name, finding in findings.items()} == dict.fromkeys(Audit, 0)
    assert findings[Audit.UNIT_NORM].more == {"successes": 5, "unmeasured": 1}


def test_dimensions_are_compared_within_a_contract() -> None:
    others = [replace(success(i), vector_contract_id="b", embedding_dim=384) for i in (5, 6)]
    findings = audit(table([*ROWS, *others]))
    assert findings[Audit.DIMENSION].bad == 0
    assert "384 under b" in findings[Audit.DIMENSION].summary


def test_videos_that_share_a_vector_are_listed_by_group() -> None:
    silent = [replace(success(i), artifact_sha256="silence") for i in (10, 11, 12)]
    again = [replace(success(i), artifact_sha256="x", vector_raw_sha256="same") for i in (20, 21)]
    finding = audit(table([*ROWS, *silent, *again]))[Audit.DISTINCT_VECTORS]
    assert (finding.bad, finding.more["groups"]) == (5, 2)
    assert finding.examples == (
        "v10, v11, v12 (3 different raw objects)",
        "v20, v21 (the same raw bytes)",
    )


def test_many_silent_videos_are_counted_in_full_and_listed_in_part() -> None:
    silent = [replace(success(i), artifact_sha256="silence") for i in range(300)]
    finding = audit(table(silent))[Audit.DISTINCT_VECTORS]
    assert finding.bad == 300
    assert len(finding.examples) == 1
    assert "and 280 more" in finding.examples[0]
    bad = [replace(success(i), vector_norm=2.0) for i in range(300)]
    assert len(audit(table(bad))[Audit.UNIT_NORM].examples) == SHOWN


def test_samples_are_successes_and_no_more_than_asked() -> None:
    rows = table([*ROWS, FAILED])
    assert sample_successes(rows, 10) == ["v0", "v1", "v2", "v3"]
    assert len(sample_successes(rows, 2)) == 2
    assert set(sample_successes(rows, 2)) <= {"v0", "v1", "v2", "v3"}
    assert sample_successes(table([]), 5) == []


def versions() -> dict[str, str]:
    return {row.video_id: f"{row.source_hash}.{row.contract_id}" for row in ROWS}


def test_events_that_agree_with_the_ledger() -> None:
    finding = compare_with_events(table([*ROWS, FAILED]), {**versions(), "gone": "x.y"})
    assert finding.bad == 0


def test_events_that_are_missing_or_of_another_version() -> None:
    events = versions()
    del events["v1"]
    events["v2"] = "older.contract-a"
    finding: Finding = compare_with_events(table(ROWS), events)
    assert (finding.bad, finding.examples) == (2, ("v1", "v2"))
    assert finding.more == {"not_materialized": 1, "other_version": 1}
    assert compare_with_events(table(ROWS), {}).bad == 4
