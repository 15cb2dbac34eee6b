"""Changes the generation that serves: what served is kept aside, and nothing is computed again.

A cut-over to a generation goes in these steps:

1. `serving.json` says to which generation; from then on no vector is written under `embeddings/`;
2. the vectors that serve are copied to their generation's own folder;
3. `serving.json` says that the other generation serves: the moment of the cut-over;
4. manifests and fused vectors are made of it, whose keys lead to wherever each vector lies;
5. its vectors are copied to `embeddings/`, and manifests follow;
6. `serving.json` says so, and what was copied from is removed.

Each step looks at what is there, and can be repeated by any machine. Going back is the same with the roles
changed. A row of the ledger says where its vector lies; it is changed once the copy is there and proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.errors import FusionError, MigrationError, StoreError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.ledger.verify import lost_row
from clipfarm_dagster.manifests.refresh import refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import STRATEGIES, make_strategy
from clipfarm_dagster.manifests.vectors import own_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.object_store import Copied
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.copying import VectorCopy, copy_vectors
from clipfarm_dagster.vectors.npy import VectorProblem

_BATCH = 1024
"""Rows that are read and recorded at a time; as many lie together in this machine's file of vectors."""
_ROUNDS = 20
"""So often it is looked whether runs have written vectors anew while others were copied."""


@dataclass(frozen=True)
class Moved:
    """What copying the vectors of a generation did."""

    copied: int = 0
    lost: int = 0
    """Vectors that were missing or wrong; they are work again."""


def cut_over(corpus: Corpus, stage: Stage, contract_id: str, *, going_back: bool = False) -> None:
    """Let another generation of a stage serve. Where it was broken off before, it goes on.

    Going back to the one that still serves ends a cut-over that is under way.

    Args:
        contract_id: the generation; its rows and vectors are there.
        going_back: whether this undoes an earlier cut-over: the generation that serves now is then not
            returned to by itself.

    Raises:
        MigrationError: the generation has no vectors, or another cut-over is under way.
        ManifestError: vectors of the generation are being written or were found lost.
        LedgerError: the ledger cannot be used, or does not know the generation.
        StoreError: the store cannot be used.
    """
    with corpus.stage(stage, contract_id) as opened:
        if not opened.ledger.has_success():
            raise MigrationError(
                f"there are no {stage} vectors of contract {contract_id}; nothing was changed"
            )

    def begin(now: Serving | None) -> Serving | None:
        if now is None:
            raise MigrationError(f"no generation of {stage} vectors serves yet; nothing was changed")
        if contract_id in now.dropped:
            raise MigrationError(
                f"the {stage} vectors of contract {contract_id} were dropped; nothing was changed"
            )
        if now.contract_id == contract_id and now.following is not None and going_back:
            return replace(now, following=None, settled=False, rolled_back=now.following)
        if now.following not in (None, contract_id):
            raise MigrationError(
                f"a cut-over of the {stage} vectors to contract {now.following} is under way; it has to end"
                " first"
            )
        if now.contract_id == contract_id:
            return now
        rolled_back = now.contract_id if going_back else None
        return replace(now, following=contract_id, rolled_back=rolled_back)

    corpus.serving.change(stage, begin)
    finish_cut_over(corpus, stage)


def way_back(corpus: Corpus, stage: Stage) -> str:
    """Contract id of the generation that serves if a person goes back: the one that served before, or the one
    that still does while a cut-over is under way. A person who has gone back, and perhaps was interrupted,
    stays there: only `cut_over` leads to the generation that was left.

    Raises:
        MigrationError: there is nothing to go back to.
        LedgerError: what is said of the generations is damaged.
        StoreError: the store cannot be read.
    """
    serving = corpus.serving.read().get(stage)
    target = None
    if serving is not None:
        target = _way_back(serving)
    if target is None:
        raise MigrationError(
            f"no generation of {stage} vectors served before the one that does, or it was dropped; nothing"
            " was changed"
        )
    return target


def _way_back(serving: Serving) -> str | None:
    left = serving.rolled_back
    if serving.following is not None:
        is_going_back = left == serving.contract_id
        return serving.following if is_going_back else serving.contract_id
    has_gone_back = left is not None and (not serving.settled or left == serving.before)
    return serving.contract_id if has_gone_back else serving.before


