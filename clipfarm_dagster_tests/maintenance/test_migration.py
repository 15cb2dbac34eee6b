"""A cut-over and the way back: the old set or the new one, whole, wherever it is broken off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.errors import MigrationError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.serving import ServingRecord
from clipfarm_dagster.ledger.verify import verify_vectors
from clipfarm_dagster.maintenance import migration
from clipfarm_dagster.maintenance.migration import cut_over, finish_cut_over, move_vectors, way_back
from clipfarm_dagster.manifests.vectors import modality_vectors, read_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.generations import IDS, Two, embed, texts
from clipfarm_dagster_tests.support.killing import Killed, killing
from clipfarm_dagster_tests.support.machines import open_corpus, put_texts, put_transcript
from clipfarm_dagster_tests.support.s3_proxy import s3_proxy
from workbench.seaweedfs import S3Server

TEXT = Stage.TEXT


@pytest.fixture
def two(store: ObjectStore, tmp_path: Path) -> Two:
    return Two(open_corpus(tmp_path / "home", store), open_corpus(tmp_path / "home", store, contract=1))


def test_another_generation_serves_and_the_way_back_computes_nothing(two: Two):
    before = read_vectors(two.corpus, TEXT)

    cut_over(two.corpus, TEXT, two.new)

    two.is_settled(two.new, aside=two.old)
    assert (read_vectors(two.corpus, TEXT).vectors != before.vectors).any()
    serving = two.corpus.serving.read()[TEXT]
    assert (serving.before, serving.following, serving.rolled_back) == (two.old, None, None)

    cut_over(two.corpus, TEXT, two.old, going_back=True)

    two.is_settled(two.old, aside=two.new)
    assert (read_vectors(two.corpus, TEXT).vectors == before.vectors).all()
    assert two.corpus.serving.read()[TEXT].rolled_back == two.new
    with two.corpus.stage(TEXT) as opened:
        assert opened.plan(two.corpus.latest_rows()).delta == 0
        assert opened.under(two.other.contract(TEXT)).plan(two.corpus.latest_rows()).delta == 0


def test_a_cut_over_that_is_done_changes_nothing(two: Two):
    cut_over(two.corpus, TEXT, two.new)
    before = two.corpus.store.list()

    cut_over(two.corpus, TEXT, two.new)

    assert not finish_cut_over(two.corpus, TEXT)
    assert two.corpus.store.list().sort_by("key") == before.sort_by("key")


_STEPS = (
    (ServingRecord, "change"),
    (Ledger, "replace"),
    (Ledger, "push"),
    (ObjectStore, "copy_each"),
    (ObjectStore, "delete_each"),
    (migration, "refresh_manifest"),
)
"""What a cut-over does that changes something."""


@pytest.mark.parametrize("store", ["folder"], indirect=True)
@pytest.mark.parametrize("going_back", [False, True])
def test_wherever_it_is_broken_off_readers_see_a_whole_set_and_it_goes_on(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, going_back: bool
):
    two = Two(open_corpus(tmp_path / "home", store), open_corpus(tmp_path / "home", store, contract=1))
    old, new = two.old, two.new
    if going_back:
        cut_over(two.corpus, TEXT, new)
        old, new = new, old
    at = 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            steps = killing(patch, at, *_STEPS)
            try:
                cut_over(two.corpus, TEXT, new, going_back=going_back)
            except Killed:
                pass
            else:
                assert steps() < at
                break
        assert two.published() in (old, new)
        if at % 2:  # finished, or called again and broken off one step later
            finish_cut_over(two.corpus, TEXT)
            assert two.corpus.serving.read()[TEXT].contract_id in (old, new)
            if two.corpus.serving.read()[TEXT].contract_id == new:
                two.is_settled(new, aside=old)
                cut_over(two.corpus, TEXT, old)
        two.published()
    two.is_settled(new, aside=old)
    assert at > 10


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_going_back_again_after_it_was_broken_off_leads_to_the_same_generation(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    two = Two(open_corpus(tmp_path / "home", store), open_corpus(tmp_path / "home", store, contract=1))
    at, broken_off = 0, True
    while broken_off:
        at += 1
        cut_over(two.corpus, TEXT, two.new)
        with monkeypatch.context() as patch:
            killing(patch, at, *_STEPS)
            try:
                cut_over(two.corpus, TEXT, way_back(two.corpus, TEXT), going_back=True)
                broken_off = False
            except Killed:
                pass
        begun = two.corpus.serving.read()[TEXT].rolled_back == two.new
        for _ in range(2):
            cut_over(two.corpus, TEXT, way_back(two.corpus, TEXT), going_back=True)
            two.is_settled(two.old, aside=two.new)
        assert begun or at == 1
    assert at > 10


def test_ending_a_cut_over_again_after_it_was_broken_off_goes_no_further_back(two: Two):
    cut_over(two.corpus, TEXT, two.new)
    cut_over(two.corpus, TEXT, two.old)  # so that one served before the one that does
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, 1, (ObjectStore, "copy_each"))
        with pytest.raises(Killed):
            cut_over(two.corpus, TEXT, two.new)
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, 1, (migration, "refresh_manifest"))
        with pytest.raises(Killed):
            cut_over(two.corpus, TEXT, way_back(two.corpus, TEXT), going_back=True)

    cut_over(two.corpus, TEXT, way_back(two.corpus, TEXT), going_back=True)

    two.is_settled(two.old, aside=two.new)


def test_another_machine_goes_on(two: Two, store: ObjectStore, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, 9, *_STEPS)
        with pytest.raises(Killed):
            cut_over(two.corpus, TEXT, two.new)
    elsewhere = open_corpus(tmp_path / "elsewhere", store)
    assert two.corpus.serving.read()[TEXT].contract_id == two.new

    finish_cut_over(elsewhere, TEXT)

    two.is_settled(two.new, aside=two.old)
    for corpus in (elsewhere, two.corpus):
        with corpus.stage(TEXT) as opened:
            assert opened.contract.id == two.new


def test_a_run_that_began_before_writes_into_its_own_generation(two: Two):
    """It has its items and its ledger in hand while another process cuts over."""
    put_texts(two.corpus, texts("another title"), minute=1)
    with two.corpus.stage(TEXT) as run:
        items = run.work_items(IDS[:3], two.corpus.latest_rows())
        cut_over(two.corpus, TEXT, two.new)

        encoder = embed(run, two.corpus, items=items)

    assert encoder.embedded.total() == 3
    two.is_settled(two.new, aside=two.old)


def test_a_vector_that_is_written_while_it_is_copied_is_copied_again(
    two: Two, monkeypatch: pytest.MonkeyPatch
):
    put_texts(two.corpus, texts("another title"), minute=1)
    copy_each = ObjectStore.copy_each

    def copied_late(self: ObjectStore, *args: Any, **kwargs: Any) -> Iterator[Any]:
        answers = list(copy_each(self, *args, **kwargs))
        monkeypatch.setattr(ObjectStore, "copy_each", copy_each)
        with two.corpus.stage(TEXT) as run:
            embed(run, two.corpus, IDS[:2])
        yield from answers

    monkeypatch.setattr(ObjectStore, "copy_each", copied_late)

    cut_over(two.corpus, TEXT, two.new)

    two.is_settled(two.new, aside=two.old)


def test_what_was_put_under_the_published_keys_too_late_is_not_believed(two: Two):
    """A run looked who serves just before the cut-over, and wrote a new video's vector just after."""
    put_texts(two.corpus, {**texts(), "late": ("t", "d", "q")}, minute=1)
    put_transcript(two.corpus, "late", "late words")
    with two.corpus.stage(TEXT) as run:
        place = run.place
        cut_over(two.corpus, TEXT, two.new)
        place._record = None
        embed(run, two.corpus, ["late"], place=place)
    with two.corpus.stage(TEXT) as opened:
        embed(opened, two.corpus, ["late"])

    cut_over(two.corpus, TEXT, two.old, going_back=True)

    assert two.published() == two.old
    with two.corpus.stage(TEXT) as opened:
        plan = opened.plan(two.corpus.latest_rows())
        assert plan.reasons == {"retry_due": 1}
        assert plan.work["video_id"].to_pylist() == ["late"]


