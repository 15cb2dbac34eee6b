"""An erased video is gone from the store and the ledgers, its neighbours stay, and it does not come back."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.corpus import corpus as corpus_module
from clipfarm_dagster.ledger.erasing import ErasingLedger
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.maintenance import erasure
from clipfarm_dagster.maintenance.erasure import Found, finish, look
from clipfarm_dagster.maintenance.erasure_notes import clear_caches
from clipfarm_dagster.maintenance.erasure_scan import scan_csv, scan_home, scan_store
from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.manifests import refresh
from clipfarm_dagster.manifests.refresh import refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import Single
from clipfarm_dagster.manifests.vectors import read_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.buckets import new_versioned_bucket
from clipfarm_dagster_tests.support.generations import embed
from clipfarm_dagster_tests.support.killing import Killed, killing
from clipfarm_dagster_tests.support.machines import open_corpus, put_texts, put_transcript, sync_texts
from clipfarm_dagster_tests.support.s3_proxy import refuse, s3_proxy
from workbench.seaweedfs import S3Server

TEXT = Stage.TEXT
GONE = "clip-0001"
NEIGHBOURS = ["clip-00012", "x-clip-0001", "clip-0003"]
IDS = [GONE, *NEIGHBOURS]
TRACES = IdText({GONE: "…"}, NEIGHBOURS)


@pytest.fixture(params=["folder", "versioned"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A folder, and a bucket that keeps previous versions."""
    if request.param == "folder":
        return ObjectStore.open(str(tmp_path / "store"))
    request.getfixturevalue("s3_environment")
    return ObjectStore.open(new_versioned_bucket())


@pytest.fixture
def lived(any_store: ObjectStore, tmp_path: Path) -> Corpus:
    """A corpus with vectors of two generations, all of them written over once, and manifests."""
    return live_through(any_store, tmp_path / "home")


def live_through(store: ObjectStore, home: Path) -> Corpus:
    corpus, other = open_corpus(home, store), open_corpus(home, store, contract=1)
    corpus.serving.change(TEXT, lambda now: Serving(corpus.contract(TEXT).id, "2026-01-01T00:00:00.000000Z"))
    for minute, title in enumerate(["before", "after"]):
        put_texts(corpus, {video_id: (title, video_id, "q") for video_id in IDS}, minute)
        for video_id in IDS:
            put_transcript(corpus, video_id, f"words of {video_id}")
        with corpus.stage(TEXT) as opened:
            embed(opened, corpus, IDS)
            refresh_manifest(opened)
            embed(opened.under(other.contract(TEXT)), corpus, IDS)
        refresh_fused(corpus, Single(TEXT))
    read_vectors(corpus, TEXT)
    return corpus


def erase(corpus: Corpus, *, raw: bool = False) -> list[str]:
    corpus.tombstones.add([GONE], raw=raw)
    refused = finish(corpus, [GONE], raw=[GONE] if raw else [])
    clear_caches(corpus.settings.home_files)
    return refused


def objects(corpus: Corpus) -> dict[str, bytes]:
    """All objects that are not made of the ledgers."""
    kept = tuple(f"{corpus.keys.prefix}/{name}/" for name in ("raw", "embeddings", "generations", "metadata"))
    keys = corpus.store.list()["key"].to_pylist()
    return {key: corpus.store.get(key).data for key in keys if key.startswith(kept)}


def rows(corpus: Corpus) -> dict[str, Any]:
    with corpus.ledger(TEXT) as ledger:
        return {contract_id: ledger.of(contract_id).rows(IDS) for contract_id in ledger.generations()}


def traces(corpus: Corpus) -> list[Any]:
    found, refused = scan_store(corpus, TRACES)
    assert refused == []
    return found + scan_home(corpus, TRACES)


@pytest.mark.parametrize("raw", [False, True])
def test_nothing_is_left_of_an_erased_video_and_its_neighbours_stay(lived: Corpus, raw: bool):
    before, rows_before = objects(lived), rows(lived)
    found = look(lived, [GONE], raw=[GONE] if raw else [])
    versioned = lived.store.keeps_versions()
    assert found == Found(
        vectors=2,
        raw_objects=int(raw),
        raw_objects_kept=int(not raw),
        manifest_rows=2,
        ledger_rows=2,
        previous_versions=(2 + raw) * versioned,
    )
    assert traces(lived)
    assert (objects(lived), rows(lived)) == (before, rows_before)

    assert erase(lived, raw=raw) == []

    assert traces(lived) == []
    assert look(lived, [GONE], raw=[GONE] if raw else []) == Found(raw_objects_kept=int(not raw))
    if versioned and raw:
        assert {v.key for v in lived.store.previous_versions("")} <= {*before, lived.keys.erased()}
    gone = [key for key in before if key not in objects(lived)]
    assert sorted(gone) == sorted(
        key
        for key in before
        if f"/{GONE}." in key and (raw or not key.startswith(lived.keys.raw_folder(TEXT)))
    )
    assert objects(lived) == {key: data for key, data in before.items() if key not in gone}
    assert rows(lived) == {
        contract_id: {video_id: row for video_id, row in of.items() if video_id != GONE}
        for contract_id, of in rows_before.items()
    }
    assert erase(lived, raw=raw) == []


