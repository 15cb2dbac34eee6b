"""An erased video stays away, whatever still has it: the CSV, a raw object, a file, a run, a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.engine.engine import LocalComputing, Progress, embed_items
from clipfarm_dagster.engine.outcomes import Outcome
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.maintenance.migration import move_vectors
from clipfarm_dagster.planning.delta import NoWorkReason
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.transfer.imports import import_vectors
from clipfarm_dagster.transfer.vector_file import VectorFile
from clipfarm_dagster.vectors.npy import to_npy
from clipfarm_dagster_tests.support.claims import claims
from clipfarm_dagster_tests.support.hashing_encoder import HashingEncoder
from clipfarm_dagster_tests.support.machines import (
    OPTIONS,
    open_corpus,
    put_texts,
    put_transcript,
    sync_texts,
)

over_a_folder = pytest.mark.parametrize("store", ["folder"], indirect=True)

TEXT = Stage.TEXT
IDS = ["a", "b", "gone"]
Change = Callable[[], object]


@pytest.fixture
def corpus(store: ObjectStore, tmp_path: Path) -> Corpus:
    """Three videos with vectors."""
    corpus = open_corpus(tmp_path / "home", store)
    write(corpus, "a title", minute=0)
    sync_texts(corpus)
    return corpus


def write(corpus: Corpus, title: str, minute: int) -> None:
    """The CSV and the raw objects, as if the erased video were any other."""
    put_texts(corpus, {video_id: (title, video_id, "q") for video_id in IDS}, minute)
    for video_id in IDS:
        put_transcript(corpus, video_id, f"{title} of {video_id}")


def erase(corpus: Corpus) -> None:
    """What `clipfarm erase` does to vectors and rows, from another process."""
    other = Corpus(corpus.settings, ObjectStore.open(corpus.store.url))
    other.tombstones.add(["gone"])
    for key in named(corpus):
        other.store.delete(key)
    with other.ledger(TEXT) as ledger:
        ledger.clear_erased(everything=True)


def named(corpus: Corpus) -> list[str]:
    """The vectors of the erased video."""
    keys = corpus.store.list(corpus.keys.prefix)["key"].to_pylist()
    return [key for key in keys if key.endswith("/gone.npy")]


def nothing_came_back(corpus: Corpus) -> None:
    assert named(corpus) == []
    with corpus.ledger(TEXT) as ledger:
        assert claims(ledger).keys() == {"a", "b"}


def test_it_is_no_work_whatever_there_is_of_it(corpus: Corpus, store: ObjectStore, tmp_path: Path):
    erase(corpus)
    write(corpus, "another title", minute=1)

    assert sync_texts(corpus) == {"another title of a": 1, "another title of b": 1}

    plans = corpus.plans([TEXT])
    assert (plans[TEXT].delta, plans[TEXT].orphaned) == (0, 0)
    assert corpus.explain(TEXT, "gone").verdict == NoWorkReason.ERASED
    assert corpus.explain(TEXT, "a").verdict == NoWorkReason.DONE
    nothing_came_back(corpus)
    assert sync_texts(open_corpus(tmp_path / "elsewhere", store)).total() == 0
    nothing_came_back(corpus)


def before(owner: Any, name: str, change: Change) -> Callable[[pytest.MonkeyPatch], None]:
    """Have something happen before the next call of a function with any items."""

    def prepare(patch: pytest.MonkeyPatch) -> None:
        function = getattr(owner, name)

        def changed(self: Any, some: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            if some:
                patch.setattr(owner, name, function)
                change()
            return function(self, some, *args, **kwargs)

        patch.setattr(owner, name, changed)

    return prepare


def run(opened: StageCorpus, corpus: Corpus, items: Sequence[WorkItem]) -> tuple[list[str], dict[str, int]]:
    """Run some items; what was told of them, and what they were counted as."""
    told: list[str] = []
    encoder = HashingEncoder(opened.contract, set(), None)

    def on_recorded(outcomes: Sequence[Outcome]) -> None:
        told.extend(outcome.row.video_id for outcome in outcomes)

    progress = embed_items(
        items,
        contract=opened.contract,
        computing=LocalComputing(lambda: encoder),
        store=corpus.store,
        keys=corpus.keys,
        ledger=opened.ledger,
        options=OPTIONS,
        on_recorded=on_recorded,
        place=opened.place,
        progress=Progress(len(items)),
    )
    opened.ledger.push()
    return sorted(told), progress.outcomes


def put_keys(patch: pytest.MonkeyPatch) -> list[str]:
    """The keys that vectors are put under from now on."""
    put = ObjectStore.put_each
    keys: list[str] = []

    def noted(self: ObjectStore, items: Sequence[tuple[str, bytes, str | None]], **kwargs: Any) -> Any:
        keys.extend(key for key, _, _ in items)
        return put(self, items, **kwargs)

    patch.setattr(ObjectStore, "put_each", noted)
    return keys


MARKED = "when they are marked"  # which new ones are not
MOMENTS = {
    "when it has its items": (HashingEncoder, "encode"),
    "when its vectors are stored": (ObjectStore, "put_each"),
    MARKED: (Ledger, "mark_overwriting"),
    "when rows are recorded": (Ledger, "record"),
}


@pytest.mark.parametrize(
    ("moment", "known"),
    [(moment, known) for moment in MOMENTS for known in (True, False) if known or moment != MARKED],
)
def test_a_run_that_has_it_in_hand_gives_it_up(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, known: bool
):
    corpus = open_corpus(tmp_path / "home", store)
    if known:
        write(corpus, "a title", minute=0)
        sync_texts(corpus)
    write(corpus, "another title", minute=1)
    with corpus.stage(TEXT) as opened:
        items = opened.work_items(IDS, corpus.latest_rows())
        put = put_keys(monkeypatch)
        before(*MOMENTS[moment], lambda: erase(corpus))(monkeypatch)

        assert run(opened, corpus, items) == (["a", "b"], {"success": 2, "erased": 1})

    too_late = moment in ("when its vectors are stored", "when rows are recorded")
    assert (corpus.keys.embedding(TEXT, "gone") in put) == too_late
    nothing_came_back(corpus)


@over_a_folder
def test_a_run_over_it_alone_does_nothing(corpus: Corpus):
    write(corpus, "another title", minute=1)
    with corpus.stage(TEXT) as opened:
        items = opened.work_items(["gone"], corpus.latest_rows())
        erase(corpus)

        assert run(opened, corpus, items) == ([], {"erased": 1})

    nothing_came_back(corpus)


@over_a_folder
def test_what_a_plan_of_before_settles_is_not_recorded(corpus: Corpus):
    for video_id in IDS:
        corpus.store.delete(corpus.keys.raw(TEXT, video_id))
    put_texts(corpus, {video_id: ("another title", video_id, "q") for video_id in IDS}, minute=1)
    with corpus.stage(TEXT) as opened:
        plan = opened.plan(corpus.latest_rows())
        assert plan.missing.num_rows == 3
        erase(corpus)

        opened.record_settled(plan)

        assert opened.ledger.counts() == {"missing_raw_object": 2}
    nothing_came_back(corpus)


@over_a_folder
@pytest.mark.parametrize("moment", ["before", *list(MOMENTS)[1:]])
def test_it_is_not_imported(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    path = tmp_path / "vectors.npz"
    np.savez(path, video_id=np.array(IDS), embedding=np.eye(3, 4, dtype=np.float32))
    if moment == "before":
        erase(corpus)
    else:
        before(*MOMENTS[moment], lambda: erase(corpus))(monkeypatch)

    done = import_vectors(corpus, TEXT, VectorFile(path), corpus.contract(TEXT), replace_done=True)

    assert done.refused == {"gone": "its video was erased"}
    assert sorted(row.video_id for row in done.rows) == ["a", "b"]
    nothing_came_back(corpus)


@over_a_folder
def test_its_vector_is_not_kept_by_who_was_copying_it(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    with corpus.stage(TEXT) as opened:
        aside = opened.keys.generation_folder(TEXT, opened.contract.id)
        before(Ledger, "replace", lambda: erase_and_copy(corpus, aside))(monkeypatch)

        move_vectors(opened, aside)

    nothing_came_back(corpus)
    assert sorted(corpus.store.list(aside)["key"].to_pylist()) == [f"{aside}a.npy", f"{aside}b.npy"]


def erase_and_copy(corpus: Corpus, aside: str) -> None:
    erase(corpus)
    corpus.store.put(f"{aside}gone.npy", to_npy(np.eye(1, 4, dtype=np.float32)[0]))
