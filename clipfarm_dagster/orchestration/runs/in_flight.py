"""Which videos runs have in hand now, as Dagster's run storage tells it: one query, whatever their number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import dagster as dg

from clipfarm_dagster.corpus import StageCorpus
from clipfarm_dagster.orchestration.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.id_list import candidate_id_list, id_list
from clipfarm_dagster.stages import Stage

UNFINISHED_RUN_STATUSES = tuple(
    status
    for status in dg.DagsterRunStatus
    if status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
)
"""Statuses of the runs that have yet to end: created, queued, starting, at work, or being cancelled."""


@dataclass(frozen=True)
class InFlight:
    """What unfinished runs of a corpus have in hand."""

    serving: dict[Stage, set[str]] = field(default_factory=lambda: {stage: set() for stage in Stage})
    """Ids that are being embedded for the generation that serves."""
    candidates: dict[tuple[Stage, str | None], set[str]] = field(default_factory=lambda: defaultdict(set))
    """Ids that are being embedded for another, by its contract id: None for the one that the settings ask
    for."""
    candidate_runs: int = 0
    """The sensor's runs among those of `candidates`."""

    def of(self, generation: StageCorpus) -> set[str]:
        """The ids that are being embedded for a generation."""
        named = self.candidates.get((generation.stage, generation.contract.id), set())
        if generation.serves:
            return self.serving[generation.stage] | named
        return named | self.candidates.get((generation.stage, None), set())


def videos_in_flight(instance: dg.DagsterInstance, names: CorpusNames) -> InFlight:
    """What unfinished runs of a corpus have in hand: by id list, partition or partition range."""
    found, candidate_runs = InFlight(), 0
    partitions: Sequence[str] | None = None
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED_RUN_STATUSES)):
        for stage in Stage:
            found.serving[stage].update(id_list(names, stage, run.run_config))
            if (listed := candidate_id_list(names, stage, run.run_config)) is not None:
                generation, listed_ids = listed
                found.candidates[stage, generation].update(listed_ids)
                candidate_runs += 1
        for ids in _of_partitions(instance, names, run, found):
            if partition := run.tags.get(PARTITION_NAME_TAG):
                ids.add(partition)
            start, end = (
                run.tags.get(ASSET_PARTITION_RANGE_START_TAG),
                run.tags.get(ASSET_PARTITION_RANGE_END_TAG),
            )
            if start and end:
                if partitions is None:
                    partitions = instance.get_dynamic_partitions(names.partitions_name)
                ids.update(partition_range(partitions, start, end))
    return InFlight(found.serving, found.candidates, candidate_runs)


def _of_partitions(
    instance: dg.DagsterInstance, names: CorpusNames, run: dg.DagsterRun, found: InFlight
) -> Iterator[set[str]]:
    """Where the partitions of a run belong."""
    selected = _selected(instance, run)
    for stage in Stage:
        if names.embedding(stage) in selected:
            yield found.serving[stage]
        if names.candidate(stage) in selected:
            yield found.candidates[stage, None]


def _selected(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Collection[dg.AssetKey | None]:
    """The assets that a run of partitions materializes."""
    if run.asset_selection is not None:
        return run.asset_selection
    if not {PARTITION_NAME_TAG, ASSET_PARTITION_RANGE_START_TAG} & run.tags.keys():
        return ()
    # of a whole job that a project has defined: the run itself does not name its assets
    planned = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    return {entry.get_dagster_event().asset_key for entry in planned}


def partition_range(partitions: Sequence[str], start: str, end: str) -> Sequence[str]:
    """The partitions from `start` to `end`; the whole, to be safe, where one of them has been deleted."""
    try:
        return partitions[partitions.index(start) : partitions.index(end) + 1]
    except ValueError:
        return partitions
