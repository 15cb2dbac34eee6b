"""A corpus of texts whose model is being changed: one generation serves, another is a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.rows import success_row
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.manifests.refresh import refresh_manifest
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import Settings, load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.hashing import source_hash
from clipfarm_dagster.vectors.npy import to_npy
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
        """Store and record some vectors of a generation, made by its own model, as the engine does."""
        corpus = self.corpus if generation == self.old else self.wants_new
        with corpus.stage(TEXT, generation) as opened:
            contract, model, rows = opened.contract, encoder(opened.model_settings), []
            for item in opened.work_items(video_ids, corpus.latest_rows()):
                raw = corpus.store.get(corpus.keys.raw(TEXT, item.video_id))
                [vector] = model.encode([model.preparer(raw.data, item.metadata)])
                known = None if item.previous is None else item.previous.artifact_key
                [key] = opened.place.keys_now([(item.video_id, known)])
                corpus.store.put(key, to_npy(vector))
                rows.append(
                    success_row(
                        item,
                        contract,
                        datetime.now(UTC),
                        source_hash=source_hash(item.metadata_hash, raw.info.etag),
                        raw_etag=raw.info.etag,
                        raw_sha256=sha256(raw.data).hexdigest(),
                        artifact_key=key,
                        vector=vector,
                        seconds=0.1,
                        note=None,
                    )
                )
            opened.ledger.record_contract(contract)
            opened.ledger.record(rows)
            opened.ledger.push()


def encoder(settings: Settings) -> Encoder:
    """The text model, loaded once for all tests."""
    return _encoder(settings.text.model, settings.text.dtype)


@cache
def _encoder(model: str, dtype: str) -> Encoder:
    return load_encoder(TEXT, load_settings(text={"model": model, "dtype": dtype}, device="cpu"))
