"""Which generation serves, and where its vectors are written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.serving import Serving, ServingRecord, VectorPlace
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys

KEYS = Keys()
OLD, NEW = "a" * 16, "b" * 16
SERVES = Serving(OLD, since="2026-01-01T00:00:00.000000Z")
ASIDE = KEYS.generation(Stage.TEXT, OLD, "v")
PUBLISHED = KEYS.embedding(Stage.TEXT, "v")


@pytest.fixture
def record(store: ObjectStore) -> ServingRecord:
    return ServingRecord(store, KEYS.serving())


def test_stages_are_told_apart(record: ServingRecord):
    assert record.read() == {}

    record.change(Stage.TEXT, lambda now: SERVES)
    record.change(Stage.VIDEO, lambda now: Serving(NEW, SERVES.since, before=OLD))

    assert record.read() == {Stage.TEXT: SERVES, Stage.VIDEO: Serving(NEW, SERVES.since, before=OLD)}


def test_nothing_is_written_where_nothing_changes(record: ServingRecord, store: ObjectStore):
    record.change(Stage.TEXT, lambda now: SERVES)
    before = store.head(KEYS.serving())

    assert record.change(Stage.TEXT, lambda now: now) == SERVES
    assert record.change(Stage.TEXT, lambda now: None) == SERVES

    assert store.head(KEYS.serving()) == before


def test_a_change_that_lost_the_race_is_decided_anew(record: ServingRecord, store: ObjectStore):
    other = ServingRecord(store, KEYS.serving())
    seen: list[Serving | None] = []

    def change(now: Serving | None) -> Serving:
        seen.append(now)
        if len(seen) == 1:
            other.change(Stage.TEXT, lambda _: SERVES)
        return now or Serving(NEW, SERVES.since)

    assert record.change(Stage.TEXT, change) == SERVES
    assert seen == [None, SERVES]


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"text": {"since": "x"}}', b'{"text": 3}'])
def test_a_damaged_record_is_told_and_never_taken_for_none(
    record: ServingRecord, store: ObjectStore, damage: bytes
):
    store.put(KEYS.serving(), damage)

    with pytest.raises(LedgerError, match=r"serving\.json.*restore"):
        record.change(Stage.TEXT, lambda now: SERVES)

    assert store.get(KEYS.serving()).data == damage


@pytest.mark.parametrize(
    ("serving", "known", "key"),
    [
        (SERVES, None, PUBLISHED),
        (SERVES, PUBLISHED, PUBLISHED),
        # settled: what lay aside is moved, and may be removed there
        (SERVES, ASIDE, PUBLISHED),
        # it began to serve, and this vector is not moved yet
        (replace(SERVES, settled=False), ASIDE, ASIDE),
        (replace(SERVES, settled=False), None, PUBLISHED),
        # another is about to serve, or does so
        (replace(SERVES, following=NEW), PUBLISHED, ASIDE),
        (Serving(NEW, SERVES.since, before=OLD), PUBLISHED, ASIDE),
    ],
)
def test_a_vector_is_written_where_its_generation_stands(
    record: ServingRecord, serving: Serving, known: str | None, key: str
):
    place: Any = VectorPlace(KEYS, Stage.TEXT, OLD, record)
    record.change(Stage.TEXT, lambda now: serving)

    assert place.keys_now([("v", known)]) == [key]


def test_a_place_without_a_record_is_that_of_what_serves():
    assert VectorPlace(KEYS, Stage.TEXT, OLD).keys_now([("v", None), ("w", ASIDE)]) == [
        PUBLISHED,
        KEYS.embedding(Stage.TEXT, "w"),
    ]
