"""Random histories of a corpus beside a model of the truth: what must be embedded is, and nothing else.

Everything is real but the text model, an encoder that hashes its input and counts what it is given.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.engine.engine import EngineOptions, embed_items
from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import RetryPolicy
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.verify import repair_vectors, retry_failures, verify_vectors
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import from_npy
from clipfarm_dagster_tests.support.hashing_encoder import FIELDS, HashingEncoder, Interrupted, vector_of
from clipfarm_dagster_tests.support.raw import put_metadata
from clipfarm_dagster_tests.support.stages import opened

IDS = [f"v{n}" for n in range(24)]
CONTRACTS = 3
MAX_ATTEMPTS = 2
OPTIONS = EngineOptions(
    workers=2, item_timeout_seconds=60, max_object_bytes=10_000, retry=RetryPolicy(MAX_ATTEMPTS, 1e-6)
)


class CrashingLedger(Ledger):
    """A ledger whose disk goes away when told so: after the vectors were uploaded, before their rows are."""

    crash = False

    def record(self, rows: Sequence[LedgerRow]) -> set[str]:
        if self.crash:
            raise LedgerError("the disk is gone")
        return super().record(rows)


@dataclass
class Video:
    """The truth about one video."""

    rows: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    """Snapshots: minute of capture and texts."""
    raw: bytes | None = None
    upload: int = 0
    """Number of the upload, which stands for the ETag."""
    vector: tuple[object, ...] | None = None
    """Texts, raw bytes and contract that the vector in the store is known to be of."""
    status: str = "new"
    """What the ledger calls the latest attempt: new, success, missing or failed."""
    tried: tuple[object, ...] | None = None
    """Texts, upload and contract of an attempt that failed, while the ledger tells of it."""
    failures: int = 0
    given_up: bool = False

    @property
    def texts(self) -> tuple[str, ...] | None:
        """Of the latest snapshot, the later line winning."""
        return max(enumerate(self.rows), key=lambda row: (row[1][0], row[0]))[1][1] if self.rows else None

    def settle(self, status: str) -> None:
        self.status, self.tried, self.failures, self.given_up = status, None, 0, False

    def fail(self, attempt: tuple[object, ...], *, invalid: bool) -> None:
        again = self.tried == attempt
        self.failures = 0 if invalid else (self.failures if again else 0) + 1
        self.status, self.tried = "failed", attempt
        self.given_up = invalid or self.failures >= MAX_ATTEMPTS


class World:
    """The real corpus and the model of the truth, changed together."""

    def __init__(self, folder: Path) -> None:
        self.corpora = [
            Corpus.open(
                load_settings(
                    home=folder,
                    store_url=str(folder / "store"),
                    text={"model": "example/model", "revision": f"{n:040}"},
                )
            )
            for n in range(CONTRACTS)
        ]
        self.contract = 0
        self.videos = {video_id: Video() for video_id in IDS}
        self.broken: set[str] = set()
        self.minute = 10
        self.ledger = CrashingLedger.open(Stage.TEXT, state_url="", sqlite_path=folder / "text.sqlite")
        self.mutations = 0

    @property
    def corpus(self) -> Corpus:
        return self.corpora[self.contract]

    # what happens to a corpus

    def mutate(self, kind: str, video_id: str, value: int) -> None:
        self.mutations += 1
        getattr(self, kind)(video_id, value)

    def newer_snapshot(self, video_id: str, value: int) -> None:
        self.minute += 1
        texts = self.videos[video_id].texts or tuple(f"{name} {value % 3}" for name in FIELDS)
        self.videos[video_id].rows.append((self.minute, texts))

    def older_snapshot(self, video_id: str, value: int) -> None:
        rows = self.videos[video_id].rows
        rows.insert(value % (len(rows) + 1), (value % 9, ("older", "older", f"older {value}")))

    def change_caption(self, video_id: str, value: int) -> None:
        texts = list(self.videos[video_id].texts or FIELDS)
        texts[value % 3] = f"another {value % 2}"
        self.minute += 1
        self.videos[video_id].rows.append((self.minute, tuple(texts)))

    def upload_raw(self, video_id: str, value: int) -> None:
        self._put_raw(video_id, json.dumps({"transcript": f"{video_id}:{value % 3}"}).encode())

    def upload_invalid_raw(self, video_id: str, value: int) -> None:
        self._put_raw(video_id, b"{}" if value % 2 else b"cut off")

    def upload_same_raw(self, video_id: str, value: int) -> None:
        raw = self.videos[video_id].raw
        if raw is None:
            self.upload_raw(video_id, value)
        else:
            self._put_raw(video_id, raw)

    def delete_raw(self, video_id: str, value: int) -> None:
        self.corpus.store.delete(self.corpus.keys.raw(Stage.TEXT, video_id))
        self.videos[video_id].raw = None

    def _put_raw(self, video_id: str, raw: bytes) -> None:
        self.corpus.store.put(self.corpus.keys.raw(Stage.TEXT, video_id), raw)
        self.videos[video_id].raw = raw
        self.videos[video_id].upload += 1

    def break_model(self, video_id: str, value: int) -> None:
        self.broken.add(video_id)

    def mend_model(self, video_id: str, value: int) -> None:
        self.broken.discard(video_id)

    def change_contract(self, video_id: str, value: int) -> None:
        if value % 3 == 0:  # seldom: it is a change to every video
            self.contract = value // 3 % CONTRACTS

    def lose_vector(self, video_id: str, value: int) -> None:
        """… and `verify --repair` finds it."""
        store, key = self.corpus.store, self.corpus.keys.embedding(Stage.TEXT, video_id)
        if store.head(key) is None:
            return
        if value % 2:
            store.delete(key)
        else:
            store.put(key, store.get(key).data[:-3])
        bad = [
            finding
            for finding in verify_vectors(self.ledger, self.corpus.store, self.corpus.keys)
            if finding.problem is not None
        ]
        found = {finding.video_id for finding in bad}
        lost = self.videos[video_id]
        assert (video_id in found) == (lost.status == "success" or lost.vector is not None)
        assert all(self.videos[other].vector is None for other in found - {video_id})
        assert set(repair_vectors(self.ledger, bad)) == found
        lost.vector = None

    def remove_id(self, video_id: str, value: int) -> None:
        self.videos[video_id].rows.clear()

    def rename(self, video_id: str, value: int) -> None:
        other = IDS[value % len(IDS)]
        if other != video_id and self.videos[video_id].texts is not None:
            self.minute += 1
            self.videos[other].rows.append((self.minute, self.videos[video_id].texts or ("", "", "")))
            self.upload_raw(other, value)
            self.remove_id(video_id, value)

    def retry_all(self, video_id: str, value: int) -> None:
        failed = {name for name, video in self.videos.items() if video.status == "failed"}
        assert set(retry_failures(self.ledger)) == failed
        for name in failed:
            self.videos[name].failures, self.videos[name].given_up = 0, False

    # what ClipFarm does

    def sync(self, *, interrupt_after: int | None = None, crash: bool = False) -> None:
        """One plan and run, judged by the model."""
        expected = {video_id: self._expected(video_id) for video_id in IDS}
        before = self.ledger.rows(IDS)
        self._put_metadata()
        contract = self.corpus.contract(Stage.TEXT)
        plan = opened(self.corpus, self.ledger).plan(self.corpus.latest_rows())
        opened(self.corpus, self.ledger).record_settled(plan)
        items = opened(self.corpus, self.ledger).work_items(
            plan.work["video_id"].to_pylist(), self.corpus.latest_rows()
        )
        encoder = HashingEncoder(contract, self.broken, interrupt_after)
        self.ledger.crash = crash
        try:
            embed_items(
                items,
                contract=contract,
                load_encoder=lambda: encoder,
                store=self.corpus.store,
                keys=self.corpus.keys,
                ledger=self.ledger,
                options=OPTIONS,
                on_recorded=lambda outcomes: None,
            )
            whole = True
        except (Interrupted, LedgerError):
            whole = False
        finally:
            self.ledger.crash = False
        self._judge(expected, before, encoder, whole)
        if whole:
            again = opened(self.corpus, self.ledger).plan(self.corpus.latest_rows())
            due = {name for name in IDS if self._expected(name) in ("embedded", "fails", "invalid")}
            assert set(again.work["video_id"].to_pylist()) == due <= self.broken
            assert again.missing.num_rows == again.restored.num_rows == 0

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
                for name, video in self.videos.items()
                for minute, texts in video.rows
            ],
        )

    def _now(self, video_id: str) -> tuple[tuple[object, ...], tuple[object, ...]]:
        """What the right vector would be made of, and what names an attempt at it."""
        video, contract_id = self.videos[video_id], self.corpus.contract(Stage.TEXT).id
        return (video.texts, video.raw, contract_id), (video.texts, video.upload, contract_id)

    def _expected(self, video_id: str) -> str:
        """What a sync has to do about a video."""
        video = self.videos[video_id]
        made_of, attempt = self._now(video_id)
        if video.texts is None:
            return "nothing"
        if video.raw is None:
            vector = video.vector or (None, None, None)
            stays = video.status == "success" and (vector[0], vector[2]) == (made_of[0], made_of[2])
            return "nothing" if stays else "missing"
        if video.vector == made_of:
            return "stands"
        if video.tried == attempt and video.given_up:
            return "nothing"
        if b"transcript" not in video.raw:
            return "invalid"
        return "fails" if video_id in self.broken else "embedded"

    def _judge(
        self,
        expected: Mapping[str, str],
        before: Mapping[str, LedgerRow],
        encoder: HashingEncoder,
        whole: bool,
    ) -> None:
        to_embed, to_fail = (
            Counter(name for name, what in expected.items() if what == kind) for kind in ("embedded", "fails")
        )
        if whole:
            assert encoder.embedded == to_embed
            assert encoder.failed == to_fail
        else:
            assert encoder.embedded <= to_embed
            assert encoder.failed <= to_fail
        after = self.ledger.rows(IDS)
        for video_id, what in expected.items():
            video = self.videos[video_id]
            made_of, attempt = self._now(video_id)
            recorded = whole or after.get(video_id) != before.get(video_id)
            if what == "missing":
                video.settle("missing")
            elif what == "stands" and recorded:
                video.settle("success")
            elif what in ("fails", "invalid") and recorded:
                video.fail(attempt, invalid=what == "invalid")
            elif what == "embedded" and video_id in encoder.embedded:
                row = after.get(video_id)
                if row is None or row.vector_source_hash is None:  # perhaps uploaded, and not recorded
                    assert not whole
                    video.vector = None
                elif recorded:
                    video.vector = made_of
                    video.settle("success")
        for video_id in IDS:
            self._check_vector(video_id, after.get(video_id))

    def _check_vector(self, video_id: str, row: LedgerRow | None) -> None:
        """A video whose vector is right says so, and it is."""
        video = self.videos[video_id]
        # a row without a status only marks a vector of which a crash has left nothing known
        assert ((row and row.status) or "new") in STATUSES[video.status]
        made_of, _ = self._now(video_id)
        if video.status == "success" and video.vector == made_of and video.raw is not None:
            inputs = (json.loads(video.raw)["transcript"], *(video.texts or ()))
            key = self.corpus.keys.embedding(Stage.TEXT, video_id)
            stored = from_npy(self.corpus.store.get(key).data)
            assert np.array_equal(stored, vector_of(inputs, self.corpus.contract(Stage.TEXT).id))


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
    "lose_vector",
    "remove_id",
    "rename",
    "retry_all",
)
# what brings videos along is likelier than what takes them away
MUTATION = st.sampled_from([*MUTATIONS, "newer_snapshot", "change_caption", "upload_raw", "upload_raw"])
ROUND = st.tuples(
    st.lists(st.tuples(MUTATION, st.sampled_from(IDS), st.integers(0, 99)), min_size=12, max_size=24),
    st.sampled_from(["sync", "sync", "sync", "twice", "crash", "interrupt"]),
    st.integers(0, 8),
)
HISTORY = st.lists(ROUND, min_size=6, max_size=10)


def live(history: Sequence[tuple[Sequence[tuple[str, str, int]], str, int]]) -> int:
    """Live through a history; returns its number of mutations."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        try:
            for video_id in IDS[:16]:
                world.newer_snapshot(video_id, 0)
                world.upload_raw(video_id, 0)
            world.sync()
            for mutations, ending, number in history:
                for mutation in mutations:
                    world.mutate(*mutation)
                # what a crash or an interrupt left is met by whatever happens until the next sync
                world.sync(crash=ending == "crash", interrupt_after=number if ending == "interrupt" else None)
                world.mutations += ending in ("crash", "interrupt")
                if ending == "twice":
                    world.sync()
        finally:
            world.ledger.close()
        return world.mutations


def check_histories(examples: int) -> int:
    """Live through random histories; returns how many mutations there were in all."""
    total = 0

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(HISTORY)
    def check(history: Any) -> None:
        nonlocal total
        total += live(history)

    check()
    return total


def test_nothing_is_skipped_and_nothing_is_embedded_needlessly():
    assert check_histories(12) >= 1_000


@pytest.mark.slow
def test_nothing_is_skipped_and_nothing_is_embedded_needlessly_in_ten_thousand_mutations():
    assert check_histories(110) >= 10_000
