"""Vectors on their way to their keys: how often it is asked which generation serves, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfarm_dagster.engine.storing import NewVector, Stored, store_vectors
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.serving import Serving, ServingRecord, VectorPlace
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.npy import to_npy
from clipfarm_dagster_tests.support.s3_proxy import S3Proxy, s3_proxy
from workbench.seaweedfs import S3Server

KEYS = Keys()
TEXT = Stage.TEXT
OURS, OTHER = "a" * 16, "b" * 16
SERVES = Serving(OURS, "2026-01-01T00:00:00.000000Z")


class Bench:
    """A ledger and a store, over which vectors are stored as the engine does."""

    def __init__(self, store: ObjectStore, ledger: Ledger) -> None:
        self.store, self.ledger = store, ledger
        self.record = ServingRecord(store, KEYS.serving())
        self.record.change(TEXT, lambda now: SERVES)
        self.place = VectorPlace(KEYS, TEXT, OURS, self.record, SERVES)

    def write(self, video_ids: Sequence[str], number: int) -> dict[str, Stored]:
        """Store and record a vector for each id."""
        rows = self.ledger.rows(video_ids)
        new = [NewVector(WorkItem(i, {}, "h", "2026", rows.get(i)), npy(number)) for i in video_ids]
        stored = store_vectors(self.store, self.ledger, self.place, new)
        self.ledger.record(
            [
                replace(
                    one.item.previous or LedgerRow(video_id=video_id),
                    status=Status.SUCCESS,
                    processed_at="2026",
                    artifact_key=one.key,
                )
                for video_id, one in stored.items()
            ]
        )
        return stored


def npy(number: int) -> bytes:
    return to_npy(np.eye(8, dtype=np.float32)[number])


def published(video_ids: Sequence[str]) -> list[str]:
    return [KEYS.embedding(TEXT, video_id) for video_id in video_ids]


def aside(video_ids: Sequence[str]) -> list[str]:
    return [KEYS.generation(TEXT, OURS, video_id) for video_id in video_ids]


@pytest.fixture
def proxy(s3_environment: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3_environment) as running:
        yield running


@pytest.fixture
def bench(store: ObjectStore, tmp_path: Path) -> Iterator[Bench]:
    with closing(Ledger.open(TEXT, state_url="", sqlite_path=tmp_path / "text.sqlite")) as ledger:
        yield Bench(store, ledger)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_which_generation_serves_is_read_once_a_batch(
    store: ObjectStore, proxy: S3Proxy, tmp_path: Path
) -> None:
    behind = ObjectStore.open(proxy.server.url, s3=proxy.server.options())
    with closing(Ledger.open(TEXT, state_url="", sqlite_path=tmp_path / "text.sqlite")) as ledger:
        bench = Bench(behind, ledger)
        asked: list[int] = []

        def batch(video_ids: Sequence[str], number: int) -> list[str]:
            before = proxy.requests["GET", KEYS.serving()]
            stored = bench.write(video_ids, number)
            asked.append(proxy.requests["GET", KEYS.serving()] - before)
            assert [behind.get(one.key).data for one in stored.values()] == [npy(number)] * len(stored)
            return [one.key for one in stored.values()]

        assert batch([], 0) == []
        assert batch(["a", "b"], 0) == published(["a", "b"])
        assert batch(["a", "b"], 1) == published(["a", "b"])
        assert batch(["a", "c"], 2) == published(["a", "c"])
        assert asked == [0, 1, 1, 1]

        bench.record.change(TEXT, lambda now: replace(SERVES, following=OTHER))
        asked.clear()
        assert batch(["a", "d"], 3) == aside(["a", "d"])  # it was looked for `a` where it was before
        assert batch(["a", "e"], 4) == aside(["a", "e"])
        assert asked == [2, 1]


def test_a_cut_over_that_begins_while_objects_are_looked_at_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(["a"], 0)
    head_each = ObjectStore.head_each

    def slowly(*args: Any, **kwargs: Any) -> Any:
        seen = head_each(*args, **kwargs)
        bench.record.change(TEXT, lambda now: Serving(OTHER, SERVES.since, before=OURS))
        return seen

    monkeypatch.setattr(ObjectStore, "head_each", slowly)

    stored = bench.write(["a", "b"], 1)

    assert [one.key for one in stored.values()] == aside(["a", "b"])
    assert bench.store.get(KEYS.embedding(TEXT, "a")).data == npy(0)
    assert bench.store.head(KEYS.embedding(TEXT, "b")) is None