@pytest.mark.parametrize("video_id", ["v0", "late"])
def test_what_another_machine_wrote_and_did_not_send_is_not_believed_after_a_cut_over(
    two: Two, store: ObjectStore, tmp_path: Path, video_id: str
):
    """A vector of what served was written, over an older one or for a new video, and its row waits there."""
    put_texts(two.corpus, {**texts("another title"), "late": ("t", "d", "q")}, minute=1)
    put_transcript(two.corpus, "late", "late words")
    elsewhere = open_corpus(tmp_path / "elsewhere", store)
    with pytest.MonkeyPatch.context() as unsent, elsewhere.stage(TEXT) as opened:
        unsent.setattr(Ledger, "push", lambda self: False)
        embed(opened, elsewhere, [video_id])
    with two.corpus.stage(TEXT) as opened:
        embed(opened.under(two.other.contract(TEXT)), two.corpus, [*IDS, "late"])

    cut_over(two.corpus, TEXT, two.new)
    with elsewhere.stage(TEXT) as opened:
        opened.ledger.push()

    with two.corpus.stage(TEXT) as opened:
        for generation in (two.old, two.new):
            ledger = opened.ledger.of(generation)
            found = verify_vectors(ledger, two.corpus.store, two.corpus.keys)
            claimed = {i for i, row in ledger.rows([*IDS, "late"]).items() if row.vector_source_hash}
            assert [f.problem for f in found if f.video_id in claimed and f.problem] == []
            assert (video_id in claimed) == (generation == two.new)


