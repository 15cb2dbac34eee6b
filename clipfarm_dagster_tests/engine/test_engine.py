"""The engine over a real store, ledger and model: each item has its own outcome, whatever others do."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipfarm_dagster.engine import engine
from clipfarm_dagster.engine.engine import (
    RECORD_EVERY_ITEMS,
    EngineOptions,
    LocalComputing,
    Progress,
    embed_items,
)
from clipfarm_dagster.engine.outcomes import OutcomeKind
from clipfarm_dagster.engine.progress import rate_told
from clipfarm_dagster.errors import ModelUnavailableError, StoreUnavailableError
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.modalities.encoder import Encoder, Prepared
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.bench import KEYS, OPTIONS, Bench, bench, transcripts
from clipfarm_dagster_tests.support.faults import (
    EATS_MEMORY,
    HANGS,
    KILLS_ITS_PROCESS,
    RAISES,
)
from clipfarm_dagster_tests.support.sounds import loud, silence, wav

both_engines = pytest.mark.parametrize("computed", ["local", "ray"], indirect=True)
"""The same truth on one machine and on a cluster."""

both_engines_at_length = pytest.mark.parametrize(
    "computed", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True
)
"""The same, on a cluster by `make cluster`: each run there starts a process that loads the model."""


def options_with(monkeypatch: pytest.MonkeyPatch, **variables: int) -> EngineOptions:
    """The engine's options as the environment sets them."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    return EngineOptions.from_settings(load_settings(workers=2))


class TestOutcomes:
    @both_engines
    def test_each_item_gets_its_vector_its_row_and_its_outcome(self, text: Bench):
        raw = transcripts(70)
        text.put(raw)

        progress = text.run(list(raw))

        assert progress.outcomes == {"success": 70}
        assert progress.model_calls == 70
        assert set(text.kinds().values()) == {OutcomeKind.EMBEDDED}
        for video_id in ("clip-000", "clip-069"):
            prepared = text.encoder.preparer(raw[video_id], {"title": f"Title of {video_id}"})
            expected = text.encoder.encode([prepared])[0]
            assert float(expected @ text.vector(video_id)) > 1 - 1e-6
            row = text.row(video_id)
            assert (row.status, row.artifact_key) == (Status.SUCCESS, KEYS.embedding(Stage.TEXT, video_id))
            assert (row.embedding_dim, row.contract_id) == (768, text.encoder.contract.id)
        assert text.ledger.contract(text.encoder.contract.id) == text.encoder.contract

    @both_engines_at_length
    def test_sounds_of_many_lengths_go_through_worker_processes(self, audio: Bench):
        raw = {f"clip-{n}": wav(0.2 + 0.05 * (n % 3), seed=n) for n in range(9)}
        audio.put(raw)

        progress = audio.run(list(raw))

        assert progress.outcomes == {"success": 9}
        for video_id, data in raw.items():
            expected = audio.encoder.encode([audio.encoder.preparer(data, {})])[0]
            assert float(expected @ audio.vector(video_id)) > 1 - 1e-6

    @both_engines_at_length
    def test_what_is_up_to_date_is_recognised_without_the_model(self, text: Bench):
        raw = transcripts(3)
        text.put(raw)
        text.run(list(raw))
        before, text.recorded = text.recorded, []

        progress = text.run(list(raw))

        assert progress.model_calls == 0
        assert text.loads == 1
        assert set(text.kinds().values()) == {OutcomeKind.UP_TO_DATE}
        assert [text.row(o.row.video_id).artifact_sha256 for o in before] == [
            o.row.artifact_sha256 for o in before
        ]

    @both_engines_at_length
    def test_the_same_bytes_uploaded_again_keep_their_vector(self, text: Bench):
        raw = transcripts(2)
        text.put(raw)
        text.run(list(raw))
        text.put({"clip-000": b'{"transcript": "new words"}', "clip-001": b'{"transcript": "other words"}'})
        text.put({"clip-001": raw["clip-001"]})
        text.recorded = []

        progress = text.run(list(raw))

        # in S3 equal bytes have an equal ETag, so there is nothing to look at
        assert text.kinds()["clip-000"] == OutcomeKind.EMBEDDED
        assert text.kinds()["clip-001"] in (OutcomeKind.SAME_BYTES, OutcomeKind.UP_TO_DATE)
        assert progress.model_calls == 1
        current = text.store.head(KEYS.raw(Stage.TEXT, "clip-001"))
        assert current is not None
        assert text.row("clip-001").raw_etag == current.etag

    @both_engines_at_length
    def test_a_missing_object_costs_nobody_else(self, text: Bench):
        text.put(transcripts(1))

        progress = text.run(["clip-000", "not-there"])

        assert progress.outcomes == {"success": 1, "missing_raw_object": 1}
        assert text.kinds() == {"clip-000": OutcomeKind.EMBEDDED, "not-there": OutcomeKind.MISSING}

    def test_a_model_that_cannot_be_loaded_writes_nothing(self, text: Bench):
        text.put(transcripts(1))

        def unavailable() -> Encoder:
            raise ModelUnavailableError("no such model")

        with pytest.raises(ModelUnavailableError):
            embed_items(
                text.items(["clip-000", "not-there"]),
                contract=text.encoder.contract,
                computing=LocalComputing(unavailable),
                store=text.store,
                keys=KEYS,
                ledger=text.ledger,
                options=OPTIONS,
                on_recorded=text.recorded.extend,
            )
        assert text.recorded == []
        assert text.ledger.counts() == {}

    @both_engines_at_length
    def test_a_model_of_another_contract_is_refused_before_anything_is_written(self, text: Bench):
        text.put(transcripts(1))
        planned = replace(text.encoder.contract, model_revision="0" * 40)

        with pytest.raises(ModelUnavailableError) as refused:
            text.run(["clip-000", "not-there"], contract=planned)

        for told in (planned.id, text.encoder.contract.id, "model_revision"):
            assert told in str(refused.value)
        assert text.recorded == []
        assert text.ledger.counts() == {}
        assert text.ledger.contract(planned.id) is None


