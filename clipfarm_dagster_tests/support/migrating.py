"""A corpus of texts whose model is being changed: one generation serves, another is a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.engine.engine import EngineOptions, embed_items
from clipfarm_dagster.ledger.rows import RetryPolicy
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.manifests.refresh import refresh_manifest
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import Settings, load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

TEXTS = {
    "bread": "Baking sourdough bread from flour, water and salt",
    "cake": "Baking a chocolate cake for a birthday",
    "soup": "Cooking a hot soup of tomatoes and onions",
    "boat": "A sailing boat in a storm on the open sea",
    "ship": "A container ship in the harbour at night",
    "surf": "Surfing on high waves near the coast",
    "chess": "A grandmaster's endgame on the chess board",
    "cards": "A trick with playing cards for a party",
}
OPTIONS = EngineOptions(
    workers=1, item_timeout_seconds=60, max_object_bytes=10_000, retry=RetryPolicy(1, 1e-6)
)
TEXT = Stage.TEXT


class Migrating:
    """`old` serves; `new` is what the settings of `wants_new` ask for, the same model in less precision."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.wants_new = Corpus.open(load_settings(text={"dtype": "bfloat16"}))
        self.old, self.new = corpus.contract(TEXT).id, self.wants_new.contract(TEXT).id
        corpus.serving.change(TEXT, lambda now: Serving(self.old, "2026-01-31T08:00:00.000000Z"))
        self.put(TEXTS)
        self.embed(self.old, list(TEXTS))
        with corpus.stage(TEXT) as opened:
            refresh_manifest(opened)

    def put(self, texts: dict[str, str]) -> None:
        """Write metadata and transcripts."""
        put_metadata(self.corpus, [metadata_row(i, title=text) for i, text in texts.items()])
        for video_id, text in texts.items():
            put_transcript(self.corpus, video_id, f"This is about {text.lower()}")

    def embed(self, generation: str, video_ids: Sequence[str]) -> None:
        """Bring some vectors of a generation up to date, with its own model."""
        corpus = self.corpus if generation == self.old else self.wants_new
        with corpus.stage(TEXT, generation) as opened:
            embed_items(
                opened.work_items(video_ids, corpus.latest_rows()),
                contract=opened.contract,
                load_encoder=lambda: encoder(opened.model_settings),
                store=corpus.store,
                keys=corpus.keys,
                ledger=opened.ledger,
                options=OPTIONS,
                on_recorded=lambda outcomes: None,
                place=opened.place,
            )
            opened.ledger.push()


def encoder(settings: Settings) -> Encoder:
    """The text model, loaded once for all tests."""
    return _encoder(settings.text.model, settings.text.dtype)


@cache
def _encoder(model: str, dtype: str) -> Encoder:
    return load_encoder(TEXT, load_settings(text={"model": model, "dtype": dtype}, device="cpu"))