def test_it_does_not_come_back(lived: Corpus, tmp_path: Path):
    old = open_corpus(tmp_path / "other", lived.store)
    sync_texts(old)
    assert read_vectors(old, TEXT).video_ids == sorted(IDS)
    erase(lived)

    put_transcript(lived, GONE, "words again")
    for corpus in (lived, old):
        with corpus.stage(TEXT) as opened:
            assert corpus.latest_rows().video_ids() == sorted(NEIGHBOURS)
            assert opened.plan(corpus.latest_rows()).delta == 0
            refresh_manifest(opened)
        assert not sync_texts(corpus)
        assert read_vectors(corpus, TEXT).video_ids == sorted(NEIGHBOURS)
    assert look(lived, [GONE]) == Found(raw_objects_kept=1)
    [told] = [line for line in scan_csv(lived, [GONE]) if "still has" in line]
    assert "still has 1 of the videos" in told


@pytest.mark.parametrize("any_store", ["folder"], indirect=True)
@pytest.mark.parametrize("step", ["write_manifest", "FusionPlan", "read_latest_rows"])
def test_what_was_read_before_an_erasure_is_not_left_after_it(
    lived: Corpus, step: str, monkeypatch: pytest.MonkeyPatch
):
    put_texts(lived, {video_id: ("new", video_id, "q") for video_id in [*IDS, "new-1"]}, minute=5)
    sync_texts(lived)
    put_texts(lived, {video_id: ("newer", video_id, "q") for video_id in IDS}, minute=6)
    module = corpus_module if step == "read_latest_rows" else refresh
    change, first = getattr(module, step), iter([True])

    def erased_meanwhile(*arguments: Any, **named: Any) -> Any:
        if next(first, None):
            erase(lived)
        return change(*arguments, **named)

    monkeypatch.setattr(module, step, erased_meanwhile)
    assert lived.latest_rows().videos == len(IDS) - (step == "read_latest_rows")
    with lived.stage(TEXT) as opened:
        refresh_manifest(opened)
    refresh_fused(lived, Single(TEXT))

    assert next(first, None) is None
    assert traces(lived) == []


def test_an_erasure_that_is_broken_off_anywhere_is_finished_by_any_machine(tmp_path: Path):
    live_through(ObjectStore.open(str(tmp_path / "0" / "store")), tmp_path / "0" / "home")
    steps = [
        (ObjectStore, name) for name in ("delete_each", "put_if_unchanged", "put_file_if_unchanged", "delete")
    ]
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "0", folder)
        store = ObjectStore.open(str(folder / "store"))
        corpus, other = open_corpus(folder / "home", store), open_corpus(folder / "other", store)
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            killing(patch, at, *steps, (ErasingLedger, "clear_erased"), (erasure, "_unfinished_files"))
            erase(corpus)
            break

        assert finish(other) == []

        if at > 1:  # after the tombstone
            assert look(other, [GONE]) == Found(raw_objects_kept=1)
            assert scan_store(other, TRACES) == ([], [])
            assert finish(corpus) == []
            clear_caches(corpus.settings.home_files)
            assert traces(corpus) == []
        assert {video_id for of in rows(corpus).values() for video_id in of} >= set(NEIGHBOURS)
        assert look(corpus, NEIGHBOURS).vectors == 2 * len(NEIGHBOURS)
    assert at > 5


@pytest.mark.parametrize("any_store", ["versioned"], indirect=True)
def test_what_may_not_be_removed_is_told(lived: Corpus, s3_environment: S3Server):
    with s3_proxy(s3_environment) as proxy:
        through = ObjectStore.open(lived.store.url, s3=proxy.server.options(give_up_seconds=3))
        corpus = Corpus(lived.settings, through)
        proxy.break_("VERSIONS", "", refuse("AccessDenied"))
        assert erase(corpus) == ["previous versions of the bucket, which may not be listed (AccessDenied)"]
        _, refused = scan_store(corpus, TRACES)
        assert refused == ["previous versions of the bucket, which may not be listed (AccessDenied)"]
    assert traces(lived)
    assert erase(lived) == []
    assert traces(lived) == []
