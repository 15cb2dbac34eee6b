"""Random histories of a corpus beside a model of the truth: what must be embedded is, and nothing else.

Models change, generations serve, are gone back from and dropped, videos are erased, processes crash. Everything
is real but the text model, an encoder that hashes its input and counts what it is given.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.engine.engine import EngineOptions, embed_items
from clipfarm_dagster.errors import LedgerError, ManifestError, MigrationError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import RetryPolicy
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.serving import ServingRecord
from clipfarm_dagster.ledger.verify import repair_vectors, retry_failures, verify_vectors
from clipfarm_dagster.maintenance import erasure, migration
from clipfarm_dagster.maintenance.dropping import drop_generation
from clipfarm_dagster.maintenance.readiness import cut_over_when_ready, readiness
from clipfarm_dagster.manifests.refresh import refresh_manifest, stored_manifest
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.vectors.npy import from_npy, vector_sha256
from clipfarm_dagster_tests.support.hashing_encoder import FIELDS, HashingEncoder, Interrupted, vector_of
from clipfarm_dagster_tests.support.killing import Killed, killing
from clipfarm_dagster_tests.support.raw import put_metadata
from clipfarm_dagster_tests.support.truth import MAX_ATTEMPTS, Item, Truth

IDS = [f"v{n:02}" for n in range(24)]
CONTRACTS = 3
TEXT = Stage.TEXT
OPTIONS = EngineOptions(
    workers=2, item_timeout_seconds=60, max_object_bytes=10_000, retry=RetryPolicy(MAX_ATTEMPTS, 1e-6)
)
CUT_OVER_STEPS = (
    (ServingRecord, "change"),
    (Ledger, "replace"),
    (Ledger, "push"),
    (ObjectStore, "copy_each"),
    (ObjectStore, "delete_each"),
    (migration, "refresh_manifest"),
)
"""What a cut-over does that changes something."""


class World:
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

    # what happens to a corpus

    def mutate(self, kind: str, video_id: str, value: int) -> None:
        self.mutations += 1
        getattr(self, kind)(video_id, value)

    def newer_snapshot(self, video_id: str, value: int) -> None:
        self.minute += 1
        texts = self.truth.videos[video_id].texts or tuple(f"{name} {value % 3}" for name in FIELDS)
        self.truth.videos[video_id].rows.append((self.minute, texts))

    def older_snapshot(self, video_id: str, value: int) -> None:
        rows = self.truth.videos[video_id].rows
        rows.insert(value % (len(rows) + 1), (value % 9, ("older", "older", f"older {value}")))

    def change_caption(self, video_id: str, value: int) -> None:
        texts = list(self.truth.videos[video_id].texts or FIELDS)
        texts[value % 3] = f"another {value % 2}"
        self.minute += 1
        self.truth.videos[video_id].rows.append((self.minute, tuple(texts)))

    def upload_raw(self, video_id: str, value: int) -> None:
        self._put_raw(video_id, json.dumps({"transcript": f"{video_id}:{value % 3}"}).encode())

    def upload_invalid_raw(self, video_id: str, value: int) -> None:
        self._put_raw(video_id, b"{}" if value % 2 else b"cut off")

    def upload_same_raw(self, video_id: str, value: int) -> None:
        raw = self.truth.videos[video_id].raw
        if raw is None:
            self.upload_raw(video_id, value)
        else:
            self._put_raw(video_id, raw)

    def delete_raw(self, video_id: str, value: int) -> None:
        self.corpus.store.delete(self.corpus.keys.raw(TEXT, video_id))
        self.truth.videos[video_id].raw = None

    def _put_raw(self, video_id: str, raw: bytes) -> None:
        self.corpus.store.put(self.corpus.keys.raw(TEXT, video_id), raw)
        self.truth.videos[video_id].raw = raw
        self.truth.videos[video_id].upload += 1

    def break_model(self, video_id: str, value: int) -> None:
        self.truth.broken.add((self.ids[value % CONTRACTS], video_id))

    def mend_model(self, video_id: str, value: int) -> None:
        self.truth.broken -= {(contract_id, video_id) for contract_id in self.ids}

    def change_contract(self, video_id: str, value: int) -> None:
        if value % 3 == 0:  # seldom: it is a change to every video
            self.truth.wanted = self.ids[value // 3 % CONTRACTS]

    def change_cut_over(self, video_id: str, value: int) -> None:
        self.truth.automatic = value % 3 > 0
        for corpus in self.corpora:
            chosen = "auto" if self.truth.automatic else "manual"
            corpus.settings = corpus.settings.model_copy(update={"cut_over": chosen})

    def lose_vector(self, video_id: str, value: int) -> None:
        """… and `verify --repair` finds it."""
        store, known = self.corpus.store, sorted(self.truth.generations)
        generation = known[value // 2 % len(known)]
        item = self.truth.items(generation).get(video_id, Item())
        with self.corpus.stage(TEXT) as opened:
            ledger = opened.ledger.of(generation)
            row = ledger.rows([video_id]).get(video_id)
            if row is None or row.vector_source_hash is None:  # what lies at its key may be another's
                return
            assert item.vector is not None
            key = self.corpus.keys.vector(TEXT, video_id, row.artifact_key)
            if value % 2:
                store.delete(key)
            else:
                store.put(key, store.get(key).data[:-3])
            findings = verify_vectors(ledger, store, self.corpus.keys)
            bad = [finding for finding in findings if finding.problem is not None]
            found = {finding.video_id for finding in bad}
            assert video_id in found
            others = self.truth.items(generation)
            assert all(others[other].vector is None for other in found - {video_id})
            assert set(repair_vectors(ledger, bad)) == found
        item.vector = None
        self.touched.add(video_id)

    def remove_id(self, video_id: str, value: int) -> None:
        self.truth.videos[video_id].rows.clear()

    def rename(self, video_id: str, value: int) -> None:
        other, texts = IDS[value % len(IDS)], self.truth.videos[video_id].texts
        if other != video_id and texts is not None:
            self.minute += 1
            self.truth.videos[other].rows.append((self.minute, texts))
            self.upload_raw(other, value)
            self.remove_id(video_id, value)

    def retry_all(self, video_id: str, value: int) -> None:
        generation = (self.truth.serving, self.truth.wanted)[value % 2]
        items = self.truth.items(generation)
        failed = {name for name, item in items.items() if item.status == "failed"}
        with self.corpus.stage(TEXT) as opened:
            assert set(retry_failures(opened.ledger.of(generation))) == failed
        for name in failed:
            items[name].failures, items[name].given_up = 0, False

    def erase(self, video_id: str, value: int) -> None:
        """… now, or with the next sync."""
        if value % 6 == 0:
            self.corpus.tombstones.add([video_id], raw=value % 4 == 0)
            self.truth.videos[video_id].erased = True
            self.touched.add(video_id)
            if value % 9 < 3:
                self._finish_erasures()

    def _finish_erasures(self) -> None:
        erased = self.corpus.tombstones.read()
        if erased.unfinished:
            self._put_metadata()
            assert erasure.finish(self.corpus) == []
            for video_id in erased.among(IDS):
                if erased.erasures[erased.tombstone(video_id)].raw:
                    self.delete_raw(video_id, 0)

    # what people do about generations

    def cut_over(self, video_id: str, value: int) -> None:
        """A person lets the wanted generation serve, or the one before; sometimes as it is."""
        truth = self.truth
        target = truth.wanted if truth.wanted != truth.serving else truth.before
        if value % 2 or target is None or not truth.settled or truth.following is not None:
            return
        self._put_metadata()
        found = readiness(self.corpus, TEXT, target)
        assert found is not None
        assert (not found.missing) == truth.may_serve(target), found
        if found.missing and value % 5:
            return
        if target in truth.dropped or not truth.has_success(target):
            with pytest.raises(MigrationError):
                migration.cut_over(self.corpus, TEXT, target)
            return
        truth.begin(target)
        self._switch(target, going_back=False, kill_at=value % 7 * 3 if value % 3 == 0 else 0)

    def roll_back(self, video_id: str, value: int) -> None:
        target = self.truth.way_back()
        if value % 3:
            return
        if target is None:
            with pytest.raises(MigrationError):
                migration.way_back(self.corpus, TEXT)
            return
        assert migration.way_back(self.corpus, TEXT) == target
        if not self.truth.has_success(target):
            return
        self.truth.begin(target, going_back=True)
        self._switch(target, going_back=True, kill_at=value % 5 * 4 if value % 2 else 0)

    def _switch(self, target: str, *, going_back: bool, kill_at: int) -> None:
        """A cut-over, whole or broken off."""
        before = self.corpus.serving.read()[TEXT]
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, kill_at, *CUT_OVER_STEPS)
            try:
                migration.cut_over(self.corpus, TEXT, target, going_back=going_back)
            except Killed:
                self.did["killed cut-overs"] += 1
                self._killed(unchanged=self.corpus.serving.read()[TEXT] == before, going_back=going_back)
            except ManifestError:
                self.truth.switch()
                assert self.truth.incomplete(self.truth.serving)
            else:
                self._switched()

    def _killed(self, *, unchanged: bool, going_back: bool) -> None:
        """See how far a cut-over came that was broken off."""
        now, truth = self.corpus.serving.read()[TEXT], self.truth
        if now.contract_id == truth.following:
            truth.switch()
            truth.settled = now.settled
            self.touched = set()
        elif unchanged and now.following is None and truth.following is not None:
            truth.following, truth.rolled_back = None, now.rolled_back
        elif unchanged and truth.following is None:
            truth.settled, truth.following, truth.rolled_back = now.settled, now.following, now.rolled_back
        elif truth.following is None:
            truth.settled = now.settled
        assert (now.contract_id, now.following) == (truth.serving, truth.following)

    def _switched(self) -> None:
        self.truth.switch()
        self.truth.settled = True
        self.did["cut-overs"] += 1
        self.touched = set()
        self._check_published(whole=True)

    def drop(self, video_id: str, value: int) -> None:
        if value % 4:
            return
        generation = self.ids[value // 4 % CONTRACTS]
        if not self.truth.droppable(generation):
            with pytest.raises(MigrationError):
                drop_generation(self.corpus, TEXT, generation)
            return
        drop_generation(self.corpus, TEXT, generation)
        self.truth.drop(generation)
        self.did["drops"] += 1
        assert self.corpus.store.list(self.corpus.keys.generation_folder(TEXT, generation)).num_rows == 0

    # what ClipFarm does

    def sync(self, *, interrupt_after: int | None = None, crash: bool = False, late: bool = False) -> None:
        """What serves, then the candidate, which serves when it has all; judged by the model.

        Args:
            interrupt_after: so many items are embedded in the pass that is interrupted.
            crash: the disk goes away when rows are to be recorded, after their vectors were uploaded.
            late: the candidate is interrupted, or crashes, if there is one.
        """
        self._put_metadata()
        self._finish_erasures()
        self._finish_cut_over()
        truth, disturbed = self.truth, {"interrupt_after": interrupt_after, "crash": crash}
        has_candidate = truth.wanted != truth.serving
        if not self._pass(truth.serving, **({} if late and has_candidate else disturbed)):
            return
        self._finish_cut_over()
        if has_candidate and not self._pass(truth.wanted, **(disturbed if late else {})):
            return
        if has_candidate:
            due = truth.serves_by_itself()
            found = cut_over_when_ready(self.corpus, TEXT)
            assert found is not None
            assert found.ready == due, (found, truth.lacking(truth.wanted))
            if due:
                self.did["automatic cut-overs"] += 1
                truth.begin(truth.wanted)
                self._switched()
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
            self._switched()

    def _pass(self, generation: str, *, interrupt_after: int | None = None, crash: bool = False) -> bool:
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
            load_encoder=lambda: encoder,
            store=self.corpus.store,
            keys=self.corpus.keys,
            ledger=opened.ledger,
            place=opened.place,
            options=OPTIONS,
            on_recorded=lambda outcomes: None,
        )

    def _put_metadata(self) -> None:
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
            elif what in ("gone", "missing") or (recorded and what not in ("erased", "nothing")):
                if what != "embedded" or video_id in encoder.embedded:
                    self.truth.did(generation, video_id, what)
        for video_id in IDS:
            # a row without a status only marks a vector of which a crash has left nothing known
            row, item = after.get(video_id), items.get(video_id)
            assert item is not None or row is None, f"{video_id} was erased, and is back"
            if item is not None:
                assert ((row and row.status) or "new") in STATUSES[item.status], (video_id, row, item)

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


STATUSES: dict[str, set[str]] = {
    "new": {"new"},
    "success": {Status.SUCCESS},
    "missing": {Status.MISSING_RAW_OBJECT},
    "failed": {Status.FAIL, Status.INVALID_RAW_OBJECT, Status.QUARANTINED},
}
MUTATIONS = (
    "newer_snapshot",
    "older_snapshot",
    "change_caption",
    "upload_raw",
    "upload_same_raw",
    "upload_invalid_raw",
    "delete_raw",
    "break_model",
    "mend_model",
    "change_contract",
    "change_cut_over",
    "lose_vector",
    "remove_id",
    "rename",
    "retry_all",
    "erase",
    "cut_over",
    "roll_back",
    "drop",
)
# what brings videos along is likelier than what takes them away
MUTATION = st.sampled_from(
    [*MUTATIONS, "newer_snapshot", "change_caption", "upload_raw", "upload_raw", "change_contract"]
)
ROUND = st.tuples(
    st.lists(st.tuples(MUTATION, st.sampled_from(IDS), st.integers(0, 99)), min_size=12, max_size=24),
    st.sampled_from(["sync", "sync", "sync", "twice", "crash", "interrupt"]),
    st.integers(0, 8),
    st.booleans(),
)
HISTORY = st.lists(ROUND, min_size=6, max_size=10)


def live(history: Sequence[tuple[Sequence[tuple[str, str, int]], str, int, bool]]) -> Counter[str]:
    """Live through a history; returns what has happened, and how often."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0)
        world = World(Path(folder))
        for video_id in IDS[:16]:
            world.newer_snapshot(video_id, 0)
            world.upload_raw(video_id, 0)
        world.sync()
        for mutations, ending, number, late in history:
            for mutation in mutations:
                world.mutate(*mutation)
            world.check_readers()
            # what a crash or an interrupt left is met by whatever happens until the next sync
            interrupt_after = number if ending == "interrupt" else None
            world.sync(crash=ending == "crash", interrupt_after=interrupt_after, late=late)
            world.check_readers()
            world.mutations += ending in ("crash", "interrupt")
            if ending == "twice":
                world.sync()
        world.did["erased"] = sum(video.erased for video in world.truth.videos.values())
        world.did["mutations"] = world.mutations
        return world.did


def check_histories(examples: int) -> Counter[str]:
    """Live through random histories; returns what has happened in all."""
    total: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(HISTORY)
    def check(history: Any) -> None:
        total.update(live(history))

    check()
    return total


def test_nothing_is_skipped_and_nothing_is_embedded_needlessly():
    did = check_histories(12)
    assert did["mutations"] >= 1_000
    assert min(did[name] for name in HAPPENS) > 3, did


@pytest.mark.slow
def test_nothing_is_skipped_and_nothing_is_embedded_needlessly_in_ten_thousand_mutations():
    did = check_histories(110)
    assert did["mutations"] >= 10_000
    assert min(did[name] for name in HAPPENS) > 50, did
    print(did)


HAPPENS = ("erased", "cut-overs", "automatic cut-overs", "killed cut-overs", "drops")
