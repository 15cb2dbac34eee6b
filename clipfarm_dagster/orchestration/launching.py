"""What the sensor and `clipfarm sync` share on the way from a plan to runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.orchestration.events import embedding_materialization
from clipfarm_dagster.orchestration.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.orchestration.recording import report_events
from clipfarm_dagster.planning.delta import StagePlan
from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    pass


MAX_NEW_PARTITIONS = 10_000
"""Partitions that one tick adds; the rest follow in the next ones, newest first."""


def chunks(video_ids: Sequence[str], size: int, limit: int) -> list[Sequence[str]]:
    """At most `limit` chunks of at most `size` ids, in order."""
    return [video_ids[i : i + size] for i in range(0, min(len(video_ids), size * limit), size)]


def plan_notes(stage: Stage, plan: StagePlan) -> list[str]:
    """What a tick says of a stage."""
    notes = []
    if plan.reasons:
        notes.append(f"{stage}: " + ", ".join(f"{count} {reason}" for reason, count in plan.reasons.items()))
    if plan.missing.num_rows:
        notes.append(f"{stage}: {plan.missing.num_rows} raw objects missing")
    return notes


def announce_restored(
    instance: dg.DagsterInstance, corpus: Corpus, stage: Stage, rows: Sequence[LedgerRow]
) -> None:
    """Tell Dagster of vectors that are the right ones again, without a run."""
    contract = corpus.contract(stage)
    report_events(
        instance, [embedding_materialization(stage, row, contract, corpus.store.url) for row in rows]
    )


def add_partitions(instance: dg.DagsterInstance, video_ids: Sequence[str], known: set[str]) -> list[str]:
    """Add partitions for the first unknown ids, in one call; returns them."""
    new = [video_id for video_id in video_ids if video_id not in known][:MAX_NEW_PARTITIONS]
    if new:
        instance.add_dynamic_partitions(VIDEO_PARTITIONS.name or "", new)
    return new
