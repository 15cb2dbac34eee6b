"""What the sensor and `clipfarm sync` share on the way from a plan to runs."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from clipfarm_dagster.corpus import StageCorpus
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.orchestration.events import embedding_materialization
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.recording import report_events
from clipfarm_dagster.planning.delta import StagePlan
from clipfarm_dagster.stages import Stage

MAX_NEW_PARTITIONS = 10_000
"""Partitions that one tick adds; the rest follow in the next ones, newest first."""


@dataclass(frozen=True)
class Launches:
    """The runs that plans lead to."""

    id_lists: Sequence[tuple[Stage, Sequence[str]]]
    """One a run: its stage and the videos that it embeds."""
    notes: Sequence[str]
    """What a person should know of it, by stage."""
    unfinished: bool
    """Whether work is left for later."""


def decide_launches(
    plans: Mapping[Stage, StagePlan],
    *,
    partitions: Container[str],
    waiting: Mapping[Stage, datetime],
    run_size: int,
    max_runs: int,
) -> Launches:
    """Which runs to launch for some plans of what serves.

    Args:
        partitions: the videos that Dagster has partitions of; others wait until they have one.
        waiting: when a run may be launched again, of stages whose last run broke.
        run_size: most videos of one run.
        max_runs: most runs of a stage.
    """
    id_lists: list[tuple[Stage, Sequence[str]]] = []
    notes: list[str] = []
    unfinished = False
    for stage, plan in plans.items():
        notes += _plan_notes(stage, plan)
        ids = [video_id for video_id in plan.work["video_id"].to_pylist() if video_id in partitions]
        if ids and stage in waiting:
            notes.append(
                f"{stage}: the last run could not do its work; the next starts after {waiting[stage]}"
            )
            unfinished = True
            continue
        id_lists += [(stage, chunk) for chunk in chunks(ids, run_size)[:max_runs]]
        unfinished = unfinished or plan.delta > len(ids)
    return Launches(id_lists, notes, unfinished)


def gathering_since(
    delta: int, since: float | None, now: float, *, run_size: int, gather_seconds: float
) -> float | None:
    """Since when so few videos have waited for others to share a run with, in seconds since 1970; None where
    they wait no longer.

    Args:
        delta: videos that a run could embed now.
        since: what this gave at the last tick.
    """
    if not 0 < delta < run_size:
        return None
    began = now if since is None else min(since, now)
    return began if now - began < gather_seconds else None


def chunks(video_ids: Sequence[str], size: int) -> list[Sequence[str]]:
    """Chunks of at most `size` ids, in order."""
    return [video_ids[i : i + size] for i in range(0, len(video_ids), size)]


def _plan_notes(stage: Stage, plan: StagePlan) -> list[str]:
    """What a tick says of a stage."""
    notes = []
    if plan.reasons:
        notes.append(f"{stage}: " + ", ".join(f"{count} {reason}" for reason, count in plan.reasons.items()))
    if plan.missing.num_rows:
        notes.append(f"{stage}: {plan.missing.num_rows} raw objects missing")
    return notes


def settle(
    instance: dg.DagsterInstance,
    names: CorpusNames,
    opened: StageCorpus,
    plan: StagePlan,
    *,
    most_missing: int | None = None,
    most_restored: int | None = None,
) -> None:
    """Record what a plan settles without a run, and tell Dagster of the vectors that are right again. The
    limits take the newest."""
    restored = opened.record_settled(plan, most_missing=most_missing, most_restored=most_restored)
    announce(instance, names, opened, restored)


def announce(
    instance: dg.DagsterInstance, names: CorpusNames, opened: StageCorpus, rows: Sequence[LedgerRow]
) -> None:
    """Tell Dagster, without a run, of vectors that are the right ones."""
    stage, asset = opened.stage, vectors_asset(names, opened)
    report_events(
        instance,
        [
            embedding_materialization(names, stage, row, opened.contract, opened.store.url, asset=asset)
            for row in rows
        ],
    )


def vectors_asset(names: CorpusNames, generation: StageCorpus) -> dg.AssetKey:
    """The asset that shows the vectors of a generation."""
    stage = generation.stage
    return names.embedding(stage) if generation.serves else names.candidate(stage)


def add_partitions(
    instance: dg.DagsterInstance,
    names: CorpusNames,
    video_ids: Sequence[str],
    known: set[str],
    *,
    limit: int | None = None,
) -> list[str]:
    """Add partitions for the first unknown ids, in one call; returns them."""
    new = [video_id for video_id in video_ids if video_id not in known][:limit]
    if new:
        instance.add_dynamic_partitions(names.partitions_name, new)
    return new