def finish_cut_over(corpus: Corpus, stage: Stage) -> bool:
    """Finish a cut-over that is under way; tells whether one was. Raises what `cut_over` raises."""
    serving = corpus.serving.read().get(stage)
    if serving is None:
        return False
    if serving.following is None and serving.settled:
        with corpus.stage(stage) as opened:
            _remove_copies(opened)  # in case that a cut-over was broken off at its last step
        return False
    if serving.following is not None:
        _copy_aside(corpus, stage, serving)
        serving = _switch(corpus, stage, serving)
        if serving.following is not None:
            raise _changed_meanwhile(stage)
    _publish(corpus, stage)
    _outdate_unsent(corpus, stage, serving)
    with corpus.stage(stage) as opened:
        move_vectors(opened, opened.keys.embedding_folder(stage))
    _publish(corpus, stage)
    corpus.serving.change(stage, lambda now: replace(serving, settled=True) if now == serving else now)
    with corpus.stage(stage) as opened:
        _remove_copies(opened)
    return True


def _switch(corpus: Corpus, stage: Stage, seen: Serving) -> Serving:
    """Say that the following generation serves, once a copy is kept of the one that did."""
    assert seen.following is not None
    since = timestamp(datetime.now(UTC))
    switched = replace(
        seen,
        contract_id=seen.following,
        since=since,
        before=seen.contract_id,
        following=None,
        settled=False,
    )
    told = corpus.serving.change(stage, lambda now: switched if now == seen else now)
    assert told is not None
    return told


def _copy_aside(corpus: Corpus, stage: Stage, serving: Serving) -> None:
    assert serving.following is not None
    with corpus.stage(stage) as opened:
        if opened.contract.id != serving.following:
            move_vectors(opened, opened.keys.generation_folder(stage, opened.contract.id))
            if not serving.settled:
                _outdate_moves(opened)
    with corpus.stage(stage, serving.following) as opened:
        if not opened.serves:
            _forget_misplaced(opened)


def _outdate_unsent(corpus: Corpus, stage: Stage, serving: Serving) -> None:
    """Let no machine bring rows later that claim vectors of the generation which served, at keys where others
    are about to be put.

    A machine may have written such a vector, and not have sent its row yet. Writing the row here makes the
    two meet as writes that did not know of each other, so that neither claims a vector.
    """
    if serving.before is None:
        return
    with corpus.stage(stage) as opened:
        former = opened.ledger.of(serving.before)
        known = set(former.columns(["video_id"])["video_id"].to_pylist())
        ids = sorted((known | _claimed_ids(opened.ledger)) - _claimed_ids(former))
        for start in range(0, len(ids), _BATCH):
            former.mark_overwriting(ids[start : start + _BATCH])


def _outdate_moves(opened: StageCorpus) -> None:
    """Write all rows of a generation anew as they are, whose vectors were on their way to `embeddings/` in a
    cut-over that is being undone. A machine that was held up in it may say later that they arrived."""
    for rows in _claimed(opened):
        opened.ledger.replace([(row, row) for row in rows])
    opened.ledger.push()


def _forget_misplaced(opened: StageCorpus) -> None:
    """Forget vectors of a generation that does not serve which lie under `embeddings/`: a run that began
    while it served has put them there, and others may have been put over them."""
    folder = opened.keys.embedding_folder(opened.stage)
    now = datetime.now(UTC)
    for rows in _claimed(opened):
        misplaced = [row for row in rows if _lies_in(row, folder)]
        opened.ledger.replace([(row, _misplaced_row(row, now)) for row in misplaced])
    opened.ledger.push()


def _misplaced_row(row: LedgerRow, now: datetime) -> LedgerRow:
    """A failure that is due at once."""
    return replace(
        lost_row(row, now),
        status=Status.FAIL,
        error="its vector was written while another generation began to serve; it is embedded again",
        next_attempt_at=None,
    )


def move_vectors(opened: StageCorpus, folder: str) -> Moved:
    """Copy all vectors of a generation to a folder, and let its rows say that they lie there.

    A vector that a run writes meanwhile is left to the next round. One that is missing or wrong becomes work.

    Raises:
        MigrationError: runs keep writing vectors.
        StoreError: the store cannot be used.
        LedgerError: the ledger cannot be used.
    """
    copied = lost = 0
    for _ in range(_ROUNDS):
        left, asked = 0, dict[str, LedgerRow]()
        with closing(copy_vectors(opened.store, _copies(opened, folder, asked))) as answers:
            while some := list(islice(answers, _BATCH)):
                done = _record(opened, some, asked)
                copied, lost = copied + done.copied, lost + done.lost
                left += len(some) - done.copied - done.lost
        opened.ledger.push()
        if not left:
            return Moved(copied, lost)
    raise MigrationError(
        f"{left} {opened.stage} vectors of contract {opened.contract.id} were written again each time that"
        " they were copied; nothing is lost, and the cut-over goes on when it is called again"
    )


