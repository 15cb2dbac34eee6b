"""Runs that may write of videos which are being erased: nothing of these is final while one is at work."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.orchestration.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.in_flight import UNFINISHED_RUN_STATUSES, partition_range
from clipfarm_dagster.stages import Stage

NOT_BEGUN = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)


@dataclass(frozen=True)
class Hands:
    """The runs and backfills that are not ended and may write of some videos, by id."""

    at_work: frozenset[str] = frozenset()
    """They have begun, and have in memory what they will write."""
    waiting: frozenset[str] = frozenset()
    """They have not: what they are to do is read from the storage when they begin."""


def find_hands(instance: dg.DagsterInstance, names: CorpusNames, video_ids: Collection[str]) -> Hands:
    """The runs and backfills that name one of some videos, and the runs of the corpus that go over all of
    them, such as those that make manifests."""
    ids = IdText(dict.fromkeys(video_ids, "…"))
    at_work, waiting = set[str](), set[str]()
    partitions = instance.get_dynamic_partitions(names.partitions_name)
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED_RUN_STATUSES)):
        if _has_in_hand(run, names, ids, partitions):
            (waiting if run.status in NOT_BEGUN else at_work).add(run.run_id)
    return Hands(frozenset(at_work | _backfills_with(instance, ids)), frozenset(waiting))


def have_begun(instance: dg.DagsterInstance, run_ids: Collection[str]) -> set[str]:
    """Those of some runs that have begun, be they ended or not."""
    if not run_ids:
        return set()
    runs = instance.get_runs(dg.RunsFilter(run_ids=list(run_ids)))
    return {run.run_id for run in runs if run.status not in NOT_BEGUN}


def have_not_ended(instance: dg.DagsterInstance, run_ids: Collection[str]) -> set[str]:
    """Those of some runs and backfills that are at work."""
    if not run_ids:
        return set()
    runs = instance.get_runs(dg.RunsFilter(run_ids=list(run_ids), statuses=UNFINISHED_RUN_STATUSES))
    begun = {run.run_id for run in runs if run.status not in NOT_BEGUN}
    return begun | {backfill_id for backfill_id, _ in _backfills_at_work(instance)}.intersection(run_ids)


def _has_in_hand(run: dg.DagsterRun, names: CorpusNames, ids: IdText, partitions: Sequence[str]) -> bool:
    config = json.dumps(run.run_config)
    if ids.replaced_value(config) != config:
        return True
    if any(ids.replaced_value(value, tag) != value for tag, value in run.tags.items()):
        return True
    if not names.is_run(run):
        return False
    start, end = run.tags.get(ASSET_PARTITION_RANGE_START_TAG), run.tags.get(ASSET_PARTITION_RANGE_END_TAG)
    if start and end:
        return not ids.tombstones.keys().isdisjoint(partition_range(partitions, start, end))
    names_others = PARTITION_NAME_TAG in run.tags or run.job_name in {
        names.erasure_job,
        *map(names.embedding_job, Stage),
        *map(names.candidate_job, Stage),
    }
    return not names_others


def _backfills_with(instance: dg.DagsterInstance, ids: IdText) -> set[str]:
    return {
        backfill_id for backfill_id, text in _backfills_at_work(instance) if ids.replaced_value(text) != text
    }


def _backfills_at_work(instance: dg.DagsterInstance) -> Iterator[tuple[str, str]]:
    """Ids of the backfills that have not ended, each with what is stored of it."""
    from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
    from dagster._serdes import serialize_value

    statuses = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=statuses)):
        yield backfill.backfill_id, serialize_value(backfill)
