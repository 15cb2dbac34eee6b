"""Rows of erased videos leave the manifests, and no other row does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ManifestError
from clipfarm_dagster.manifests import erased, fusion
from clipfarm_dagster.manifests.erased import manifest_keys, remove_rows
from clipfarm_dagster.manifests.refresh import refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.corpora import embed_all, etag_of, open_corpus

IDS = [f"v{number:04}" for number in range(20)]
STRATEGIES = ("concat", "mean")


def publish(corpus: Corpus) -> None:
    for stage in Stage:
        with corpus.stage(stage) as opened:
            refresh_manifest(opened)
    for name in STRATEGIES:
        refresh_fused(corpus, make_strategy(name, corpus.settings.fusion_weights))


def tables(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Every manifest as the store has it."""
    found = {}
    for key in manifest_keys(corpus):
        corpus.store.download(key, folder / "file")
        found[key] = pq.read_table(folder / "file")
    return found


FOLDER = pytest.mark.parametrize("store", ["folder"], indirect=True)


@pytest.fixture
def published(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """All kinds of manifests; those with vectors have several row groups."""
    for module in (fusion, erased):
        monkeypatch.setattr(module, "CHUNK", 8)
    corpus = open_corpus(tmp_path / "home", store)
    embed_all(corpus, IDS)
    publish(corpus)
    return corpus


def test_rows_leave_all_manifests_and_the_others_stay_as_they_are(published: Corpus, tmp_path: Path):
    before = tables(published, tmp_path)
    assert len(before) == len(Stage) + len(STRATEGIES)

    assert remove_rows(published, {"v0007", "v0014", "x"}, dry_run=True) == dict.fromkeys(before, 2)
    assert all(after.equals(before[key]) for key, after in tables(published, tmp_path).items())

    assert remove_rows(published, {"v0007", "v0014", "x"}) == dict.fromkeys(before, 2)
    for key, after in tables(published, tmp_path).items():
        rows = [number for number, video_id in enumerate(IDS) if video_id not in ("v0007", "v0014")]
        assert after.equals(before[key].take(rows), check_metadata=True), key
    etags = {key: etag_of(published.store, key) for key in before}
    assert remove_rows(published, {"v0007", "v0014"}) == {}
    assert {key: etag_of(published.store, key) for key in before} == etags


@pytest.mark.parametrize("on_condition", [True, False])
def test_rows_that_others_add_meanwhile_stay(
    published: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_condition: bool
):
    if not on_condition:
        monkeypatch.setattr(erased, "_ON_CONDITION_BYTES", 0)
    write, more = erased._write_without, iter([["new-1"], ["new-2"]])

    def interrupted(before: Path, *others: Any) -> int:
        count = write(before, *others)
        if new := next(more, None):
            embed_all(published, new)
            publish(published)
        return count

    monkeypatch.setattr(erased, "_write_without", interrupted)
    remove_rows(published, {"v0007"})

    left = sorted({*IDS, "new-1", "new-2"} - {"v0007"})
    [manifest, *_] = tables(published, tmp_path).values()
    assert manifest["video_id"].to_pylist() == left


@FOLDER
def test_a_manifest_that_is_never_left_alone_is_named(published: Corpus, monkeypatch: pytest.MonkeyPatch):
    write = erased._write_without

    def rewritten(before: Path, *others: Any) -> int:
        count = write(before, *others)
        for key in manifest_keys(published):
            published.store.put(key, before.read_bytes())
        return count

    monkeypatch.setattr(erased, "_write_without", rewritten)
    with pytest.raises(ManifestError, match=r"concat.* 20 times"):
        remove_rows(published, {"v0007"})


@FOLDER
def test_what_cannot_be_read_is_emptied_and_what_is_no_manifest_is_left(published: Corpus, tmp_path: Path):
    keys = published.keys
    published.store.put(keys.manifest(Stage.TEXT), b"PAR1 v0007 and half of it")
    other = f"{keys.manifests_folder()}notes.parquet"
    pq.write_table(pa.table({"note": ["v0007"]}), tmp_path / "notes")
    published.store.put(other, (tmp_path / "notes").read_bytes())
    etag = etag_of(published.store, other)

    removed = remove_rows(published, {"v0007"})

    assert removed[keys.manifest(Stage.TEXT)] == 1
    assert published.store.get(keys.manifest(Stage.TEXT)).data == b""
    assert remove_rows(published, {"v0007"}) == {}
    assert etag_of(published.store, other) == etag
    publish(published)
    assert remove_rows(published, {"v0007"}, dry_run=True)[keys.manifest(Stage.TEXT)] == 1
