"""Does what is left to do of erasures, whoever began them, and wherever they were broken off.

Three places say how far they are clean: the list of erased videos, for the store and the ledgers; a file in
each home folder; and a value in each Dagster instance. Ticks of the sensor, `clipfarm sync` and `clipfarm
erase` look at these, and go on where one lags behind the list. So other machines follow too: they know the
videos again by their tombstones. Besides, a machine that has begun an erasure notes it in its home folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.tombstones import Erased
from clipfarm_dagster.maintenance import erasure
from clipfarm_dagster.maintenance.erasure_notes import Begun, ErasureNotes, clear_caches
from clipfarm_dagster.orchestration.erasing import erase_from_dagster, is_known
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.id_list import candidate_id_list, erasure_list, id_list
from clipfarm_dagster.orchestration.runs.in_hand import Hands, find_hands, have_begun, have_not_ended
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import local_path

_RUNS_AT_A_TIME = 1000


@dataclass(frozen=True)
class Finished:
    """How far all erasures are, of those that this machine knows."""

    waits_for: frozenset[str] = frozenset()
    """Runs and backfills that have the videos in hand; empty where nothing is left to do."""
    refused: tuple[str, ...] = ()
    """What may not be removed from the store."""


def finish_erasures(
    corpus: Corpus, instance: dg.DagsterInstance, names: CorpusNames, *, own_run: str | None = None
) -> Finished:
    """Do what is left to do of erasures, whoever has begun them; costs three small requests where nothing is.

    The caller holds the home folder's lock for `clipfarm sync`, which would miss what is removed from there.

    Args:
        own_run: the run in which this happens. It names the videos, so something is left for a later call.

    Raises:
        ErasureError: a database is in use; repeating finishes it.
        ManifestError: a manifest is replaced each time that it was read.
        LedgerError: a ledger cannot be used, or the list of erased videos is damaged.
        StoreError: the store cannot be used.
    """
    notes, erased = ErasureNotes(corpus.settings.home_files), corpus.tombstones.read()
    begun, known = notes.begun(), is_known(instance)
    instance_clean = not known or _clean_of(instance, names) == erased.version
    if begun == Begun() and not erased.unfinished and instance_clean and notes.clean_of == erased.version:
        return Finished()
    own = {own_run} if own_run is not None else set()
    at_work = have_not_ended(instance, begun.runs) - own
    if at_work and not erased.unfinished:
        return Finished(frozenset(at_work))

    if new := begun.video_ids - erased.among(begun.video_ids):  # ended between note and tombstone
        erased = _add_tombstones(corpus, new, begun.raw)
    found = set() if instance_clean else erased.among(_ids_in(instance, names))
    begun = notes.begin(found)
    hands = find_hands(instance, names, begun.video_ids) if begun.video_ids else Hands()
    refused = erasure.finish(corpus, begun.video_ids, raw=begun.raw)
    clear_caches(corpus.settings.home_files)
    at_work |= hands.at_work - own
    if not at_work and known:
        tombstones = {video_id: erased.tombstone(video_id) for video_id in begun.video_ids}
        erase_from_dagster(instance, names, tombstones, besides=not_dagsters(corpus))
        at_work = have_begun(instance, hands.waiting)  # with the ids, perhaps, since they were looked for
    if at_work or own:
        notes.begin((), runs=at_work | own)
        return Finished(frozenset(at_work | own), tuple(refused))
    if known:
        _mark_clean(instance, names, erased.version)
    notes.mark_clean(erased.version)
    notes.end(begun)
    return Finished(refused=tuple(refused))


def begin_erasure(corpus: Corpus, video_ids: Collection[str], *, raw: bool) -> None:
    """Keep videos away from now on, and remove what is in the store and the ledgers; `finish_erasures` does
    the rest. Raises what that raises.

    Args:
        raw: whether raw objects go too.
    """
    raw_ids = video_ids if raw else ()
    begun = ErasureNotes(corpus.settings.home_files).begin(video_ids, raw=raw_ids)
    _add_tombstones(corpus, video_ids, raw_ids)
    erasure.finish(corpus, begun.video_ids, raw=begun.raw)


def finish_erasures_if_free(
    corpus: Corpus, instance: dg.DagsterInstance, names: CorpusNames, *, own_run: str | None = None
) -> Finished:
    """`finish_erasures`, unless `clipfarm sync` is at work in the home folder, which calls it in the end."""
    home = corpus.settings.home_files
    home.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home.sync_lock, timeout=0):
            return finish_erasures(corpus, instance, names, own_run=own_run)
    except Timeout:
        return Finished(frozenset({"clipfarm sync"}))


@contextmanager
def erasures_followed(corpus: Corpus, instance: dg.DagsterInstance, names: CorpusNames) -> Iterator[Erased]:
    """For whoever reads ids and tells Dagster of them: gives the videos that are erased, and if others are
    erased before the block ends, has the instance looked through again."""
    erased = corpus.tombstones.read()
    yield erased
    if corpus.tombstones.read().version != erased.version:
        mark_unclean(instance, names)


def mark_unclean(instance: dg.DagsterInstance, names: CorpusNames) -> None:
    """Have the next tick or sync look through an instance for erased videos."""
    if is_known(instance):
        _mark_clean(instance, names, "")


def _add_tombstones(corpus: Corpus, video_ids: Collection[str], raw: Collection[str]) -> Erased:
    corpus.tombstones.add(set(video_ids).intersection(raw), raw=True)
    return corpus.tombstones.add(set(video_ids).difference(raw))


def not_dagsters(corpus: Corpus) -> list[Path]:
    """What may lie in the folder of a Dagster instance and is not its own."""
    home, store = corpus.settings.home_files, local_path(corpus.store.url)
    return [home.state, home.cache, *([store] if store else [])]


def _ids_in(instance: dg.DagsterInstance, names: CorpusNames) -> Iterator[str]:
    """The ids that an instance keeps as such: partitions, and those that configs of runs name."""
    yield from instance.get_dynamic_partitions(names.partitions_name)
    cursor = None
    while runs := instance.get_runs(cursor=cursor, limit=_RUNS_AT_A_TIME):
        for run in runs:
            for stage in Stage:
                yield from id_list(names, stage, run.run_config)
                _, listed = candidate_id_list(names, stage, run.run_config) or ("", [])
                yield from listed
            yield from erasure_list(names, run.run_config)
        cursor = runs[-1].run_id


def _clean_of(instance: dg.DagsterInstance, names: CorpusNames) -> str:
    """The version of the tombstones of whose videos an instance has nothing."""
    key = _mark(names)
    return instance.run_storage.get_cursor_values({key}).get(key, "")


def _mark_clean(instance: dg.DagsterInstance, names: CorpusNames, version: str) -> None:
    instance.run_storage.set_cursor_values({_mark(names): version})


def _mark(names: CorpusNames) -> str:
    return f"clipfarm/erased/{names.corpus}"
