"""A model whose vectors have another dimension, where fused vectors need the same of all modalities."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.rows import WorkItem, success_row
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.maintenance.migration import cut_over
from clipfarm_dagster.maintenance.readiness import cut_over_when_ready
from clipfarm_dagster.manifests.refresh import fused_file, refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import l2_normalise, to_npy
from clipfarm_dagster_tests.support.corpora import embed_all, open_corpus, write_metadata

IDS = [f"v{number}" for number in range(4)]
TEXT = Stage.TEXT


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Its settings ask for a model of 12 numbers, while one of 8 serves, fused in two ways."""
    old = open_corpus(tmp_path)
    write_metadata(old, IDS)
    for stage in Stage:
        contract_id = old.contract(stage).id
        old.serving.change(stage, lambda now, i=contract_id: Serving(i, "2026-01-31T08:00:00.000000Z"))  # type: ignore[misc]
    embed_all(old, IDS)
    for stage in Stage:
        with old.stage(stage) as opened:
            refresh_manifest(opened)
    for name in ("concat", "mean"):
        refresh_fused(old, make_strategy(name, ""))
    corpus = open_corpus(tmp_path, text={"model": "example/larger", "revision": "a" * 40})
    fill(corpus, dimension=12)
    return corpus


def fill(corpus: Corpus, dimension: int) -> None:
    """Store and record a vector of the candidate for each video, of the input of the serving one."""
    vectors = l2_normalise(np.random.default_rng(1).standard_normal((len(IDS), dimension)))
    with corpus.stage(TEXT) as serving:
        candidate = serving.under(corpus.contract(TEXT))
        served, rows = serving.ledger.rows(IDS), []
        for video_id, vector in zip(IDS, vectors, strict=True):
            was = served[video_id]
            assert was.source_hash is not None
            key = corpus.keys.generation(TEXT, candidate.contract.id, video_id)
            corpus.store.put(key, to_npy(vector))
            rows.append(
                success_row(
                    WorkItem(video_id, {}, was.metadata_hash or "", was.captured_at or ""),
                    candidate.contract,
                    datetime.now(UTC),
                    source_hash=was.source_hash,
                    raw_etag=was.raw_etag or "",
                    raw_sha256=None,
                    artifact_key=key,
                    vector=vector,
                    seconds=None,
                    note=None,
                )
            )
        candidate.ledger.record_contract(candidate.contract)
        candidate.ledger.record(rows)
        candidate.ledger.push()


def test_it_does_not_serve_by_itself_if_vectors_could_be_fused_no_more(corpus: Corpus):
    found = cut_over_when_ready(corpus, TEXT)

    assert found is not None
    [missing] = found.missing
    assert "'mean' needs vectors of equal dimension" in missing
    assert corpus.serving.read()[TEXT].contract_id != corpus.contract(TEXT).id


def test_if_nothing_is_fused_that_way_it_serves(corpus: Corpus):
    corpus.store.delete(corpus.keys.fused_manifest("mean"))

    found = cut_over_when_ready(corpus, TEXT)

    assert found is not None
    assert found.ready
    assert corpus.serving.read()[TEXT].contract_id == corpus.contract(TEXT).id
    assert count_vectors(fused_file(corpus, "concat")) == (4, 8 + 8 + 12)


def test_if_a_person_lets_it_serve_no_fused_vectors_are_left_that_are_of_others(corpus: Corpus):
    cut_over(corpus, TEXT, corpus.contract(TEXT).id)

    serving = corpus.serving.read()[TEXT]
    assert (serving.contract_id, serving.settled) == (corpus.contract(TEXT).id, True)
    assert corpus.store.head(corpus.keys.fused_manifest("mean")) is None
    ids = [video_id for some, _ in iter_vectors(fused_file(corpus, "concat")) for video_id in some]
    assert ids == IDS
