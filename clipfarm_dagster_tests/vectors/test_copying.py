"""Copying vectors within a store, over a folder and over a real S3 server, also while others write."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipfarm_dagster.errors import PreconditionFailedError, StoreError, StoreUnavailableError
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.object_store import Copied
from clipfarm_dagster.vectors.copying import VectorCopy, copy_vectors
from clipfarm_dagster.vectors.npy import VectorProblem, l2_normalise, to_npy, vector_sha256
from clipfarm_dagster_tests.support.s3_proxy import S3Proxy, refuse, reset, s3_proxy
from workbench.seaweedfs import S3Server

DIMENSION = 768
VECTORS = l2_normalise(np.random.default_rng(7).standard_normal((40, DIMENSION)))


def copy_of(number: int, target_etag: str | None = None) -> VectorCopy:
    return VectorCopy(
        source_key=f"embeddings/{number:02}.npy",
        target_key=f"generations/{number:02}.npy",
        sha256=vector_sha256(VECTORS[number]),
        dimension=DIMENSION,
        target_etag=target_etag,
    )


COPIES = [copy_of(number) for number in range(len(VECTORS))]


def put_sources(store: ObjectStore) -> None:
    store.put_many([(copy.source_key, to_npy(vector)) for copy, vector in zip(COPIES, VECTORS, strict=True)])


def outcome(store: ObjectStore, copy: VectorCopy) -> Copied | VectorProblem | StoreError:
    [(told, answer)] = copy_vectors(store, [copy])
    assert told == copy
    return answer


class TestOutcomes:
    def test_every_vector_is_copied_byte_for_byte(self, store: ObjectStore) -> None:
        put_sources(store)
        answers = dict(copy_vectors(store, iter(COPIES), max_concurrency=8))
        assert set(answers) == set(COPIES)
        for copy, vector in zip(COPIES, VECTORS, strict=True):
            target = store.get(copy.target_key)
            assert target.data == to_npy(vector)
            assert answers[copy] == Copied(target.info.etag)

    def test_nothing_to_copy(self, store: ObjectStore) -> None:
        assert list(copy_vectors(store, [])) == []

    def test_a_repeat_finds_it_already_there(self, store: ObjectStore) -> None:
        put_sources(store)
        first = dict(copy_vectors(store, COPIES))
        again = dict(copy_vectors(store, COPIES))
        for copy in COPIES:
            before = first[copy]
            assert isinstance(before, Copied)
            assert again[copy] == Copied(before.etag, already_there=True)

    def test_the_version_that_was_named_is_replaced(self, store: ObjectStore) -> None:
        put_sources(store)
        etag = store.put(COPIES[0].target_key, to_npy(VECTORS[1]))
        answer = outcome(store, copy_of(0, etag))
        target = store.get(COPIES[0].target_key)
        assert answer == Copied(target.info.etag)
        assert target.data == to_npy(VECTORS[0])

    @pytest.mark.parametrize("known", [True, False], ids=["replaces", "creates"])
    def test_what_somebody_else_has_written_since_stays(self, store: ObjectStore, known: bool) -> None:
        put_sources(store)
        etag = store.put(COPIES[0].target_key, to_npy(VECTORS[1])) if known else None
        theirs = to_npy(VECTORS[2])
        store.put(COPIES[0].target_key, theirs)
        answer = outcome(store, copy_of(0, etag))
        assert isinstance(answer, PreconditionFailedError)
        assert COPIES[0].target_key in str(answer)
        assert store.get(COPIES[0].target_key).data == theirs

    def test_a_target_that_has_been_removed_stays_away(self, store: ObjectStore) -> None:
        put_sources(store)
        etag = store.put(COPIES[0].target_key, to_npy(VECTORS[1]))
        store.delete(COPIES[0].target_key)
        answer = outcome(store, copy_of(0, etag))
        assert isinstance(answer, PreconditionFailedError)
        assert store.head(COPIES[0].target_key) is None

    def test_an_earlier_try_that_replaced_it_counts(self, store: ObjectStore) -> None:
        put_sources(store)
        etag = store.put(COPIES[0].target_key, to_npy(VECTORS[1]))
        stale = copy_of(0, etag)
        first = outcome(store, stale)
        assert isinstance(first, Copied)
        assert outcome(store, stale) == Copied(first.etag, already_there=True)

    @pytest.mark.parametrize(
        ("data", "told"),
        [
            (None, "there is no object 'embeddings/00.npy'"),
            (to_npy(VECTORS[1]), "another vector than the one that was recorded"),
            (to_npy(VECTORS[0])[:-4], "not a readable .npy file"),
            (to_npy(VECTORS[0][: DIMENSION // 2]), "384 numbers, not 768"),
            (to_npy(2 * VECTORS[0]), "L2 norm 2, not 1"),
            (b"", "not a readable .npy file"),
        ],
        ids=["missing", "other", "truncated", "shorter", "longer-norm", "empty"],
    )
    def test_a_source_that_is_not_the_recorded_vector_is_not_copied(
        self, store: ObjectStore, data: bytes | None, told: str
    ) -> None:
        put_sources(store)
        if data is None:
            store.delete(COPIES[0].source_key)
        else:
            store.put(COPIES[0].source_key, data)
        answers = dict(copy_vectors(store, COPIES[:3]))
        assert isinstance(answers[COPIES[0]], VectorProblem)
        assert told in str(answers[COPIES[0]])
        assert store.head(COPIES[0].target_key) is None
        assert isinstance(answers[COPIES[1]], Copied)
        assert isinstance(answers[COPIES[2]], Copied)

    def test_where_no_hash_was_recorded_any_valid_vector_is_copied(self, store: ObjectStore) -> None:
        put_sources(store)
        copy = dataclasses.replace(COPIES[0], sha256=None, dimension=None)
        assert isinstance(outcome(store, copy), Copied)
        store.put(COPIES[1].source_key, to_npy(2 * VECTORS[1]))
        assert isinstance(
            outcome(store, dataclasses.replace(COPIES[1], sha256=None, dimension=None)), VectorProblem
        )

    def test_a_vector_that_this_machine_has_is_not_read(self, store: ObjectStore) -> None:
        etag = store.put(COPIES[1].target_key, to_npy(VECTORS[5]))
        mine = [
            dataclasses.replace(copy_of(number, target), vector=VECTORS[number])
            for number, target in ((0, None), (1, etag))
        ]
        answers = dict(copy_vectors(store, mine))  # there are no sources
        for number, copy in enumerate(mine):
            target = store.get(copy.target_key)
            assert answers[copy] == Copied(target.info.etag)
            assert target.data == to_npy(VECTORS[number])

    @pytest.mark.parametrize(
        "copy",
        [
            dataclasses.replace(COPIES[0], vector=VECTORS[1]),
            dataclasses.replace(COPIES[0], vector=VECTORS[0][:-1]),
            dataclasses.replace(COPIES[0], sha256=None, vector=VECTORS[1]),
        ],
        ids=["another", "cut", "no-hash"],
    )
    def test_a_vector_that_is_not_known_to_be_the_recorded_one_is_read(
        self, store: ObjectStore, copy: VectorCopy
    ) -> None:
        put_sources(store)
        assert isinstance(outcome(store, copy), Copied)
        assert store.get(copy.target_key).data == to_npy(VECTORS[0])

    @pytest.mark.parametrize("name", ["source_key", "target_key"])
    def test_a_dangerous_key_is_refused(self, store: ObjectStore, name: str) -> None:
        put_sources(store)
        bad = VectorCopy(**{**dataclasses.asdict(COPIES[0]), name: "../outside.npy"})
        with pytest.raises(StoreError, match=r"outside\.npy' is refused"):
            list(copy_vectors(store, [bad]))


class TestCourse:
    def test_copies_are_taken_as_it_goes(self, store: ObjectStore) -> None:
        put_sources(store)
        taken = 0

        def copies() -> Iterator[VectorCopy]:
            nonlocal taken
            for copy in COPIES:
                taken += 1
                yield copy

        answers = copy_vectors(store, copies(), max_concurrency=4)
        for given, _ in enumerate(answers, 1):
            assert taken <= given + 4
            if given == 10:
                break
        answers.close()
        assert taken <= 14
        assert store.list("generations/").num_rows <= 14

    def test_of_two_machines_that_copy_the_same_one_writes_and_both_are_done(
        self, store: ObjectStore
    ) -> None:
        put_sources(store)
        start = threading.Barrier(2)

        def machine(_: int) -> dict[VectorCopy, Copied | VectorProblem | StoreError]:
            other = ObjectStore.open(store.url)
            start.wait()
            return dict(copy_vectors(other, COPIES))

        with ThreadPoolExecutor(2) as executor:
            one, two = executor.map(machine, range(2))
        for copy, vector in zip(COPIES, VECTORS, strict=True):
            first, second = one[copy], two[copy]
            assert isinstance(first, Copied)
            assert isinstance(second, Copied)
            assert first.etag == second.etag == store.get(copy.target_key).info.etag
            assert first.already_there != second.already_there
            assert store.get(copy.target_key).data == to_npy(vector)

    def test_runs_that_write_meanwhile_are_never_overwritten(self, store: ObjectStore) -> None:
        """Each target changes once, by a copy or by a run, never by one over the other's back."""
        put_sources(store)
        old = to_npy(VECTORS[0])
        etags = [store.put(copy.target_key, old) for copy in COPIES]
        copies = [copy_of(number, etag) for number, etag in enumerate(etags)]
        theirs = to_npy(VECTORS[1])

        def run() -> list[str | StoreError]:
            items = [(copy.target_key, theirs, copy.target_etag) for copy in reversed(copies)]
            return ObjectStore.open(store.url).put_each(items, max_concurrency=4)

        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(run)
            answers = dict(copy_vectors(store, copies, max_concurrency=4))
            written = dict(zip(reversed(copies), running.result(), strict=True))
        for number, copy in enumerate(copies):
            mine, their = answers[copy], written[copy]
            if number == 0:  # the old vector is copied over itself, so the run may still find its version
                continue
            data = store.get(copy.target_key).data
            if isinstance(their, str):
                assert data == theirs
                assert isinstance(mine, Copied if number == 1 else PreconditionFailedError)
            else:
                assert isinstance(their, PreconditionFailedError)
                assert isinstance(mine, Copied)
                assert data == to_npy(VECTORS[number])


