"""The sensor that keeps manifests and fused vectors fresh: one run a burst of embeddings, not one a run.

Dagster's declarative automation would launch a run at the first embedding of a burst and another at each of
the following ticks, since it sees single materializations. What counts here is the ledgers: a run is launched
once they have changed and then come to rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.manifests.strategies import STRATEGIES
from clipfarm_dagster.orchestration.jobs import manifests_run_config
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs
from clipfarm_dagster.orchestration.runs.in_flight import UNFINISHED_RUN_STATUSES, videos_in_flight
from clipfarm_dagster.orchestration.sensors.corpus_sensor import corpus_sensor
from clipfarm_dagster.orchestration.sensors.cursor import Cursor
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.timestamps import timestamp

if TYPE_CHECKING:
    from clipfarm_dagster.orchestration.dagster_internals import UnresolvedAssetJobDefinition

MINIMUM_INTERVAL_SECONDS = 45
"""Longer than the interval of the embedding sensor, so that of two ticks the second sees what it launched."""

LONGEST_WAIT = timedelta(minutes=30)
"""How old manifests get where embeddings never come to rest, and when a failed run is repeated."""

ALWAYS_FUSED = "concat"
"""The strategy that works with every model. The others are kept fresh once they have been materialized."""


@dataclass(frozen=True)
class LastManifests(Cursor):
    """What the sensor keeps between ticks."""

    done: Mapping[str, str] = field(default_factory=dict)
    """What the manifests were last made of, by stage, as `corpus_versions` gives it."""
    last: Mapping[str, str] = field(default_factory=dict)
    """What the last tick saw."""
    since: str = ""
    """When a run was launched, or, where `last` differs from `done`, when that was first seen."""


@dataclass(frozen=True)
class Decision:
    """What a tick does: launch a run, or not, and why."""

    seen: LastManifests
    launch: bool
    reason: str


def decide(
    seen: LastManifests,
    versions: Mapping[str, str],
    *,
    busy: bool,
    refreshing: bool,
    failed: bool,
    now: datetime,
) -> Decision:
    """Whether manifests are due.

    Args:
        versions: what the manifests would be made of now.
        busy: whether runs have videos in hand.
        refreshing: whether a run of manifests is queued or in progress.
        failed: whether the last run of manifests failed.
        now: aware time.
    """
    launch = LastManifests(versions, versions, timestamp(now))
    overdue = timestamp(now - LONGEST_WAIT) >= seen.since
    if versions == seen.done:
        if failed and overdue and not refreshing:
            return Decision(launch, True, "the last run failed; trying again")
        return Decision(replace(seen, last=versions), False, "the manifests are up to date with the ledgers")
    changed_now = seen.last == seen.done
    waiting = LastManifests(seen.done, versions, timestamp(now) if changed_now else seen.since)
    if refreshing:
        return Decision(waiting, False, "manifests are being made; the next tick checks again")
    if overdue and not changed_now:
        return Decision(launch, True, f"changed since {seen.since}, and still changing")
    if busy:
        return Decision(waiting, False, "embeddings are being made; manifests follow when they are done")
    if versions != seen.last:
        return Decision(
            waiting, False, "the ledgers have changed; manifests follow once they are unchanged for a tick"
        )
    return Decision(launch, True, "the ledgers have changed and settled")


def corpus_versions(corpus: Corpus) -> dict[str, str]:
    """All that manifests and fused vectors are made of, in short: what the ledgers hold, the contracts, and
    how vectors are fused."""
    versions = {"fusion": corpus.settings.fusion_weights}
    with corpus.stages(list(Stage)) as stages:
        for stage, opened in stages.items():
            versions[str(stage)] = f"{opened.contract.id} {opened.ledger.rows_version()}"
    return versions


def strategies_in_use(corpus: Corpus) -> list[str]:
    """The strategies to keep fresh."""
    return [
        name
        for name in STRATEGIES
        if name == ALWAYS_FUSED or corpus.store.head(corpus.keys.fused_manifest(name)) is not None
    ]


def manifest_sensor(names: CorpusNames, job: "UnresolvedAssetJobDefinition") -> dg.SensorDefinition:
    """The sensor of a corpus, which launches its manifests job."""
    return corpus_sensor(
        names,
        names.manifest_sensor,
        _tick,
        jobs=[job],
        interval_seconds=MINIMUM_INTERVAL_SECONDS,
        description=(
            "Brings manifests and fused vectors up to date once the ledgers have stopped changing: one"
            " run per burst of embeddings. If they never stop, every"
            f" {LONGEST_WAIT // timedelta(minutes=1)} minutes."
        ),
    )


def _tick(
    context: dg.SensorEvaluationContext, names: CorpusNames, corpus: Corpus
) -> dg.SensorResult | dg.SkipReason:
    for run_id in fail_dead_runs(context.instance, names):
        context.log.warning(f"run {run_id} was killed; its unfinished items are due again")
    decision = decide(
        LastManifests.from_cursor(context.cursor),
        corpus_versions(corpus),
        busy=any(videos_in_flight(context.instance, names).serving.values()),
        refreshing=_has_run(context.instance, names, UNFINISHED_RUN_STATUSES),
        failed=_last_run_failed(context.instance, names),
        now=datetime.now(UTC),
    )
    strategies = strategies_in_use(corpus) if decision.launch else []
    context.log.info(decision.reason)
    if not decision.launch:
        context.update_cursor(decision.seen.to_cursor())
        return dg.SkipReason(decision.reason)
    request = dg.RunRequest(run_config=manifests_run_config(names, strategies))
    return dg.SensorResult(run_requests=[request], cursor=decision.seen.to_cursor())


def _has_run(
    instance: dg.DagsterInstance, names: CorpusNames, statuses: Sequence[dg.DagsterRunStatus]
) -> bool:
    return instance.get_runs_count(dg.RunsFilter(job_name=names.manifests_job, statuses=statuses)) > 0


def _last_run_failed(instance: dg.DagsterInstance, names: CorpusNames) -> bool:
    runs = instance.get_runs(dg.RunsFilter(job_name=names.manifests_job), limit=1)
    return any(run.status == dg.DagsterRunStatus.FAILURE for run in runs)
