"""A corpus of texts with two generations, one of which serves."""

from __future__ import annotations

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.engine.engine import LocalComputing, embed_items
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.ledger.serving import Serving, VectorPlace
from clipfarm_dagster.ledger.verify import verify_vectors
from clipfarm_dagster.manifests.refresh import refresh_manifest, stored_manifest
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import from_npy, vector_sha256
from clipfarm_dagster_tests.support.hashing_encoder import HashingEncoder
from clipfarm_dagster_tests.support.machines import OPTIONS, put_texts, put_transcript

IDS = [f"v{n}" for n in range(8)]
TEXT = Stage.TEXT


def embed(
    opened: StageCorpus,
    corpus: Corpus,
    video_ids: list[str] = IDS,
    *,
    items: list[WorkItem] | None = None,
    place: VectorPlace | None = None,
) -> HashingEncoder:
    """Bring some vectors of a generation up to date; with `items` or a `place` of before."""
    encoder = HashingEncoder(opened.contract, set(), None)
    embed_items(
        items or opened.work_items(video_ids, corpus.latest_rows()),
        contract=opened.contract,
        computing=LocalComputing(lambda: encoder),
        store=corpus.store,
        keys=corpus.keys,
        ledger=opened.ledger,
        options=OPTIONS,
        on_recorded=lambda outcomes: None,
        place=place or opened.place,
    )
    opened.ledger.push()
    return encoder


def texts(title: str = "a title") -> dict[str, tuple[str, str, str]]:
    return {video_id: (title, video_id, "q") for video_id in IDS}


class Two:
    """A corpus with two generations: one serves, the other is whole."""

    def __init__(self, corpus: Corpus, other: Corpus) -> None:
        self.corpus, self.other = corpus, other
        self.old, self.new = corpus.contract(TEXT).id, other.contract(TEXT).id
        corpus.serving.change(TEXT, lambda now: Serving(self.old, "2026-01-01T00:00:00.000000Z"))
        put_texts(corpus, texts(), minute=0)
        for video_id in IDS:
            put_transcript(corpus, video_id, f"words of {video_id}")
        with corpus.stage(TEXT) as opened:
            embed(opened, corpus)
            refresh_manifest(opened)
            embed(opened.under(other.contract(TEXT)), corpus)

    def published(self) -> str:
        """The contract of the manifest that readers find; each of its keys leads to the vector it names."""
        manifest, _ = stored_manifest(self.corpus, TEXT)
        rows = manifest.table.to_pylist()
        assert [row["video_id"] for row in rows] == IDS
        for row in rows:
            vector = from_npy(self.corpus.store.get(row["embedding_key"]).data)
            assert vector_sha256(vector) == row["artifact_sha256"], row["embedding_key"]
        return manifest.contract.id

    def is_settled(self, serving: str, aside: str) -> None:
        """All vectors are where they belong, and are what the ledger says."""
        with self.corpus.stage(TEXT) as opened:
            assert (opened.contract.id, opened.serving and opened.serving.settled) == (serving, True)
            for contract_id, folder in (
                (serving, self.corpus.keys.embedding_folder(TEXT)),
                (aside, self.corpus.keys.generation_folder(TEXT, aside)),
            ):
                ledger = opened.ledger.of(contract_id)
                assert [f.problem for f in verify_vectors(ledger, self.corpus.store, self.corpus.keys)] == [
                    None for _ in IDS
                ]
                keys = {row.artifact_key for row in ledger.rows(IDS).values()}
                assert keys == {f"{folder}{video_id}.npy" for video_id in IDS}
        assert self.corpus.store.list(self.corpus.keys.generation_folder(TEXT, serving)).num_rows == 0
        assert self.published() == serving