class TestTrouble:
    @pytest.fixture
    def proxy(self, s3_environment: S3Server) -> Iterator[S3Proxy]:
        with s3_proxy(s3_environment) as running:
            yield running

    @pytest.fixture
    def behind(self, proxy: S3Proxy) -> Iterator[ObjectStore]:
        """A store behind the proxy, with the sources in it."""
        store = ObjectStore.open(proxy.server.url, s3=proxy.server.options(give_up_seconds=3))
        put_sources(store)
        yield store
        proxy.mend()
        store.delete_each(store.list()["key"].to_pylist())

    @pytest.mark.parametrize("method", ["GET", "PUT"])
    def test_a_key_that_is_refused_is_alone_in_it(
        self, behind: ObjectStore, proxy: S3Proxy, method: str
    ) -> None:
        key = COPIES[5].source_key if method == "GET" else COPIES[5].target_key
        for broken in {method, "GET"}:  # behind the proxy a write that is refused has been done
            proxy.break_(broken, key, refuse("AccessDenied"))
        answers = dict(copy_vectors(behind, COPIES))
        refused = answers.pop(COPIES[5])
        assert isinstance(refused, StoreError)
        assert key in str(refused)
        assert "AccessDenied" in str(refused)
        assert all(isinstance(answer, Copied) for answer in answers.values())

    def test_a_write_whose_answer_was_lost_is_found_done(self, behind: ObjectStore, proxy: S3Proxy) -> None:
        proxy.break_("PUT", COPIES[5].target_key, reset)
        answer = outcome(behind, COPIES[5])
        target = behind.get(COPIES[5].target_key)
        assert answer == Copied(target.info.etag, already_there=True)
        assert target.data == to_npy(VECTORS[5])

    @pytest.mark.parametrize("method", ["GET", "PUT"])
    def test_a_store_that_refuses_everything_is_raised(
        self, behind: ObjectStore, proxy: S3Proxy, method: str
    ) -> None:
        proxy.break_(method, "", refuse("AccessDenied"))
        proxy.break_("GET", "generations/", refuse("AccessDenied"))
        with pytest.raises(StoreUnavailableError, match="AccessDenied"):
            list(copy_vectors(behind, COPIES))
