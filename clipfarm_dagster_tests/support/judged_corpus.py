"""A corpus of texts and the truth about it, side by side: what ClipFarm does is judged step by step.

Everything is real but the text model, an encoder that hashes its input and counts what it is given.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.engine.engine import EngineOptions, LocalComputing, embed_items
from clipfarm_dagster.errors import LedgerError, ManifestError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import RetryPolicy
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.maintenance import erasure, migration
from clipfarm_dagster.maintenance.readiness import cut_over_when_ready
from clipfarm_dagster.manifests.refresh import refresh_manifest, stored_manifest
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import from_npy, vector_sha256
from clipfarm_dagster_tests.support.hashing_encoder import FIELDS, HashingEncoder, Interrupted, vector_of
from clipfarm_dagster_tests.support.raw import put_metadata
from clipfarm_dagster_tests.support.truth import MAX_ATTEMPTS, Item, Truth

IDS = [f"v{n:02}" for n in range(24)]
CONTRACTS = 3
TEXT = Stage.TEXT
OPTIONS = EngineOptions(
    workers=2, item_timeout_seconds=60, max_object_bytes=10_000, retry=RetryPolicy(MAX_ATTEMPTS, 1e-6)
)


STATUSES: dict[str, set[str]] = {
    "new": {"new"},
    "success": {Status.SUCCESS},
    "missing": {Status.MISSING_RAW_OBJECT},
    "failed": {Status.FAIL, Status.INVALID_RAW_OBJECT, Status.QUARANTINED},
}


class JudgedCorpus:
    """The real corpus and the model of the truth, changed together."""

    def __init__(self, folder: Path) -> None:
        model = {"model": "example/model"}
        self.corpora = [
            Corpus.open(
                load_settings(
                    home=folder, store_url=str(folder / "store"), text={**model, "revision": f"{n:040}"}
                )
            )
            for n in range(CONTRACTS)
        ]
        self.ids = [corpus.contract(TEXT).id for corpus in self.corpora]
        self.truth = Truth(IDS, self.ids[0])
        self.minute, self.mutations = 10, 0
        self.touched: set[str] = set()
        """Videos whose vectors may have changed since the manifest was written for sure."""
        self.did: Counter[str] = Counter()

    @property
    def corpus(self) -> Corpus:
        return self.corpora[self.ids.index(self.truth.wanted)]

    # what is done in steps

    def delete_raw(self, video_id: str) -> None:
        self.corpus.store.delete(self.corpus.keys.raw(TEXT, video_id))
        self.truth.videos[video_id].raw = None

    def finish_erasures(self) -> None:
        erased = self.corpus.tombstones.read()
        if erased.unfinished:
            self.put_metadata()
            assert erasure.finish(self.corpus) == []
            for video_id in erased.among(IDS):
                if erased.erasures[erased.tombstone(video_id)].raw:
                    self.delete_raw(video_id)

    def switched(self) -> None:
        self.truth.switch()
        self.truth.settled = True
        self.did["cut-overs"] += 1
        self.touched = set()
        self._check_published(whole=True)

    # what ClipFarm does

    def sync(self, *, interrupt_after: int | None = None, crash: bool = False, late: bool = False) -> None:
        """What serves, then the candidate, which serves when it has all; judged by the model.

        Args:
            interrupt_after: so many items are embedded in the pass that is interrupted.
            crash: the disk goes away when rows are to be recorded, after their vectors were uploaded.
            late: the candidate is interrupted, or crashes, if there is one.
        """
        self.put_metadata()
        self.finish_erasures()
        self._finish_cut_over()
        truth, has_candidate = self.truth, self.truth.wanted != self.truth.serving
        disturbed = (None, False), (interrupt_after, crash)
        if not self._pass(truth.serving, *disturbed[not late or not has_candidate]):
            return
        self._finish_cut_over()
        if has_candidate and not self._pass(truth.wanted, *disturbed[late]):
            return
        if has_candidate:
            due = truth.serves_by_itself()
            found = cut_over_when_ready(self.corpus, TEXT)
            assert found is not None
            assert found.ready == due, (found, truth.lacking(truth.wanted))
            if due:
                self.did["automatic cut-overs"] += 1
                truth.begin(truth.wanted)
                self.switched()
                assert self._pass(truth.serving)
        with self.corpus.stage(TEXT) as opened:
            assert opened.contract.id == truth.serving
            refresh_manifest(opened)
        self.touched = set()
        self._check_published(whole=True)

    def _finish_cut_over(self) -> None:
        try:
            done = migration.finish_cut_over(self.corpus, TEXT)
        except ManifestError:
            self.truth.switch()
            assert self.truth.incomplete(self.truth.serving)
            return
        assert done == (self.truth.following is not None or not self.truth.settled)
        if done:
            self.switched()

    def _pass(self, generation: str, interrupt_after: int | None = None, crash: bool = False) -> bool:
        """Plan and embed one generation; whether that came to its end."""
        truth = self.truth
        truth.passes += 1
        with self.corpus.stage(TEXT) as serving:
            assert serving.contract.id == truth.serving
            opened = serving if generation == truth.serving else serving.candidate()
            assert opened is not None
            assert opened.contract.id == generation
            expected = {video_id: truth.expected(generation, video_id) for video_id in IDS}
            before, latest = opened.ledger.rows(IDS), self.corpus.latest_rows()
            plan = opened.plan(latest)
            opened.record_settled(plan)
            work = plan.work["video_id"].to_pylist()
            assert work == sorted(work, key=truth.order)
            encoder = HashingEncoder(
                opened.contract, {i for contract_id, i in truth.broken if contract_id == generation}, None
            )
            encoder.interrupt_after = interrupt_after
            whole = True
            try:
                with crashing() if crash else contextlib.nullcontext():
                    self._embed(opened, work, encoder)
            except (Interrupted, LedgerError):
                whole = False
            opened.ledger.push()
            truth.dropped.discard(generation)
            self._judge(generation, expected, before, opened.ledger.rows(IDS), encoder, whole)
            if whole:
                again = opened.plan(latest)
                due = {i for i in IDS if truth.expected(generation, i) in ("embedded", "fails", "invalid")}
                assert set(again.work["video_id"].to_pylist()) == due <= encoder.broken
                assert again.missing.num_rows == again.restored.num_rows == 0
                assert not truth.incomplete(generation)
            self._check_vectors(opened)
        return whole

    def _embed(self, opened: StageCorpus, work: Sequence[str], encoder: HashingEncoder) -> None:
        opened.want_again()
        embed_items(
            opened.work_items(work, self.corpus.latest_rows()),
            contract=opened.contract,
            computing=LocalComputing(lambda: encoder),
            store=self.corpus.store,
            keys=self.corpus.keys,
            ledger=opened.ledger,
            place=opened.place,
            options=OPTIONS,
            on_recorded=lambda outcomes: None,
        )

    def put_metadata(self) -> None:
        begin = datetime(2026, 1, 1, tzinfo=UTC)
        put_metadata(
            self.corpus,
            [
                {
                    "video_id": name,
                    "captured_at": (begin + timedelta(minutes=minute)).isoformat(),
                    **dict(zip(FIELDS, texts, strict=True)),
                }
                for name, video in self.truth.videos.items()
                for minute, texts in video.rows
            ],
        )

    def _judge(
        self,
        generation: str,
        expected: Mapping[str, str],
        before: Mapping[str, LedgerRow],
        after: Mapping[str, LedgerRow],
        encoder: HashingEncoder,
        whole: bool,
    ) -> None:
        to_embed, to_fail = (
            Counter(name for name, what in expected.items() if what == kind) for kind in ("embedded", "fails")
        )
        self.did["model calls"] += encoder.embedded.total()
        if whole:
            assert encoder.embedded == to_embed
            assert encoder.failed == to_fail
        else:
            assert encoder.embedded <= to_embed
            assert encoder.failed <= to_fail
        if generation == self.truth.serving:
            self.touched |= encoder.embedded.keys()
        items = self.truth.items(generation)
        for video_id, what in expected.items():
            recorded = whole or after.get(video_id) != before.get(video_id)
            row = after.get(video_id)
            if what == "embedded" and (row is None or row.vector_source_hash is None):
                if video_id in encoder.embedded:  # perhaps uploaded, and not recorded
                    assert not whole
                    items[video_id].vector = None
            elif what in ("gone", "missing") or (recorded and self._happened(what, video_id, encoder)):
                self.truth.did(generation, video_id, what)
        for video_id in IDS:
            # a row without a status only marks a vector of which a crash has left nothing known
            row, item = after.get(video_id), items.get(video_id)
            assert item is not None or row is None, f"{video_id} was erased, and is back"
            if item is not None:
                assert ((row and row.status) or "new") in STATUSES[item.status], (video_id, row, item)

    def _happened(self, what: str, video_id: str, encoder: HashingEncoder) -> bool:
        return what not in ("erased", "nothing") and (what != "embedded" or video_id in encoder.embedded)

    # what has to hold

    def _check_vectors(self, opened: StageCorpus) -> None:
        """A vector of which something is known is made of that."""
        rows = opened.ledger.rows(IDS)
        for video_id, item in self.truth.items(opened.contract.id).items():
            if item.vector is not None:
                stored = from_npy(self.corpus.store.get(str(rows[video_id].artifact_key)).data)
                assert np.array_equal(stored, expected_vector(item, opened.contract.id)), video_id

    def check_readers(self) -> None:
        """Whatever has happened, a manifest leads to vectors of one generation."""
        self._check_published(whole=False)

    def _check_published(self, *, whole: bool) -> None:
        manifest, _ = stored_manifest(self.corpus, TEXT)
        generation = manifest.contract.id
        seen = self.truth.seen(generation)
        rows = {row["video_id"]: row for row in manifest.table.to_pylist()}
        assert len(rows) == manifest.table.num_rows
        if whole:
            assert generation == self.truth.serving
            assert rows.keys() == seen.keys()
        for video_id in rows.keys() - self.touched:
            vector = from_npy(self.corpus.store.get(rows[video_id]["embedding_key"]).data)
            assert vector_sha256(vector) == rows[video_id]["artifact_sha256"]
            assert np.array_equal(
                vector, expected_vector(self.truth.items(generation)[video_id], generation)
            ), video_id


def expected_vector(item: Item, contract_id: str) -> np.ndarray[Any, Any]:
    assert item.vector is not None
    texts, raw = item.vector
    return vector_of((json.loads(raw)["transcript"], *texts), contract_id)


@contextlib.contextmanager
def crashing() -> Iterator[None]:
    """The ledger's disk goes away: after vectors were uploaded, before their rows are recorded."""

    def record(ledger: Ledger, rows: Sequence[LedgerRow]) -> set[str]:
        raise LedgerError("the disk is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "record", record)
        yield
