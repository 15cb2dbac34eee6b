"""Random histories of a corpus beside a model of the truth: what must be embedded is, and nothing else.

Models change, generations serve, are gone back from and dropped, videos are erased, processes crash.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from clipfarm_dagster.errors import ManifestError, MigrationError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.serving import ServingRecord
from clipfarm_dagster.ledger.verify import repair_vectors, retry_failures, verify_vectors
from clipfarm_dagster.maintenance import migration
from clipfarm_dagster.maintenance.dropping import drop_generation
from clipfarm_dagster.maintenance.readiness import readiness
from clipfarm_dagster.manifests.refresh import stored_manifest
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.hashing_encoder import FIELDS
from clipfarm_dagster_tests.support.judged_corpus import CONTRACTS, IDS, TEXT, JudgedCorpus
from clipfarm_dagster_tests.support.killing import Killed, killing
from clipfarm_dagster_tests.support.truth import Item

CUT_OVER_STEPS = (
    (ServingRecord, "change"),
    (Ledger, "replace"),
    (Ledger, "push"),
    (ObjectStore, "copy_each"),
    (ObjectStore, "delete_each"),
    (migration, "refresh_manifest"),
)
"""What a cut-over does that changes something."""


class World(JudgedCorpus):
    """What happens to a corpus: each step changes the real one and the truth about it."""

    # what happens to a corpus

    def mutate(self, kind: str, video_id: str, value: int) -> None:
        self.did["mutations"] += 1
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

    def _put_raw(self, video_id: str, raw: bytes) -> None:
        self.corpus.store.put(self.corpus.keys.raw(TEXT, video_id), raw)
        self.truth.videos[video_id].raw = raw
        self.truth.videos[video_id].upload += 1

    def remove_raw(self, video_id: str, value: int) -> None:
        self.delete_raw(video_id)

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
                self.finish_erasures()

    # what people do about generations

    def cut_over(self, video_id: str, value: int) -> None:
        """A person lets the wanted generation serve, or the one before; sometimes as it is."""
        truth = self.truth
        target = truth.wanted if truth.wanted != truth.serving else truth.before
        if value % 2 or target is None or not truth.settled or truth.following is not None:
            return
        self.put_metadata()
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
                self.switched()

    def _killed(self, *, unchanged: bool, going_back: bool) -> None:
        """See how far a cut-over came that was broken off."""
        now, truth = self.corpus.serving.read()[TEXT], self.truth
        if now.contract_id == truth.following:
            truth.switch()
            truth.settled = now.settled
            if stored_manifest(self.corpus, TEXT)[0].contract.id == truth.serving:
                self.touched = set()
        elif unchanged and now.following is None and truth.following is not None:
            truth.following, truth.rolled_back = None, now.rolled_back
        elif unchanged and truth.following is None:
            truth.settled, truth.following, truth.rolled_back = now.settled, now.following, now.rolled_back
        elif truth.following is None:
            truth.settled = now.settled
        assert (now.contract_id, now.following) == (truth.serving, truth.following)

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


MUTATIONS = (
    "newer_snapshot",
    "older_snapshot",
    "change_caption",
    "upload_raw",
    "upload_same_raw",
    "upload_invalid_raw",
    "remove_raw",
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
LIKELY = ("newer_snapshot", "change_caption", "upload_raw", "upload_raw", "change_contract")
"""What brings videos along is likelier than what takes them away."""
A_ROUND = 18
HAPPENS = ("erased", "cut-overs", "automatic cut-overs", "killed cut-overs", "drops")


def live(seed: int, rounds: int) -> Counter[str]:
    """Live through a random history; returns what has happened, and how often."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0)
        world = World(Path(folder))
        for video_id in IDS[:16]:
            world.newer_snapshot(video_id, 0)
            world.upload_raw(video_id, 0)
        world.sync()
        for _ in range(rounds):
            for kind in chance.choices([*MUTATIONS, *LIKELY], k=A_ROUND):
                world.mutate(kind, chance.choice(IDS), chance.randrange(100))
            world.check_readers()
            ending = chance.choice(["sync", "sync", "sync", "twice", "crash", "interrupt"])
            # what a crash or an interrupt left is met by whatever happens until the next sync
            interrupt_after = chance.randrange(9) if ending == "interrupt" else None
            late = bool(chance.randrange(2))
            world.sync(crash=ending == "crash", interrupt_after=interrupt_after, late=late)
            world.check_readers()
            if ending == "twice":
                world.sync()
        world.did["erased"] = sum(video.erased for video in world.truth.videos.values())
        return world.did


def live_all(seeds: Iterable[int], rounds: int) -> Counter[str]:
    """Live through several histories; returns what has happened in all."""
    total: Counter[str] = Counter()
    for seed in seeds:
        try:
            total.update(live(seed, rounds))
        except Exception as error:
            error.add_note(f"in the history of live({seed}, {rounds})")
            raise
    return total


def test_nothing_is_skipped_and_nothing_is_embedded_needlessly():
    did = live_all(range(3), rounds=10)

    assert did["mutations"] == 3 * 10 * A_ROUND
    assert all(did[name] for name in HAPPENS), did


@pytest.mark.slow
def test_nothing_is_skipped_and_nothing_is_embedded_needlessly_in_ten_thousand_mutations():
    did = live_all(range(100, 160), rounds=10)

    assert did["mutations"] == 60 * 10 * A_ROUND > 10_000
    assert all(did[name] > 20 for name in HAPPENS), did
    print("\n", did)
