"""The sensor: keeps every embedding up to date without anyone clicking.

A tick looks at the metadata CSV, the raw listings, the ledgers and the runs in flight, adds partitions for
new videos and launches id-list runs for the delta. It keeps no list of its own of what was requested: what a
run has in hand is in Dagster's run storage, and what it left undone is in the ledger, so nothing is lost by a
crash.

Where nothing has changed, a tick ends at once. It plans when the CSV's ETag, a contract, a ledger or the runs
in flight differ from what the last plan saw, when a retry is due, when work was left over, or when the raw
objects differ. Since listing a large store takes longer than all the rest, it lists

- every stage, at each tick, as long as that takes no longer than `CHEAP_LISTING_SECONDS`;
- every stage, at most `LISTING_SHARE` of the time, where it takes longer: an object that is overwritten in a
  store of 100,000 is noticed within minutes;
- in between, what is recorded as missing: few objects are asked for one by one, for many their stage is
  listed. So a missing object is always noticed by the next tick.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from clipfarm_dagster.catalog.metadata import LatestRows
from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.corpus.stage_corpus import plan_stages
from clipfarm_dagster.maintenance.readiness import readiness
from clipfarm_dagster.orchestration.candidates import (
    Candidates,
    cut_over_run_config,
    cut_over_run_tags,
    cut_overs_in_flight,
    decide_candidate_launches,
    find_candidates,
    free_runs,
    nearly_full,
    unavailable,
    under_way,
    without_work,
)
from clipfarm_dagster.orchestration.launching import (
    MAX_NEW_PARTITIONS,
    Launches,
    add_partitions,
    decide_launches,
    gathering_since,
    settle,
)
from clipfarm_dagster.orchestration.names import STAGE_TAG, CorpusNames
from clipfarm_dagster.orchestration.reconcile import reconcile
from clipfarm_dagster.orchestration.runs.broken import launch_again_at, waiting_stages
from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
from clipfarm_dagster.orchestration.runs.in_flight import UNFINISHED_RUN_STATUSES, InFlight, videos_in_flight
from clipfarm_dagster.orchestration.sensors.corpus_sensor import corpus_sensor
from clipfarm_dagster.orchestration.sensors.erasures import following_erasures
from clipfarm_dagster.orchestration.sensors.watching import (
    LastPlan,
    found_objects,
    list_raw,
    listing_hashes,
    look,
    raw_objects_differ,
)
from clipfarm_dagster.planning.delta import StagePlan
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.timestamps import timestamp

if TYPE_CHECKING:
    import pyarrow as pa

MINIMUM_INTERVAL_SECONDS = 30
TICK_SECONDS = 30.0
"""After so long a tick takes up no further stage; Dagster ends a tick at 60 seconds by default."""
MAX_MISSING = 10_000
MAX_RESTORED = 500
"""Videos of a stage that one tick records as missing, or as restored, which Dagster is told of one by one;
the rest follow in the next ticks."""
MAX_TOLD = 5_000
"""Vectors of a generation that began to serve of which one tick tells Dagster."""


def embedding_sensor(names: CorpusNames, jobs: Sequence[dg.JobDefinition]) -> dg.SensorDefinition:
    """The sensor of a corpus, which launches its embedding and cut-over jobs."""
    return corpus_sensor(
        names,
        names.embedding_sensor,
        following_erasures(_tick),
        jobs=jobs,
        interval_seconds=MINIMUM_INTERVAL_SECONDS,
        description=(
            "Adds a partition for each new video and embeds what is new, has changed or is due for a retry."
            " Reads the metadata CSV, the raw listings and the ledgers; launches runs by lists of ids. When a"
            " model setting has changed, it embeds all videos by the new model beside the old one, and lets"
            " the new one serve when it has them all."
        ),
    )


@dataclass(frozen=True)
class _Work:
    """What one tick works with."""

    context: dg.SensorEvaluationContext
    names: CorpusNames
    corpus: Corpus
    stages: Mapping[Stage, StageCorpus]
    candidates: Candidates
    in_flight: InFlight
    deadline: float
    now: datetime


def _tick(
    context: dg.SensorEvaluationContext, names: CorpusNames, corpus: Corpus
) -> dg.SensorResult | dg.SkipReason:
    """Look whether there is anything to do, and plan only then."""
    deadline, now = time.monotonic() + TICK_SECONDS, datetime.now(UTC)
    last = LastPlan.from_cursor(context.cursor)
    for run_id in fail_dead_runs(context.instance, names):
        context.log.warning(f"run {run_id} was killed; its unfinished items are due again")
    in_flight = videos_in_flight(context.instance, names)
    with corpus.stages(list(Stage)) as stages:
        candidates = find_candidates(stages)
        work = _Work(context, names, corpus, stages, candidates, in_flight, deadline, now)
        last = _tell_of_cut_overs(work, last)
        inputs = look(corpus, stages, candidates.by_stage, in_flight)
        must_plan = last.must_plan(inputs, now)
        latest = corpus.latest_rows()
        to_list = list(Stage) if must_plan else last.stages_to_list(inputs, now)
        listings, seconds = list_raw(corpus, to_list, latest)
        if len(listings) == len(Stage):
            last = replace(last, listed_at=now.timestamp(), listing_seconds=seconds)
        if not must_plan and not raw_objects_differ(corpus, last, inputs, listings):
            context.update_cursor(last.to_cursor())
            return dg.SkipReason(_resting(last, in_flight))
        listings |= list_raw(corpus, [stage for stage in Stage if stage not in listings], latest)[0]
        requests, notes, last = _plan(work, latest, listings, last)
    context.log.info("; ".join(notes) or "nothing to do")
    if not requests:
        context.update_cursor(last.to_cursor())
        return dg.SkipReason("; ".join(notes) or _resting(last, in_flight))
    return dg.SensorResult(run_requests=requests, cursor=last.to_cursor())


def _plan(
    work: _Work, latest: LatestRows, listings: Mapping[Stage, "pa.Table"], last: LastPlan
) -> tuple[list[dg.RunRequest], list[str], LastPlan]:
    """Plan, add partitions, record what needs no run; the runs to launch, what a person should know, and what
    this tick has seen."""
    context, names, corpus, stages = work.context, work.names, work.corpus, work.stages
    if latest.refused_ids:
        some = ", ".join(repr(video_id) for video_id in list(latest.refused)[:5])
        context.log.warning(f"{latest.refused_ids} video_ids of the metadata are refused, such as {some}")
    partitions = set(context.instance.get_dynamic_partitions(names.partitions_name))
    added = add_partitions(context.instance, names, latest.video_ids(), partitions, limit=MAX_NEW_PARTITIONS)
    partitions.update(added)
    notes = [f"{len(added)} partitions added"] if added else []
    notes += work.candidates.notes

    plans = _plans_of(work, stages, latest, listings, {stage: set() for stage in Stage})
    launchable, waits = {}, False
    for stage, plan in plans.items():
        why = unavailable(stages[stage]) if plan.work.num_rows and stage in work.candidates.by_stage else None
        launchable[stage] = plan if why is None else without_work(plan)
        if why is not None:
            waits = True
            notes.append(f"{stage}: {plan.delta} videos wait for the model that serves: {why}")
    waiting = waiting_stages(
        context.instance, {stage: names.embedding_job(stage) for stage in Stage}, work.now
    )
    gathering = _gathering(work, {s: plan for s, plan in launchable.items() if s not in waiting}, last)
    notes += [f"{stage}: {launchable[stage].delta} videos wait for more of them" for stage in gathering]
    launches = decide_launches(
        {stage: plan for stage, plan in launchable.items() if stage not in gathering},
        partitions=partitions,
        waiting=waiting,
        run_size=corpus.settings.ids_per_run,
        max_runs=corpus.settings.max_runs_per_tick,
    )
    requests = [_run_request(names, stage, ids, None) for stage, ids in launches.id_lists]
    serving_first = {
        stage: {*work.in_flight.of(stages[stage]), *launchable[stage].work["video_id"].to_pylist()}
        for stage in launchable
    }
    candidate_plans, filling = _fill(work, latest, listings, partitions, serving_first)
    requests += [
        _run_request(names, stage, ids, work.candidates.by_stage[stage].contract.id)
        for stage, ids in filling.id_lists
    ]
    cut_overs, held_up = _cut_overs(work, latest, candidate_plans)
    requests += cut_overs

    every_plan = [*plans.values(), *candidate_plans.values()]
    unfinished = (
        launches.unfinished
        or waits
        or held_up
        or len(partitions) < latest.videos
        or len(plans) < len(Stage)
        or len(candidate_plans) < len(work.candidates.by_stage)
        or any(plan.missing.num_rows > MAX_MISSING for plan in every_plan)
        or any(plan.restored.num_rows > MAX_RESTORED for plan in every_plan)
    )
    inputs = look(corpus, stages, work.candidates.by_stage, work.in_flight)
    seen = replace(
        last,
        # none where there are runs: the ledgers that they leave are looked at
        digest="" if requests else inputs.digest,
        raw=listing_hashes(listings),
        found={
            stage: found_objects(corpus, stage, inputs.missing[stage], listings[stage]) for stage in Stage
        },
        next_attempt_at=min(
            [
                *filter(None, (plan.next_attempt_at for plan in every_plan)),
                *(_gathered_at(work, since) for since in gathering.values()),
            ],
            default=None,
        ),
        gathering={str(stage): since for stage, since in gathering.items()},
        unfinished=unfinished,
    )
    return requests, [*notes, *launches.notes, *filling.notes], seen


def _gathering(work: _Work, plans: Mapping[Stage, StagePlan], last: LastPlan) -> dict[Stage, float]:
    """The stages whose videos are too few for a run yet, and since when."""
    settings, now = work.corpus.settings, work.now.timestamp()
    found = {
        stage: gathering_since(
            plan.delta,
            last.gathering.get(stage),
            now,
            run_size=settings.ids_per_run,
            gather_seconds=settings.gather_seconds,
        )
        for stage, plan in plans.items()
    }
    return {stage: since for stage, since in found.items() if since is not None}


def _gathered_at(work: _Work, since: float) -> str:
    return timestamp(datetime.fromtimestamp(since + work.corpus.settings.gather_seconds, UTC))


def _plans_of(
    work: _Work,
    generations: Mapping[Stage, StageCorpus],
    latest: LatestRows,
    listings: Mapping[Stage, "pa.Table"],
    others: Mapping[Stage, set[str]],
) -> dict[Stage, StagePlan]:
    """Plan some generations, and record what needs no run; `others` and what is in flight are left out."""
    settings = work.corpus.settings
    plans = plan_stages(
        generations,
        latest,
        in_flight={
            stage: work.in_flight.of(one) | others.get(stage, set()) for stage, one in generations.items()
        },
        limit=settings.ids_per_run * settings.max_runs_per_tick,
        listing=listings.__getitem__,
        deadline=work.deadline,
    )
    for stage, plan in plans.items():
        settle(
            work.context.instance,
            work.names,
            generations[stage],
            plan,
            most_missing=MAX_MISSING,
            most_restored=MAX_RESTORED,
        )
    return plans


def _fill(
    work: _Work,
    latest: LatestRows,
    listings: Mapping[Stage, "pa.Table"],
    partitions: set[str],
    serving_first: Mapping[Stage, set[str]],
) -> tuple[dict[Stage, StagePlan], Launches]:
    """Plan the candidates, and which runs fill them. What serves gets its vectors first."""
    instance, names, settings = work.context.instance, work.names, work.corpus.settings
    plans = _plans_of(work, work.candidates.by_stage, latest, listings, serving_first)
    jobs = {stage: names.candidate_job(stage) for stage in plans}
    launches = decide_candidate_launches(
        plans,
        partitions=partitions,
        waiting=waiting_stages(instance, jobs, work.now),
        run_size=settings.ids_per_run * settings.max_runs_per_tick,
        max_runs=free_runs(instance, settings, work.in_flight.candidate_runs) if plans else 0,
    )
    return plans, launches


def _cut_overs(
    work: _Work, latest: LatestRows, plans: Mapping[Stage, StagePlan]
) -> tuple[list[dg.RunRequest], bool]:
    """Runs that let a candidate serve which has all, or that finish what was begun; and whether one has to
    wait."""
    instance, names, due = work.context.instance, work.names, []
    for stage, opened in work.stages.items():
        if under_way(opened.serving):
            assert opened.serving is not None
            due.append((stage, opened.serving.following or opened.contract.id))
        elif stage in plans and nearly_full(plans[stage], latest):
            found = readiness(work.corpus, stage)
            if found is not None and found.ready:
                due.append((stage, found.contract_id))
    if not due:
        return [], False
    at_work = cut_overs_in_flight(instance, names, UNFINISHED_RUN_STATUSES)
    requests, waits = [], False
    for stage, contract_id in due:
        again = launch_again_at(instance, names.cut_over_job, {STAGE_TAG: str(stage)})
        if stage in at_work:
            continue
        if again is not None and again > work.now:
            waits = True
            continue
        requests.append(
            dg.RunRequest(
                job_name=names.cut_over_job,
                run_config=cut_over_run_config(names, stage),
                tags=cut_over_run_tags(names, stage, contract_id),
            )
        )
    return requests, waits


def _tell_of_cut_overs(work: _Work, last: LastPlan) -> LastPlan:
    """Tell Dagster of the vectors of generations that began to serve, wherever that was done."""
    told = dict(last.told)
    for stage, opened in work.stages.items():
        serving = opened.serving
        if serving is None or serving.before is None or told.get(stage) == serving.contract_id:
            continue
        done = reconcile(work.corpus, work.context.instance, work.names, stage, limit=MAX_TOLD)
        if done.mended < MAX_TOLD:
            told[str(stage)] = serving.contract_id
    return replace(last, told=told)


def _run_request(
    names: CorpusNames, stage: Stage, video_ids: Sequence[str], generation: str | None
) -> dg.RunRequest:
    return dg.RunRequest(
        job_name=names.embedding_job(stage) if generation is None else names.candidate_job(stage),
        run_config=id_list_run_config(names, stage, video_ids, generation),
        tags=id_list_run_tags(names, stage, video_ids, generation),
    )


def _resting(last: LastPlan, in_flight: InFlight) -> str:
    """Why a tick does nothing."""
    busy = ", ".join(f"{len(ids)} {stage}" for stage, ids in in_flight.serving.items() if ids)
    filling = ", ".join(f"{len(ids)} {stage}" for (stage, _), ids in in_flight.candidates.items() if ids)
    busy += f"{'; ' if busy else ''}for candidates {filling}" if filling else ""
    if busy:
        return f"nothing new; in runs now: {busy}"
    if last.gathering:
        return (
            f"nothing new; {' and '.join(last.gathering)} wait for more videos until {last.next_attempt_at}"
        )
    if last.next_attempt_at is not None:
        return f"nothing new; the next failed item is due at {last.next_attempt_at}"
    return "nothing new: metadata, raw objects and contracts are unchanged"
