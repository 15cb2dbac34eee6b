"""A machine with a home folder of its own over a store that others use too, and its turn at a corpus."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.engine.engine import EngineOptions, LocalComputing, embed_items
from clipfarm_dagster.errors import ManifestError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import RetryPolicy
from clipfarm_dagster.maintenance.migration import finish_cut_over
from clipfarm_dagster.maintenance.readiness import cut_over_when_ready
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.hashing_encoder import FIELDS, HashingEncoder
from clipfarm_dagster_tests.support.raw import put_metadata
from clipfarm_dagster_tests.support.stages import opened

OPTIONS = EngineOptions(
    workers=1, item_timeout_seconds=60, max_object_bytes=10_000, retry=RetryPolicy(2, 1e-6)
)


def open_corpus(home: Path, store: ObjectStore, contract: int = 0, **settings: object) -> Corpus:
    """The corpus in a store as the machine with the folder `home` sees it, with one of some text models."""
    model = {"model": "example/model", "revision": f"{contract:040}"}
    return Corpus(load_settings(home=home, store_url=store.url, text=model, **settings), store)


def put_texts(corpus: Corpus, texts: dict[str, tuple[str, str, str]], minute: int) -> None:
    """Write the metadata CSV, with title, description and query of each video."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    rows = [
        {"video_id": video_id, "captured_at": at.isoformat(), **dict(zip(FIELDS, values, strict=True))}
        for video_id, values in texts.items()
    ]
    put_metadata(corpus, rows)


def put_transcript(corpus: Corpus, video_id: str, transcript: str) -> None:
    """Write a raw object of the text stage."""
    corpus.store.put(corpus.keys.raw(Stage.TEXT, video_id), json.dumps({"transcript": transcript}).encode())


def sync_texts(corpus: Corpus) -> Counter[str]:
    """Plan, run and push, as `clipfarm sync` does; returns the ids that went through the model."""
    with corpus.ledger(Stage.TEXT) as ledger:
        embedded = embed_texts(corpus, ledger)
        ledger.push()
    return embedded


def embed_texts(corpus: Corpus, ledger: Ledger) -> Counter[str]:
    """Plan and run over an open ledger; returns the ids that went through the model."""
    contract = corpus.contract(Stage.TEXT)
    encoder = HashingEncoder(contract, set(), None)
    plan = opened(corpus, ledger).plan(corpus.latest_rows())
    opened(corpus, ledger).record_settled(plan)
    embed_items(
        opened(corpus, ledger).work_items(plan.work["video_id"].to_pylist(), corpus.latest_rows()),
        contract=contract,
        computing=LocalComputing(lambda: encoder),
        store=corpus.store,
        keys=corpus.keys,
        ledger=ledger,
        options=OPTIONS,
        on_recorded=lambda outcomes: None,
    )
    return encoder.embedded


def sync_generations(corpus: Corpus) -> None:
    """Bring what serves up to date, then what the settings ask for, and let that serve when it has all, as
    `clipfarm sync` does."""
    with contextlib.suppress(ManifestError):
        finish_cut_over(corpus, Stage.TEXT)
    with corpus.stage(Stage.TEXT) as serving:
        _embed_stage(corpus, serving)
    finish_cut_over(corpus, Stage.TEXT)
    with corpus.stage(Stage.TEXT) as serving:
        candidate = serving.candidate()
        if candidate is not None:
            _embed_stage(corpus, candidate)
    if candidate is not None:
        found = cut_over_when_ready(corpus, Stage.TEXT)
        if found is not None and found.ready:
            with corpus.stage(Stage.TEXT) as serving:
                _embed_stage(corpus, serving)


def _embed_stage(corpus: Corpus, opened: StageCorpus) -> None:
    latest = corpus.latest_rows()
    plan = opened.plan(latest)
    opened.record_settled(plan)
    if plan.work.num_rows:
        opened.want_again()
    encoder = HashingEncoder(opened.contract, set(), None)
    embed_items(
        opened.work_items(plan.work["video_id"].to_pylist(), latest),
        contract=opened.contract,
        computing=LocalComputing(lambda: encoder),
        store=corpus.store,
        keys=corpus.keys,
        ledger=opened.ledger,
        place=opened.place,
        options=OPTIONS,
        on_recorded=lambda outcomes: None,
    )
    opened.ledger.push()
