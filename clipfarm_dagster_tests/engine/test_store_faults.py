"""The engine over a real S3 server whose answers for single keys are broken by a proxy."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.engine import engine
from clipfarm_dagster.engine.outcomes import OutcomeKind
from clipfarm_dagster.errors import StoreUnavailableError
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.bench import KEYS, Bench, bench, transcripts
from clipfarm_dagster_tests.support.s3_proxy import (
    Fault,
    S3Proxy,
    after,
    claim_more,
    cut,
    drip,
    encrypted_by_kms,
    refuse,
    reset,
    s3_proxy,
    swap_body,
    truncate,
    wrong_etag,
)
from workbench.seaweedfs import S3Server

RAW = transcripts(41)
FAULTY = "clip-020"
HEALTHY = [video_id for video_id in RAW if video_id != FAULTY]
KEY = KEYS.raw(Stage.TEXT, FAULTY)
VECTOR_KEY = KEYS.embedding(Stage.TEXT, FAULTY)

FAULTS: dict[str, tuple[Fault, str]] = {
    "archived": (refuse("InvalidObjectState"), "InvalidObjectState"),
    "denied": (refuse("AccessDenied"), "AccessDenied"),
    "no-kms-key": (refuse("KMS.DisabledException", 400), "KMS.DisabledException"),
    "internal-error": (refuse("InternalError", 500), "InternalError"),
    "cut": (cut, KEY),
    "reset": (reset, KEY),
    "claims-more": (claim_more, KEY),
}


@pytest.fixture
def proxy(s3_environment: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3_environment) as running:
        yield running


@pytest.fixture
def give_up_seconds() -> float:
    """After how long the store is given up; short, for those tests that wait for it."""
    return 3.0


@pytest.fixture
def text(
    text_encoder: Encoder,
    proxy: S3Proxy,
    give_up_seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """A text stage of 41 raw objects behind the proxy, of which nothing is embedded yet."""
    monkeypatch.setattr(text_encoder, "batch_size", 16)
    store = ObjectStore.open(proxy.server.url, s3=proxy.server.options(give_up_seconds=give_up_seconds))
    with bench(text_encoder, store, tmp_path) as made:
        made.put(RAW)
        yield made
    proxy.mend()
    for key in store.list()["key"].to_pylist():
        store.delete(key)


def assert_failed(text: Bench, cause: str, *, attempt: int = 1) -> None:
    """The ledger says why the faulty item failed, and when it is tried again; nothing else."""
    row = text.row(FAULTY)
    assert (row.status, row.retry_count) == (Status.FAIL, attempt)
    assert cause in (row.error or "")
    assert row.next_attempt_at is not None
    assert (row.vector_source_hash, row.vector_contract_id) == (None, None)


class TestReads:
    @pytest.mark.parametrize(("fault", "cause"), FAULTS.values(), ids=FAULTS)
    def test_an_object_that_cannot_be_read_fails_alone(
        self, text: Bench, proxy: S3Proxy, fault: Fault, cause: str
    ) -> None:
        proxy.break_("GET", KEY, fault)

        progress = text.run(list(RAW))

        assert progress.outcomes == {"success": 40, "fail": 1}
        assert {video_id for video_id, kind in text.kinds().items() if kind == OutcomeKind.EMBEDDED} == set(
            HEALTHY
        )
        assert_failed(text, cause)
        assert KEY in (text.row(FAULTY).error or "")
        # as the listing tells it, so that the next plan knows the failure for one of this version
        etags = {row["key"]: row["etag"] for row in text.store.list(KEYS.raw_folder(Stage.TEXT)).to_pylist()}
        assert text.row(FAULTY).raw_etag == etags[KEY]
        assert text.store.head(VECTOR_KEY) is None

        text.recorded = []
        assert text.run([FAULTY]).outcomes == {"fail": 1}, "alone in its run it fails as among others"
        assert_failed(text, cause, attempt=2)

        proxy.mend()
        text.recorded = []
        assert text.run([FAULTY]).outcomes == {"success": 1}

    @pytest.mark.parametrize(
        "lie",
        [truncate, swap_body(RAW["clip-021"]), wrong_etag],
        ids=["truncated", "bytes-of-another", "wrong-etag"],
    )
    def test_bytes_that_are_not_the_objects_fail_alone_and_make_no_vector(
        self, text: Bench, proxy: S3Proxy, lie: Fault
    ) -> None:
        proxy.break_("GET", KEY, lie)

        progress = text.run(list(RAW))

        assert progress.outcomes == {"success": 40, "fail": 1}
        assert_failed(text, "the bytes received are not those of its ETag")
        assert text.store.head(VECTOR_KEY) is None

        proxy.mend()
        text.recorded = []
        assert text.run([FAULTY]).outcomes == {"success": 1}

    @pytest.mark.parametrize("give_up_seconds", [30.0])  # on a busy machine each request takes long
    @pytest.mark.parametrize("kms_key", [KEY, r"raw/text/"], ids=["of-one-object", "of-all-objects"])
    def test_an_etag_that_is_no_md5_is_no_lie(self, text: Bench, proxy: S3Proxy, kms_key: str) -> None:
        proxy.break_("GET", kms_key, encrypted_by_kms)
        proxy.break_("HEAD", kms_key, encrypted_by_kms)

        assert text.run(list(RAW)).outcomes == {"success": 41}

    @pytest.mark.parametrize("give_up_seconds", [30.0])  # on a busy machine all of them take long
    def test_many_that_are_refused_cost_the_few_others_nothing(self, text: Bench, proxy: S3Proxy) -> None:
        proxy.break_("GET", r"raw/text/", refuse("AccessDenied"))
        proxy.break_("GET", r"clip-00[0-3]\.json", lambda answer: answer)

        progress = text.run(list(RAW))

        assert progress.outcomes == {"success": 4, "fail": 37}

    @pytest.mark.parametrize(
        "fault",
        [refuse("AccessDenied"), refuse("SignatureDoesNotMatch"), refuse("InternalError", 500), cut, reset],
        ids=["denied", "wrong-secret", "internal-error", "cut", "reset"],
    )
    def test_where_no_object_can_be_read_the_run_ends_and_nothing_is_recorded(
        self, text: Bench, proxy: S3Proxy, fault: Fault
    ) -> None:
        proxy.break_("GET", r"raw/text/", fault)

        with pytest.raises(StoreUnavailableError):
            text.run(list(RAW))

        assert text.ledger.counts() == {}

    def test_credentials_that_end_in_the_middle_end_the_run(self, text: Bench, proxy: S3Proxy) -> None:
        text.run(HEALTHY[:10])
        proxy.break_("GET", r"raw/text/", refuse("AccessDenied"))

        with pytest.raises(StoreUnavailableError):
            text.run(HEALTHY[10:])

        assert text.ledger.counts() == {Status.SUCCESS: 10}

    def test_a_store_that_cannot_be_read_any_more_ends_the_run(self, text: Bench, proxy: S3Proxy) -> None:
        raw = transcripts(120)
        text.put(raw)
        proxy.break_("GET", r"raw/text/", after(90, refuse("AccessDenied")))

        with pytest.raises(StoreUnavailableError):
            text.run(list(raw))

        rows = text.ledger.rows(raw)
        assert 0 < len(rows) <= 90
        assert {row.status for row in rows.values()} == {Status.SUCCESS}
        assert sorted(text.kinds()) == sorted(rows)

    @pytest.mark.parametrize("get_too", [False, True], ids=["head-alone", "head-and-get"])
    def test_an_object_whose_version_is_not_told_is_no_matter_of_the_others(
        self, text: Bench, proxy: S3Proxy, get_too: bool
    ) -> None:
        text.run(list(RAW))
        text.recorded = []
        proxy.break_("HEAD", KEY, refuse("AccessDenied"))
        if get_too:
            proxy.break_("GET", KEY, refuse("AccessDenied"))

        progress = text.run(list(RAW))

        assert progress.model_calls == 0
        assert {text.kinds()[video_id] for video_id in HEALTHY} == {OutcomeKind.UP_TO_DATE}
        assert text.kinds()[FAULTY] == (OutcomeKind.FAILED if get_too else OutcomeKind.SAME_BYTES)


class TestSlowReads:
    def test_an_object_that_comes_byte_by_byte_fails_alone(self, text: Bench, proxy: S3Proxy) -> None:
        proxy.break_("GET", KEY, drip(0.5))

        progress = text.run(list(RAW), fetch_timeout_seconds=2)

        assert progress.outcomes == {"success": 40, "fail": 1}
        assert_failed(text, "CLIPFARM_FETCH_TIMEOUT_SECONDS=2")

    def test_it_holds_up_nobody_behind_it(
        self, text: Bench, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "RECORD_EVERY_SECONDS", 0.2)
        proxy.break_("GET", KEYS.raw(Stage.TEXT, "clip-000"), drip(0.2))

        text.run(list(RAW), fetch_timeout_seconds=300)

        assert text.batches[-1] == ["clip-000"], "the others wait for it"
        assert text.row("clip-000").status == Status.SUCCESS

    def test_it_keeps_no_run_from_ending(self, text: Bench, proxy: S3Proxy) -> None:
        proxy.break_("GET", KEY, drip(0.5))

        def interrupt(number: int, frame: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 4)
        try:
            with pytest.raises(KeyboardInterrupt):
                text.run(list(RAW), fetch_timeout_seconds=3600)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

        assert text.ledger.counts() == {Status.SUCCESS: 40}
        assert [thread.name for thread in threading.enumerate() if "clipfarm" in thread.name] == []


class TestWrites:
    @pytest.mark.parametrize("fault", [refuse("AccessDenied"), reset], ids=["denied", "reset"])
    @pytest.mark.parametrize("alone", [False, True], ids=["among-others", "alone"])
    def test_a_vector_that_cannot_be_written_fails_alone(
        self, text: Bench, proxy: S3Proxy, fault: Fault, alone: bool
    ) -> None:
        text.run(list(RAW))
        before = text.store.list(KEYS.embedding_folder(Stage.TEXT)).num_rows
        text.recorded = []
        changed = {video_id: data.replace(b"number", b"nombre") for video_id, data in RAW.items()}
        text.put(changed)
        proxy.break_("PUT", VECTOR_KEY, fault)

        progress = text.run([FAULTY] if alone else list(RAW))

        assert progress.outcomes == ({"fail": 1} if alone else {"success": 40, "fail": 1})
        assert_failed(text, VECTOR_KEY)
        assert text.store.list(KEYS.embedding_folder(Stage.TEXT)).num_rows == before

        proxy.mend()
        text.recorded = []
        assert text.run([FAULTY]).outcomes == {"success": 1}
        assert text.row(FAULTY).retry_count == 0

    def test_where_no_vector_can_be_written_the_run_ends_and_nothing_is_recorded(
        self, text: Bench, proxy: S3Proxy
    ) -> None:
        proxy.break_("PUT", r"embeddings/", refuse("AccessDenied"))

        with pytest.raises(StoreUnavailableError):
            text.run(list(RAW))

        assert text.ledger.counts() == {}

    def test_a_store_that_cannot_be_written_any_more_ends_the_run(self, text: Bench, proxy: S3Proxy) -> None:
        raw = transcripts(160)
        text.put(raw)
        proxy.break_("PUT", r"embeddings/", after(80, reset))

        with pytest.raises(StoreUnavailableError):
            text.run(list(raw))

        rows = text.ledger.rows(raw)
        assert 0 < len(rows) < 160
        assert {row.status for row in rows.values()} == {Status.SUCCESS}
        assert all(text.vector(video_id).size == 768 for video_id in rows)
        assert sorted(text.kinds()) == sorted(rows)

        proxy.mend()
        text.recorded = []
        progress = text.run(list(raw))
        assert progress.outcomes == {"success": 160}
        assert progress.model_calls == 160 - len(rows)
