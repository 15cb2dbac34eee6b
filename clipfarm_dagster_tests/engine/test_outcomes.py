"""The ledger rows that follow from what happened to an item."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from clipfarm_dagster.ledger.rows import (
    MAX_RETRY_WAIT,
    RetryPolicy,
    WorkItem,
    failure_row,
    missing_row,
    standing_row,
    success_row,
)
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.npy import vector_sha256

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CONTRACT = Contract(
    stage=Stage.AUDIO,
    model_name="model",
    model_revision="a" * 40,
    preprocess_name="librosa",
    preprocess_version="1",
    pooling="mean",
    dtype="float32",
)
POLICY = RetryPolicy(max_attempts=3, wait_seconds=60)
VECTOR = np.full(4, 0.5, dtype=np.float32)
ITEM = WorkItem("clip", {"title": "A"}, "metadata-hash", "2026-01-01T00:00:00.000000Z")


def succeed(item: WorkItem) -> LedgerRow:
    return success_row(
        item,
        CONTRACT,
        NOW,
        source_hash="source",
        raw_etag="etag",
        raw_sha256="raw",
        artifact_key="clipfarm/embeddings/audio/clip.npy",
        vector=VECTOR,
        seconds=0.5,
        note="ended early",
    )


def fail(item: WorkItem, *, source_hash: str = "source", invalid: bool = False) -> LedgerRow:
    return failure_row(
        item,
        CONTRACT,
        NOW,
        source_hash=source_hash,
        raw_etag="etag",
        error="it broke",
        invalid=invalid,
        policy=POLICY,
    )


def following(row: LedgerRow) -> WorkItem:
    return replace(ITEM, previous=row)


def test_a_success_tells_of_the_attempt_and_of_the_vector():
    row = succeed(ITEM)

    assert row.status == Status.SUCCESS
    assert (row.source_hash, row.raw_etag, row.metadata_hash) == ("source", "etag", "metadata-hash")
    assert (row.contract_id, row.model_name) == (CONTRACT.id, "model")
    assert (row.vector_source_hash, row.vector_contract_id) == ("source", CONTRACT.id)
    assert (row.vector_metadata_hash, row.vector_raw_sha256) == ("metadata-hash", "raw")
    assert (row.embedding_dim, row.artifact_sha256, row.note) == (4, vector_sha256(VECTOR), "ended early")
    assert row.vector_norm == 1.0
    assert (row.processed_at, row.captured_at) == ("2026-03-01T12:00:00.000000Z", ITEM.captured_at)
    assert row.retry_count == 0
    assert row.next_attempt_at is None


def test_a_success_clears_an_earlier_failure():
    row = succeed(following(fail(ITEM)))

    assert (row.status, row.error, row.retry_count, row.next_attempt_at) == (Status.SUCCESS, None, 0, None)


def test_a_failure_keeps_what_is_known_of_the_stored_vector():
    row = fail(following(succeed(ITEM)), source_hash="newer")

    assert (row.status, row.source_hash) == (Status.FAIL, "newer")
    assert (row.vector_source_hash, row.vector_contract_id) == ("source", CONTRACT.id)
    assert row.artifact_key == "clipfarm/embeddings/audio/clip.npy"


def test_failures_wait_twice_as_long_each_time_and_then_are_quarantined():
    first = fail(ITEM)
    second = fail(following(first))
    third = fail(following(second))

    assert (first.status, first.retry_count) == (Status.FAIL, 1)
    assert first.next_attempt_at == "2026-03-01T12:01:00.000000Z"
    assert (second.status, second.retry_count) == (Status.FAIL, 2)
    assert second.next_attempt_at == "2026-03-01T12:02:00.000000Z"
    assert (third.status, third.retry_count, third.next_attempt_at) == (Status.QUARANTINED, 3, None)
    assert third.error == "it broke"


def test_failures_of_another_input_or_contract_do_not_count():
    second = fail(following(fail(ITEM)))

    assert fail(following(second), source_hash="newer").retry_count == 1
    assert fail(following(replace(second, contract_id="other"))).retry_count == 1


def test_an_invalid_object_is_not_tried_again_by_itself():
    row = fail(following(fail(ITEM)), invalid=True)

    assert (row.status, row.error) == (Status.INVALID_RAW_OBJECT, "it broke")
    assert (row.retry_count, row.next_attempt_at) == (0, None)


def test_a_missing_object_names_its_key_and_keeps_the_vector():
    row = missing_row(following(succeed(ITEM)), CONTRACT, NOW, raw_key="clipfarm/raw/audio/clip.wav")

    assert row.status == Status.MISSING_RAW_OBJECT
    assert "'clipfarm/raw/audio/clip.wav'" in (row.error or "")
    assert (row.source_hash, row.raw_etag) == (None, None)
    assert row.vector_source_hash == "source"


def test_a_vector_that_stands_is_of_the_new_source():
    row = standing_row(following(succeed(ITEM)), CONTRACT, NOW, source_hash="newer", raw_etag="etag-2")

    assert (row.status, row.source_hash, row.vector_source_hash) == (Status.SUCCESS, "newer", "newer")
    assert (row.raw_etag, row.artifact_sha256) == ("etag-2", vector_sha256(VECTOR))


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        (1, timedelta(seconds=60)),
        (4, timedelta(seconds=480)),
        (12, MAX_RETRY_WAIT),
        (10_000, MAX_RETRY_WAIT),
    ],
)
def test_waits_double_up_to_a_day(failures: int, expected: timedelta):
    assert POLICY.wait(failures) == expected
