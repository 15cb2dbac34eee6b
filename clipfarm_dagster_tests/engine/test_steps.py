"""Computing items apart from settling them: what goes from one to the other, and which of them writes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from clipfarm_dagster.engine.local.flow import pipeline
from clipfarm_dagster.engine.outcomes import ItemResult, OutcomeKind, Settlement
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.engine.recorder import Recorder
from clipfarm_dagster.engine.steps import find_up_to_date
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.ledger.serving import VectorPlace
from clipfarm_dagster_tests.support.bench import KEYS, OPTIONS, Bench, transcripts


def compute(text: Bench, items: Sequence[WorkItem]) -> list[ItemResult]:
    """The results of items as they come from another process."""
    results: list[bytes] = []
    progress = Progress(0)
    with pipeline(text.encoder, OPTIONS, progress, most_threads=2) as local:
        local.compute(
            items,
            text.store,
            KEYS,
            progress,
            give=lambda result: results.append(pickle.dumps(result)),
            meanwhile=lambda: None,
            every_seconds=1.0,
            last=True,
        )
    return [pickle.loads(result) for result in results]


def settle(text: Bench, items: Sequence[WorkItem], results: Sequence[ItemResult]) -> Progress:
    progress = Progress(len(items))
    recorder = Recorder(
        Settlement(text.encoder.contract, KEYS, OPTIONS.retry),
        text.store,
        text.ledger,
        VectorPlace(KEYS, text.encoder.contract.stage, text.encoder.contract.id),
        text.remember,
        progress,
        every_items=2,
        every_seconds=5.0,
    )
    by_id = {item.video_id: item for item in items}
    for result in results:
        recorder.add(by_id[result.video_id], result)
    recorder.close()
    return progress


def test_results_of_another_process_are_settled_as_those_of_this_one(text: Bench) -> None:
    raw = {**transcripts(3), "broken": b"no JSON"}
    text.put(raw)
    items = text.items([*raw, "not-there"])

    results = compute(text, items)

    assert text.ledger.counts() == {}
    assert text.store.list(KEYS.embedding_folder(text.stage)).num_rows == 0
    assert {result.video_id: result.kind for result in results} == {
        "clip-000": OutcomeKind.EMBEDDED,
        "clip-001": OutcomeKind.EMBEDDED,
        "clip-002": OutcomeKind.EMBEDDED,
        "broken": OutcomeKind.FAILED,
        "not-there": OutcomeKind.MISSING,
    }

    progress = settle(text, items, results)

    assert progress.outcomes == {"success": 3, "invalid_raw_object": 1, "missing_raw_object": 1}
    assert progress.model_calls == 3
    settled = {video_id: text.row(video_id) for video_id in [*raw, "not-there"]}
    vectors = {video_id: text.vector(video_id) for video_id in transcripts(3)}
    assert settled["broken"].status == Status.INVALID_RAW_OBJECT
    # the engine, over the same objects, finds nothing to do, and makes the same of what failed
    text.recorded = []
    assert text.run([*raw, "not-there"]).model_calls == 0
    assert {video_id for video_id, kind in text.kinds().items() if kind == OutcomeKind.UP_TO_DATE} == set(
        vectors
    )
    assert text.row("broken").error == settled["broken"].error
    assert text.row("not-there").error == settled["not-there"].error


def test_what_is_up_to_date_is_told_without_a_ledger_or_a_model(text: Bench) -> None:
    raw = transcripts(3)
    text.put(raw)
    text.run(list(raw))
    text.put({"clip-001": b'{"transcript": "new words"}'})
    text.store.delete(KEYS.raw(text.stage, "clip-002"))

    results = find_up_to_date(
        text.items([*raw, "unknown"]), text.encoder.contract, text.store, KEYS, Progress(0)
    )

    # a success without its raw object keeps the vector that it has
    assert [(result.video_id, result.kind) for result in results] == [
        ("clip-000", OutcomeKind.UP_TO_DATE),
        ("clip-002", OutcomeKind.UP_TO_DATE),
    ]


def test_what_is_forced_is_computed_again_but_for_what_is_gone(text: Bench) -> None:
    raw = transcripts(3)
    text.put(raw)
    text.run(list(raw))
    versions = {video_id: text.row(video_id).row_version for video_id in raw}
    before = {video_id: text.vector(video_id).tobytes() for video_id in raw}
    text.store.delete(KEYS.raw(text.stage, "clip-002"))
    text.recorded = []

    progress = text.run(list(raw), force=True)

    assert (progress.outcomes, progress.model_calls) == ({"success": 3}, 2)
    assert text.kinds() == {
        "clip-000": OutcomeKind.EMBEDDED,
        "clip-001": OutcomeKind.EMBEDDED,
        "clip-002": OutcomeKind.UP_TO_DATE,
    }
    assert {video_id: text.vector(video_id).tobytes() for video_id in raw} == before
    assert all((text.row(video_id).row_version or 0) > (versions[video_id] or 0) for video_id in raw)


def test_a_forced_item_that_fails_leaves_what_was_there(text: Bench) -> None:
    raw = transcripts(1)
    text.put(raw)
    text.run(list(raw))
    before, vector = text.row("clip-000"), text.vector("clip-000").tobytes()

    text.put({"clip-000": b"no JSON"})
    text.run(list(raw), force=True)
    assert text.row("clip-000").status == Status.INVALID_RAW_OBJECT
    text.put(raw)
    text.run(list(raw))

    assert text.row("clip-000").vector_raw_sha256 == before.vector_raw_sha256
    assert (text.row("clip-000").status, text.vector("clip-000").tobytes()) == (Status.SUCCESS, vector)


def test_a_result_that_lost_its_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="clip: a result has a vector if it is embedded, and only then"):
        ItemResult(video_id="clip", kind=OutcomeKind.EMBEDDED)
    with pytest.raises(ValueError, match="clip: a result has a vector"):
        ItemResult(video_id="clip", kind=OutcomeKind.UP_TO_DATE, vector=np.ones(1, dtype=np.float32))
