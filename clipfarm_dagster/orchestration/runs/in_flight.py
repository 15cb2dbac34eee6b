"""Which videos runs have in hand now, as Dagster's run storage tells it: one query, whatever their number."""

from collections.abc import Collection, Sequence

import dagster as dg

from clipfarm_dagster.orchestration.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.id_list import id_list
from clipfarm_dagster.stages import Stage

UNFINISHED_RUN_STATUSES = tuple(
    status
    for status in dg.DagsterRunStatus
    if status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
)
"""Statuses of the runs that have yet to end: created, queued, starting, at work, or being cancelled."""


def videos_in_flight(instance: dg.DagsterInstance, names: CorpusNames) -> dict[Stage, set[str]]:
    """Ids by stage that unfinished runs of a corpus have: by id list, partition or partition range."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED_RUN_STATUSES))
    found: dict[Stage, set[str]] = {stage: set() for stage in Stage}
    partitions: Sequence[str] | None = None
    for run in runs:
        selected = _selected(instance, run)
        for stage in Stage:
            found[stage].update(id_list(names, stage, run.run_config))
            if names.embedding(stage) not in selected:
                continue
            if partition := run.tags.get(PARTITION_NAME_TAG):
                found[stage].add(partition)
            start, end = (
                run.tags.get(ASSET_PARTITION_RANGE_START_TAG),
                run.tags.get(ASSET_PARTITION_RANGE_END_TAG),
            )
            if start and end:
                if partitions is None:
                    partitions = instance.get_dynamic_partitions(names.partitions_name)
                found[stage].update(_range(partitions, start, end))
    return found


def _selected(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Collection[dg.AssetKey | None]:
    """The assets that a run of partitions materializes."""
    if run.asset_selection is not None:
        return run.asset_selection
    if not {PARTITION_NAME_TAG, ASSET_PARTITION_RANGE_START_TAG} & run.tags.keys():
        return ()
    # of a whole job that a project has defined: the run itself does not name its assets
    planned = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    return {entry.get_dagster_event().asset_key for entry in planned}


def _range(partitions: Sequence[str], start: str, end: str) -> Sequence[str]:
    """The partitions from `start` to `end`; the whole, to be safe, where one of them has been deleted."""
    try:
        return partitions[partitions.index(start) : partitions.index(end) + 1]
    except ValueError:
        return partitions
