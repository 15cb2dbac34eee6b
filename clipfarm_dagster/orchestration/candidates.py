"""What sensor and `clipfarm sync` do for the generations that the settings ask for while others serve."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import dagster as dg

from clipfarm_dagster.catalog.metadata import LatestRows
from clipfarm_dagster.corpus import StageCorpus
from clipfarm_dagster.errors import ModelUnavailableError, SettingsError
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.orchestration.dagster_internals import max_concurrent_runs
from clipfarm_dagster.orchestration.launching import Launches
from clipfarm_dagster.orchestration.names import GENERATION_TAG, STAGE_TAG, CorpusNames
from clipfarm_dagster.planning.delta import StagePlan
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage

_NEARLY_FULL = 100
"""It is looked whether a candidate may serve once no more than one in so many videos is work in it."""


@dataclass(frozen=True)
class Candidates:
    """The generations to fill."""

    by_stage: Mapping[Stage, StageCorpus]
    notes: tuple[str, ...] = ()
    """Why it cannot be told whether a stage has one."""


def find_candidates(stages: Mapping[Stage, StageCorpus]) -> Candidates:
    """The generations to fill beside those that serve.

    A model that the settings ask for and that cannot be had keeps no other from its work.
    """
    found: dict[Stage, StageCorpus] = {}
    notes: list[str] = []
    for stage, opened in stages.items():
        try:
            candidate = opened.candidate()
        except (ModelUnavailableError, SettingsError) as error:
            notes.append(f"{stage}: {error}")
        else:
            if candidate is not None:
                found[stage] = candidate
    return Candidates(found, tuple(notes))


def unavailable(opened: StageCorpus) -> str | None:
    """Why new videos have to wait, where the model of what serves cannot be had any more and another one is
    on its way; of the model that the settings ask for, the run tells."""
    if opened.wanted.id == opened.contract.id:
        return None
    try:
        _ = opened.model_settings
    except ModelUnavailableError as error:
        return str(error)
    return None


def without_work(plan: StagePlan) -> StagePlan:
    """A plan whose work has to wait."""
    return replace(plan, work=plan.work.slice(0, 0), reasons={})


def free_runs(instance: dg.DagsterInstance, settings: Settings, candidate_runs: int) -> int:
    """How many more runs may fill candidates now, by `CLIPFARM_MIGRATION_SHARE`."""
    slots = max_concurrent_runs(instance)
    if slots is None:
        slots = settings.max_runs_per_tick
    share = settings.migration_share
    most = max(1, int(share * slots)) if share else 0
    return max(0, most - candidate_runs)


def decide_candidate_launches(
    plans: Mapping[Stage, StagePlan],
    *,
    partitions: Container[str],
    waiting: Mapping[Stage, datetime],
    run_size: int,
    max_runs: int,
) -> Launches:
    """Which runs to launch to fill candidates, that which is nearest to full first.

    Args:
        partitions: the videos that Dagster has partitions of.
        waiting: when a run may be launched again, of stages whose last run broke.
        run_size: most videos of one run.
        max_runs: most runs of all stages.
    """
    id_lists: list[tuple[Stage, Sequence[str]]] = []
    notes: list[str] = []
    for stage, plan in sorted(plans.items(), key=lambda entry: entry[1].delta):
        if not plan.delta:
            continue
        ids = [video_id for video_id in plan.work["video_id"].to_pylist() if video_id in partitions]
        note = f"{stage} candidate: {plan.delta} to embed"
        if stage in waiting:
            notes.append(
                f"{note}; the last run could not do its work, the next starts after {waiting[stage]}"
            )
        elif ids and len(id_lists) < max_runs:
            id_lists.append((stage, ids[:run_size]))
            notes.append(note)
        else:
            notes.append(note)
    return Launches(id_lists, notes, unfinished=False)


def nearly_full(plan: StagePlan, latest: LatestRows) -> bool:
    """Whether it is worth looking whether a candidate may serve."""
    return plan.delta <= latest.videos // _NEARLY_FULL


def under_way(serving: Serving | None) -> bool:
    """Whether a cut-over was begun and is not at its end."""
    return serving is not None and (serving.following is not None or not serving.settled)


def cut_over_run_config(names: CorpusNames, stage: Stage) -> dict[str, Any]:
    """Run config of a run of `cut_over_job`."""
    return {"ops": {names.cut_over_op: {"config": {"stage": str(stage)}}}}


def cut_over_run_tags(names: CorpusNames, stage: Stage, contract_id: str) -> dict[str, str]:
    """Run tags of a run of `cut_over_job`."""
    return {**names.run_tags(), STAGE_TAG: str(stage), GENERATION_TAG: contract_id}


def cut_overs_in_flight(
    instance: dg.DagsterInstance, names: CorpusNames, statuses: Collection[dg.DagsterRunStatus]
) -> set[str]:
    """Stages of the unfinished runs of `cut_over_job`."""
    runs = instance.get_runs(dg.RunsFilter(job_name=names.cut_over_job, statuses=list(statuses)))
    return {run.tags.get(STAGE_TAG, "") for run in runs}
