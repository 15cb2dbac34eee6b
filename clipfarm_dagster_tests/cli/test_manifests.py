"""`clipfarm manifests`: written where something is new, and left alone otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.manifests.refresh import fused_file
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.corpora import embed_all, write_metadata

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


def test_manifests_are_made_and_then_up_to_date(corpus: Corpus, clipfarm: Callable[..., Ended]):
    embed_all(corpus, ["a", "b"])
    write_metadata(corpus, ["a", "b"])
    keys = {*(corpus.keys.manifest(stage) for stage in Stage), corpus.keys.fused_manifest("concat")}

    first = clipfarm("manifests", "--json")
    etag = fused_file(corpus, "concat").etag
    again = clipfarm("manifests", "--json")

    assert (first.code, again.code) == (0, 0)
    assert {entry["key"] for entry in first.json["manifests"]} == keys
    assert [(entry["rows"], entry["written"]) for entry in first.json["manifests"]] == [(2, True)] * 4
    assert [(entry["rows"], entry["written"]) for entry in again.json["manifests"]] == [(2, False)] * 4
    assert fused_file(corpus, "concat").etag == etag
    assert "fused_manifest.parquet" in clipfarm("manifests").output


def test_a_store_that_cannot_be_written_is_exit_code_2(corpus: Corpus, clipfarm: Callable[..., Ended]):
    embed_all(corpus, ["a"])
    write_metadata(corpus, ["a"])
    corpus.store.put(f"{corpus.keys.manifest(Stage.TEXT)}/in-the-way", b"")

    ended = clipfarm("manifests", "--json")

    assert (ended.code, ended.output) == (2, "")
    assert "text.parquet" in ended.errors
