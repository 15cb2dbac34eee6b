"""Erases videos from everything that was made of them: store, ledgers, home folder and Dagster."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
from filelock import FileLock, Timeout

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.maintenance.certificate import Certificate
from clipfarm_dagster.orchestration.erasure_finishing import (
    Finished,
    begin_erasure,
    finish_erasures,
)
from clipfarm_dagster.orchestration.erasure_looking import find_holdings, look_for
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs
from clipfarm_dagster.orchestration.runs.in_hand import have_not_ended
from clipfarm_dagster.timestamps import timestamp

_POLL_SECONDS = 1.0


def erase_videos(
    corpus: Corpus,
    instance: dg.DagsterInstance,
    names: CorpusNames,
    video_ids: Collection[str],
    *,
    raw: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Certificate:
    """Erase videos, keep them away, and look everywhere for what is left.

    Waits for the runs that have them in hand, and for a sync of this home folder. Where it is ended before,
    the sensor's next tick or the next sync goes on.

    Args:
        raw: whether raw objects go too.
        say: told what is being done.

    Raises:
        ErasureError: a database is in use; repeating finishes it.
        ManifestError: a manifest is replaced each time that it was read.
        LedgerError: a ledger cannot be used, or the list of erased videos is damaged.
        StoreError: the store cannot be used.
    """
    asked = timestamp(datetime.now(UTC))
    say("looking for what there is")
    removed = find_holdings(corpus, instance, names, video_ids, raw=raw)
    say("removing it from the store and the ledgers")
    begin_erasure(corpus, video_ids, raw=raw)
    finished = _finish(corpus, instance, names, say)
    say("looking for what is left")
    left = look_for(corpus, instance, names, video_ids, raw=raw)
    left = replace(left, refused=list(dict.fromkeys([*left.refused, *finished.refused])))
    erased = corpus.tombstones.read()
    return Certificate(
        [erased.tombstone(video_id) for video_id in video_ids],
        asked,
        timestamp(datetime.now(UTC)),
        removed,
        left,
    )


def _finish(
    corpus: Corpus, instance: dg.DagsterInstance, names: CorpusNames, say: Callable[[str], None]
) -> Finished:
    """Finish all erasures, once the runs that have the videos in hand have ended."""
    while True:
        fail_dead_runs(instance, names)
        with _no_sync(corpus, say):
            say("removing it from the home folder and Dagster")
            finished = finish_erasures(corpus, instance, names)
        if not finished.waits_for:
            return finished
        say(
            f"waiting until {', '.join(sorted(finished.waits_for))} has ended in Dagster; without you, the"
            " sensor's next tick or the next `clipfarm sync` goes on"
        )
        while have_not_ended(instance, finished.waits_for):
            time.sleep(_POLL_SECONDS)
            fail_dead_runs(instance, names)


@contextmanager
def _no_sync(corpus: Corpus, say: Callable[[str], None]) -> Iterator[None]:
    home = corpus.settings.home_files
    home.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.sync_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for `clipfarm sync` in {home.folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