def _check_still_serving(opened: StageCorpus) -> None:
    """A process that was held up for long must not go on with the copies of a cut-over that was undone."""
    if opened.record is not None and opened.record.read().get(opened.stage) != opened.serving:
        raise _changed_meanwhile(opened.stage)


def _changed_meanwhile(stage: Stage) -> MigrationError:
    return MigrationError(
        f"which {stage} vectors serve was changed by another process meanwhile; nothing is lost, call again"
    )


def _copies(opened: StageCorpus, folder: str, asked: dict[str, LedgerRow]) -> Iterator[VectorCopy]:
    """The copies that are left to do, each over the version of the target that is there now; notes the row of
    each by its source."""
    listing = opened.store.list(folder)
    etags = dict(zip(listing["key"].to_pylist(), listing["etag"].to_pylist(), strict=True))
    for rows in _claimed(opened):
        _check_still_serving(opened)
        outside = [row for row in rows if not _lies_in(row, folder)]
        own = own_vectors(opened, [row.video_id for row in outside])
        for row in outside:
            source = opened.keys.vector(opened.stage, row.video_id, row.artifact_key)
            target = f"{folder}{row.video_id}.npy"
            asked[source] = row
            yield VectorCopy(
                source,
                target,
                row.artifact_sha256,
                row.embedding_dim,
                etags.get(target),
                own.get(row.video_id),
            )


def _record(
    opened: StageCorpus,
    answers: Sequence[tuple[VectorCopy, Copied | VectorProblem | StoreError]],
    asked: dict[str, LedgerRow],
) -> Moved:
    """Record what became of some copies, unless a run has written the row meanwhile. Those of videos that
    were erased meanwhile are removed again."""
    now = datetime.now(UTC)
    targets: dict[str, str] = {}
    moved: list[tuple[LedgerRow, LedgerRow]] = []
    lost: list[tuple[LedgerRow, LedgerRow]] = []
    for copy, answer in answers:
        row = asked.pop(copy.source_key)
        if isinstance(answer, Copied):
            targets[row.video_id] = copy.target_key
            moved.append((row, replace(row, artifact_key=copy.target_key)))
        elif isinstance(answer, VectorProblem):
            lost.append((row, lost_row(row, now)))
    done = Moved(len(opened.ledger.replace(moved)), len(opened.ledger.replace(lost)))
    for video_id in opened.ledger.erased(targets):
        opened.store.delete(targets[video_id])
    return done


def _claimed(opened: StageCorpus) -> Iterator[Sequence[LedgerRow]]:
    """The rows that claim a vector, some at a time."""
    ids = sorted(_claimed_ids(opened.ledger))
    for start in range(0, len(ids), _BATCH):
        rows = opened.ledger.rows(ids[start : start + _BATCH]).values()
        yield [row for row in rows if row.vector_source_hash is not None]


def _claimed_ids(ledger: Ledger) -> set[str]:
    columns = ledger.columns(["video_id", "vector_source_hash"])
    return {row["video_id"] for row in columns.to_pylist() if row["vector_source_hash"] is not None}


def _lies_in(row: LedgerRow, folder: str) -> bool:
    return row.artifact_key == f"{folder}{row.video_id}.npy"


def _publish(corpus: Corpus, stage: Stage) -> None:
    """Bring the manifest of a stage up to date, and the fused vectors that there are. Those that cannot be
    fused with these vectors are removed: they are made of others."""
    with corpus.stage(stage) as opened:
        refresh_manifest(opened)
    for name in STRATEGIES:
        strategy = make_strategy(name, corpus.settings.fusion_weights)
        key = corpus.keys.fused_manifest(name)
        if stage in strategy.stages and corpus.store.head(key) is not None:
            try:
                refresh_fused(corpus, strategy)
            except FusionError:
                corpus.store.delete(key)


def _remove_copies(opened: StageCorpus) -> None:
    """Remove from a generation's own folder what it does not claim there any more."""
    folder = opened.keys.generation_folder(opened.stage, opened.contract.id)
    keys = opened.store.list(folder)["key"].to_pylist()
    for start in range(0, len(keys), _BATCH):
        some = keys[start : start + _BATCH]
        ids = {key: key.removeprefix(folder).removesuffix(".npy") for key in some}
        rows = opened.ledger.rows(ids.values())
        settled = opened.keys.embedding_folder(opened.stage)
        opened.store.delete_each(
            [key for key, video_id in ids.items() if video_id in rows and _lies_in(rows[video_id], settled)]
        )
