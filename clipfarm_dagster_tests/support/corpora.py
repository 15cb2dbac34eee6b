"""Corpora whose vectors were not made by a model: real store, real ledgers, random unit vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.rows import WorkItem, success_row
from clipfarm_dagster.maintenance.migration import move_vectors
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.vectors.hashing import metadata_hash, source_hash
from clipfarm_dagster.vectors.npy import l2_normalise, to_npy

DIMENSIONS = {Stage.VIDEO: 8, Stage.AUDIO: 8, Stage.TEXT: 8}
CAPTURED = "2026-01-31T08:00:00.000000Z"


def open_corpus(home: Path, store: ObjectStore | None = None, **settings: Any) -> Corpus:
    """A corpus in `home` with the default models, of which nothing is loaded."""
    url = store.url if store is not None else str(home / "store")
    return Corpus.open(load_settings(home=home, store_url=url, **settings))


def etag_of(store: ObjectStore, key: str) -> str:
    """The ETag of an object that exists."""
    info = store.head(key)
    assert info is not None, key
    return info.etag


def embed(
    corpus: Corpus,
    stage: Stage,
    video_ids: Sequence[str],
    *,
    version: str = "1",
    dimension: int | None = None,
    at: datetime | None = None,
) -> dict[str, np.ndarray]:
    """Store and record a vector for each id, as the engine does; another `version` is another input."""
    contract, made = corpus.contract(stage), {}
    rows = []
    with corpus.ledger(stage) as ledger:
        previous = ledger.rows(video_ids)
    for video_id in video_ids:
        seed = list(f"{stage}/{video_id}/{version}".encode())
        numbers = np.random.default_rng(seed).standard_normal((1, dimension or DIMENSIONS[stage]))
        [vector] = l2_normalise(numbers)
        key = corpus.keys.embedding(stage, video_id)
        hashed = metadata_hash([version])
        rows.append(
            success_row(
                WorkItem(video_id, {}, hashed, CAPTURED, previous.get(video_id)),
                contract,
                at or datetime.now(UTC),
                source_hash=source_hash(hashed, version),
                raw_etag=version,
                raw_sha256=version,
                artifact_key=key,
                vector=vector,
                seconds=0.1,
                note=None,
            )
        )
        corpus.store.put(key, to_npy(vector))
        made[video_id] = vector
    with corpus.ledger(stage) as ledger:
        ledger.record_contract(contract)
        ledger.record(rows)
    return made


def embed_all(
    corpus: Corpus, video_ids: Sequence[str], **options: Any
) -> Mapping[Stage, dict[str, np.ndarray]]:
    """`embed` in every stage."""
    return {stage: embed(corpus, stage, video_ids, **options) for stage in Stage}


def move_aside(corpus: Corpus) -> None:
    """Bring all vectors of every stage to other keys, as a cut-over does."""
    for stage in Stage:
        with corpus.stage(stage) as opened:
            assert move_vectors(opened, corpus.keys.generation_folder(stage, opened.contract.id)).lost == 0


def write_metadata(corpus: Corpus, video_ids: Sequence[str]) -> None:
    """Put a metadata CSV with these videos into the store."""
    lines = ["video_id,captured_at,title,description,query"]
    lines += [f"{i},{CAPTURED},Title of {i},About {i},query {n % 3}" for n, i in enumerate(video_ids)]
    corpus.store.put(corpus.keys.metadata(), "\n".join(lines).encode())