def test_rows_of_a_cut_over_that_another_machine_has_undone_claim_nothing(
    two: Two, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Vectors were copied to the published keys, and before their rows say so, others are put there."""
    published, recorded = two.corpus.keys.embedding_folder(TEXT), Ledger.replace

    def recorded_late(self: Ledger, changes: Any) -> list[str]:
        if changes and str(changes[0][1].artifact_key).startswith(published):
            monkeypatch.setattr(Ledger, "replace", recorded)
            cut_over(open_corpus(tmp_path / "elsewhere", store), TEXT, two.old, going_back=True)
        return recorded(self, changes)

    monkeypatch.setattr(Ledger, "replace", recorded_late)
    with suppress(MigrationError):
        cut_over(two.corpus, TEXT, two.new)

    assert two.corpus.serving.read()[TEXT].contract_id == two.old
    with two.corpus.stage(TEXT) as opened:
        opened.ledger.push()
        for generation in (two.old, two.new):
            ledger = opened.ledger.of(generation)
            claimed = {i for i, row in ledger.rows(IDS).items() if row.vector_source_hash}
            found = verify_vectors(ledger, two.corpus.store, two.corpus.keys)
            assert [f.problem for f in found if f.video_id in claimed and f.problem] == []
    assert two.published() == two.old


@pytest.mark.parametrize("store", ["s3"], indirect=True)
@pytest.mark.parametrize("damaged", [False, True])
def test_vectors_that_this_machine_has_are_not_read_again(two: Two, s3_environment: S3Server, damaged: bool):
    file = modality_vectors(two.corpus, TEXT).file
    if damaged:
        file.path.write_bytes(b"PAR1 no more")
    with s3_proxy(s3_environment) as proxy:
        behind = ObjectStore.open(two.corpus.store.url, s3=proxy.server.options())
        with two.corpus.stage(TEXT) as opened:
            through_it = replace(opened, store=behind)

            moved = move_vectors(through_it, two.corpus.keys.generation_folder(TEXT, two.old))

        read = [key for method, key in proxy.requests if method == "GET" and key.endswith(".npy")]
    assert moved.copied == len(IDS)
    assert len(read) == (len(IDS) if damaged else 0)
    with two.corpus.stage(TEXT) as opened:
        found = list(verify_vectors(opened.ledger, opened.store, opened.keys))
        assert [one.problem for one in found] == [None] * len(IDS)


def test_a_lost_vector_is_work_and_stops_nothing_else(two: Two):
    two.corpus.store.delete(two.corpus.keys.embedding(TEXT, "v3"))
    with two.corpus.stage(TEXT) as opened:
        moved = move_vectors(opened, two.corpus.keys.generation_folder(TEXT, two.old))

        assert (moved.copied, moved.lost) == (7, 1)
        assert opened.plan(two.corpus.latest_rows()).reasons == {"artifact_lost": 1}


def test_a_generation_without_vectors_never_serves(two: Two, store: ObjectStore, tmp_path: Path):
    before = two.corpus.serving.read()
    third = open_corpus(tmp_path / "home", store, contract=2)

    with pytest.raises(MigrationError, match="there are no text vectors of contract"):
        cut_over(third, TEXT, third.contract(TEXT).id)

    assert two.corpus.serving.read() == before
    assert two.published() == two.old


def test_one_cut_over_at_a_time(two: Two):
    two.corpus.serving.change(TEXT, lambda now: now and replace(now, following="c" * 16))

    with pytest.raises(MigrationError, match=f"to contract {'c' * 16} is under way"):
        cut_over(two.corpus, TEXT, two.new)


def test_copying_ends_where_another_process_has_gone_on(two: Two):
    """One was held up for long, and wakes up in the middle of its copies."""
    with two.corpus.stage(TEXT) as opened:
        cut_over(two.corpus, TEXT, two.new)

        with pytest.raises(MigrationError, match="changed by another process"):
            move_vectors(opened, two.corpus.keys.embedding_folder(TEXT))

    two.is_settled(two.new, aside=two.old)


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_cut_over_that_is_under_way_can_be_undone(store: ObjectStore, tmp_path: Path):
    two = Two(open_corpus(tmp_path / "home", store), open_corpus(tmp_path / "home", store, contract=1))
    for at in (2, 4, 6):
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, at, *_STEPS)
            with pytest.raises(Killed):
                cut_over(two.corpus, TEXT, two.new)
        assert two.corpus.serving.read()[TEXT].following == two.new

        cut_over(two.corpus, TEXT, two.old, going_back=True)

        two.is_settled(two.old, aside=two.new)
        serving = two.corpus.serving.read()[TEXT]
        assert (serving.before, serving.rolled_back) == (None, two.new)