class TestIsolation:
    @both_engines
    def test_whatever_breaks_costs_that_item_alone(self, audio: Bench):
        good = {f"good-{n}": wav(0.2, seed=n) for n in range(8)}
        bad = {
            "corrupt": b"RIFF, and nothing else",
            "empty": b"",
            "too-short": wav(0.001),
            "too-loud": loud(3e38),
            "too-large": bytes(OPTIONS.max_object_bytes + 1),
            "hangs": HANGS,
            "kills": KILLS_ITS_PROCESS,
            "raises": RAISES,
        }
        audio.put({**good, **bad})
        order = [name for pair in zip(good, bad, strict=True) for name in pair]

        progress = audio.run(order, item_timeout_seconds=2)

        assert progress.outcomes == {"success": 8, "invalid_raw_object": 5, "fail": 3}
        errors = {name: audio.row(name).error or "" for name in bad}
        assert "cannot be decoded" in errors["corrupt"]
        assert "cannot be decoded" in errors["empty"]
        assert "16 samples" in errors["too-short"]
        assert "too large" in errors["too-loud"]
        assert "CLIPFARM_MAX_OBJECT_BYTES=1048576" in errors["too-large"]
        assert "CLIPFARM_ITEM_TIMEOUT_SECONDS=2" in errors["hangs"]
        assert "killed its process" in errors["kills"]
        assert errors["raises"] == "RuntimeError: the codec broke"
        assert all(audio.vector(name).size == 64 for name in good)
        assert audio.row("hangs").next_attempt_at is not None

    @both_engines_at_length
    def test_an_item_that_takes_too_much_memory_costs_itself_alone(
        self, audio: Bench, monkeypatch: pytest.MonkeyPatch
    ):
        limit = 2**28
        good = {f"good-{n}": wav(0.2, seed=n) for n in range(6)}
        bad = {
            "few-bytes-much-sound": silence(45, rate=192_000, channels=8, container="FLAC"),
            "eats-memory": EATS_MEMORY,
            "larger-than-the-limit": silence(limit // 32_000 + 1, rate=16_000, channels=1, container="WAV"),
        }
        audio.put({**good, **bad})
        audio.options = options_with(monkeypatch, CLIPFARM_MAX_PREPARE_BYTES=limit)

        progress = audio.run(
            [name for pair in zip(bad, good, strict=False) for name in pair] + list(good)[3:]
        )

        assert progress.outcomes == {"success": 6, "fail": 3}
        cause = f"preparation took more memory than CLIPFARM_MAX_PREPARE_BYTES={limit}"
        assert {name: audio.row(name).error for name in bad} == dict.fromkeys(bad, cause)
        assert all(audio.row(name).next_attempt_at is not None for name in bad)
        for name, data in good.items():
            expected = audio.encoder.encode([audio.encoder.preparer(data, {})])[0]
            assert float(expected @ audio.vector(name)) > 1 - 1e-6

        audio.recorded = []
        audio.options = options_with(monkeypatch, CLIPFARM_MAX_PREPARE_BYTES=2**31)
        assert audio.run(["few-bytes-much-sound"]).outcomes == {"success": 1}

    @both_engines_at_length
    def test_an_item_that_keeps_failing_is_quarantined(self, audio: Bench):
        audio.put({"raises": RAISES})

        statuses = []
        for _ in range(3):
            audio.run(["raises"])
            statuses.append(audio.row("raises").status)

        assert statuses == [Status.FAIL, Status.FAIL, Status.QUARANTINED]

    def test_an_item_on_which_the_model_fails_costs_its_batch_nothing(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ):
        encode = text.encoder.encode

        def fails_on_one(batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
            if any("number 17" in item.inputs[1] for item in batch):
                raise RuntimeError("not a number")
            return encode(batch)

        monkeypatch.setattr(text.encoder, "encode", fails_on_one)
        text.put(transcripts(40))

        progress = text.run(list(transcripts(40)))

        assert progress.outcomes == {"success": 39, "fail": 1}
        assert text.row("clip-017").error == "the model failed: RuntimeError: not a number"

    def test_a_batch_that_does_not_fit_into_memory_is_halved(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ):
        encode, sizes = text.encoder.encode, []

        def small_memory(batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
            sizes.append(len(batch))
            if len(batch) > 10:
                raise torch.OutOfMemoryError("out of memory")
            return encode(batch)

        monkeypatch.setattr(text.encoder, "encode", small_memory)
        monkeypatch.setattr(text.encoder, "batch_size", 32)
        text.put(transcripts(64))

        progress = text.run(list(transcripts(64)))

        assert progress.outcomes == {"success": 64}
        assert sum(size for size in sizes if size <= 10) == 64
        assert sum(1 for size in sizes if size > 10) <= 4


@dataclass
class GoesAway:
    """The writes of a folder that is a file from some upload on, as where a disk fails."""

    after: int
    store: ObjectStore
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.put, self.root = self.store.put_if_unchanged, Path(self.store.url)
        self.away = self.root.with_name("away")

    def __call__(self, key: str, data: bytes, etag: str | None) -> str:
        with self.lock:
            self.done += 1
            if self.done > self.after and not self.away.exists():
                self.root.rename(self.away)
                self.root.touch()
        return self.put(key, data, etag)

    def come_back(self) -> None:
        self.root.unlink()
        self.away.rename(self.root)


@pytest.fixture
def interrupted_after() -> Iterator[Callable[[float], None]]:
    """Has the main thread interrupted after some seconds, as by SIGTERM."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class TestFaults:
    def test_a_folder_that_goes_away_ends_the_run_and_nothing_wrong_is_recorded(
        self, text_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        raw = transcripts(160)
        monkeypatch.setattr(text_encoder, "batch_size", 16)
        with bench(text_encoder, ObjectStore.open(str(tmp_path / "store")), tmp_path) as text:
            text.put(raw)
            puts = GoesAway(80, text.store)
            with monkeypatch.context() as broken:
                broken.setattr(text.store, "put_if_unchanged", puts)
                with pytest.raises(StoreUnavailableError):
                    text.run(list(raw))
            puts.come_back()

            rows = text.ledger.rows(raw)
            assert 0 < len(rows) < 160
            assert puts.done <= 3 * RECORD_EVERY_ITEMS, "the batches after the one that failed were tried"
            assert {row.status for row in rows.values()} == {Status.SUCCESS}
            assert all(text.vector(video_id).size == 768 for video_id in rows)
            assert sorted(text.kinds()) == sorted(rows)

            text.recorded = []
            progress = text.run(list(raw))
            assert progress.outcomes == {"success": 160}
            assert progress.model_calls == 160 - len(rows)

    def test_an_interrupt_records_what_is_finished(self, text: Bench, monkeypatch: pytest.MonkeyPatch):
        raw = transcripts(100)
        text.put(raw)
        encode, calls = text.encoder.encode, []

        def interrupted(batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
            calls.append(len(batch))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return encode(batch)

        monkeypatch.setattr(text.encoder, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            text.run(list(raw))

        rows = text.ledger.rows(raw)
        assert len(rows) == sum(calls) - calls[2]
        assert {row.status for row in rows.values()} == {Status.SUCCESS}
        assert sorted(text.kinds()) == sorted(rows)

    def test_a_run_that_is_asked_to_end_while_workers_hang_ends(
        self, audio: Bench, interrupted_after: Callable[[float], None]
    ):
        good = {f"good-{n}": wav(0.2, seed=n) for n in range(3)}
        hanging = {f"hangs-{n}": HANGS + bytes(2**19) for n in range(8)}  # fill the pipe to the workers
        audio.put({**good, **hanging})

        interrupted_after(3)
        with pytest.raises(KeyboardInterrupt):
            audio.run([*good, *hanging])

        assert audio.ledger.counts() == {Status.SUCCESS: 3}
        assert multiprocessing.active_children() == []

    def test_what_is_finished_is_recorded_while_another_item_hangs(
        self, audio: Bench, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(engine, "RECORD_EVERY_SECONDS", 0.2)
        audio.put({"good": wav(0.2), "hangs": HANGS})

        audio.run(["good", "hangs"], item_timeout_seconds=5)

        assert audio.batches == [["good"], ["hangs"]]

    @both_engines_at_length
    def test_a_crash_after_the_upload_repeats_the_item(self, text: Bench, monkeypatch: pytest.MonkeyPatch):
        raw = transcripts(2)
        text.put(raw)
        text.run(list(raw))
        text.put({"clip-000": b'{"transcript": "new words"}'})
        with monkeypatch.context() as broken:

            def crash(rows: Sequence[LedgerRow]) -> None:
                raise KeyboardInterrupt

            broken.setattr(text.ledger, "record", crash)
            with pytest.raises(KeyboardInterrupt):
                text.run(list(raw))
        # the old words are back, but the store holds the vector of the new ones
        text.put(raw)
        text.recorded = []

        text.run(list(raw))

        expected = text.encoder.encode(
            [text.encoder.preparer(raw["clip-000"], {"title": "Title of clip-000"})]
        )
        assert text.kinds()["clip-000"] == OutcomeKind.EMBEDDED
        assert float(expected[0] @ text.vector("clip-000")) > 1 - 1e-6


class TestProgress:
    def test_the_line_tells_done_failed_rate_and_time_left(self):
        progress = Progress(total=10)
        progress.outcomes = {"success": 4, "fail": 1, "missing_raw_object": 1}
        progress.add("infer", 2.0)

        line = progress.line()

        assert line.startswith("6/10 done, 1 failed, ")
        assert re.search(r", \d+\.\d/s, ", line)
        assert "left" in line

    @pytest.mark.parametrize(
        ("per_second", "told"),
        [(120.0, "120.0/s"), (1.0, "1.0/s"), (0.04, "2.4/min"), (0.002, "7.2/h"), (1e-5, "0.036/h")],
    )
    def test_a_slow_rate_is_told_in_a_longer_unit(self, per_second: float, told: str):
        assert rate_told(per_second) == told
