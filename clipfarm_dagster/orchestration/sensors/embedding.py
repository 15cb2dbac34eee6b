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

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from clipfarm_dagster.catalog.metadata import LatestRows
from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.corpus.stage_corpus import plan_stages
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.orchestration.launching import (
    MAX_NEW_PARTITIONS,
    Launches,
    add_partitions,
    decide_launches,
    settle,
)
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.broken import waiting_stages
from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
from clipfarm_dagster.orchestration.runs.in_flight import videos_in_flight
from clipfarm_dagster.orchestration.sensors.corpus_sensor import corpus_sensor
from clipfarm_dagster.orchestration.sensors.cursor import Cursor
from clipfarm_dagster.planning.delta import listing_hash
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.timestamps import timestamp

if TYPE_CHECKING:
    import pyarrow as pa

MINIMUM_INTERVAL_SECONDS = 30
TICK_SECONDS = 30.0
"""After so long a tick takes up no further stage; Dagster ends a tick at 60 seconds by default."""
CHEAP_LISTING_SECONDS = 0.25
LISTING_SHARE = 0.01
MAX_ASKED_FOR = 300
"""Missing objects of a stage that are asked for one by one; for more, one listing costs less."""
MAX_MISSING = 10_000
MAX_RESTORED = 500
"""Videos of a stage that one tick records as missing, or as restored, which Dagster is told of one by one;
the rest follow in the next ticks."""


@dataclass(frozen=True)
class PlanInputs:
    """All that planning depends on besides the time and the raw objects."""

    digest: str
    missing: Mapping[Stage, Sequence[str]]
    """Ids that the ledgers record as missing their raw object, up to one more than `MAX_ASKED_FOR`."""


@dataclass(frozen=True)
class LastPlan(Cursor):
    """What the last plan saw; while nothing of it changes there is nothing to do."""

    digest: str = ""
    """Of `PlanInputs`. Empty after a tick that led to runs: the ledgers that they leave are looked at."""
    raw: Mapping[str, str] = field(default_factory=dict)
    """Hash of each stage's raw listing."""
    found: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By stage, those ids of `PlanInputs.missing` whose object was there: the metadata has lost them."""
    listed_at: float = 0.0
    """Seconds since 1970."""
    listing_seconds: float = 0.0
    """How long the listing of all stages took."""
    next_attempt_at: str | None = None
    """When the earliest failed item may be tried again."""
    unfinished: bool = True
    """Whether the last tick left work to later ones."""

    def must_plan(self, inputs: PlanInputs, now: datetime) -> bool:
        """Whether to plan, whatever the raw objects are."""
        due = self.next_attempt_at is not None and self.next_attempt_at <= timestamp(now)
        return self.unfinished or due or inputs.digest != self.digest

    def stages_to_list(self, inputs: PlanInputs, now: datetime) -> list[Stage]:
        """The stages to list before it is known whether there is anything to do."""
        wait = 0.0 if self.listing_seconds <= CHEAP_LISTING_SECONDS else self.listing_seconds / LISTING_SHARE
        if not self.listed_at <= now.timestamp() < self.listed_at + wait:
            return list(Stage)
        return [stage for stage in Stage if len(inputs.missing[stage]) > MAX_ASKED_FOR]


def embedding_sensor(names: CorpusNames, jobs: Sequence[dg.JobDefinition]) -> dg.SensorDefinition:
    """The sensor of a corpus, which launches its embedding jobs."""
    return corpus_sensor(
        names,
        names.embedding_sensor,
        _tick,
        jobs=jobs,
        interval_seconds=MINIMUM_INTERVAL_SECONDS,
        description=(
            "Adds a partition for each new video and embeds what is new, has changed or is due for a retry."
            " Reads the metadata CSV, the raw listings and the ledgers; launches runs by lists of ids."
        ),
    )


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
        inputs = _look(corpus, stages, in_flight)
        must_plan = last.must_plan(inputs, now)
        latest = corpus.latest_rows()
        to_list = list(Stage) if must_plan else last.stages_to_list(inputs, now)
        listings, seconds = _list(corpus, to_list, latest)
        if len(listings) == len(Stage):
            last = replace(last, listed_at=now.timestamp(), listing_seconds=seconds)
        if not must_plan and not _raw_objects_differ(corpus, last, inputs, listings):
            context.update_cursor(last.to_cursor())
            return dg.SkipReason(_resting(last, in_flight))
        listings |= _list(corpus, [stage for stage in Stage if stage not in listings], latest)[0]
        launches, last = _plan(
            context, names, corpus, stages, latest, listings, in_flight, last, deadline, now
        )
    context.log.info("; ".join(launches.notes) or "nothing to do")
    if not launches.id_lists:
        context.update_cursor(last.to_cursor())
        return dg.SkipReason("; ".join(launches.notes) or _resting(last, in_flight))
    requests = [
        dg.RunRequest(
            job_name=names.embedding_job(stage),
            run_config=id_list_run_config(names, stage, video_ids),
            tags=id_list_run_tags(names, stage, video_ids),
        )
        for stage, video_ids in launches.id_lists
    ]
    return dg.SensorResult(run_requests=requests, cursor=last.to_cursor())


def _plan(
    context: dg.SensorEvaluationContext,
    names: CorpusNames,
    corpus: Corpus,
    stages: Mapping[Stage, StageCorpus],
    latest: LatestRows,
    listings: Mapping[Stage, "pa.Table"],
    in_flight: Mapping[Stage, set[str]],
    last: LastPlan,
    deadline: float,
    now: datetime,
) -> tuple[Launches, LastPlan]:
    """Plan, add partitions, record what needs no run; the runs to launch, and what this tick has seen."""
    if latest.refused_ids:
        some = ", ".join(repr(video_id) for video_id in list(latest.refused)[:5])
        context.log.warning(f"{latest.refused_ids} video_ids of the metadata are refused, such as {some}")
    partitions = set(context.instance.get_dynamic_partitions(names.partitions_name))
    added = add_partitions(context.instance, names, latest.video_ids(), partitions, limit=MAX_NEW_PARTITIONS)
    partitions.update(added)
    run_size, max_runs = corpus.settings.run_size, corpus.settings.max_runs_per_tick
    plans = plan_stages(
        stages,
        latest,
        in_flight=in_flight,
        limit=run_size * max_runs,
        listing=listings.__getitem__,
        deadline=deadline,
    )
    for stage, plan in plans.items():
        settle(
            context.instance, names, stages[stage], plan, most_missing=MAX_MISSING, most_restored=MAX_RESTORED
        )
    launches = decide_launches(
        plans,
        partitions=partitions,
        waiting=waiting_stages(context.instance, names, list(Stage), now),
        run_size=run_size,
        max_runs=max_runs,
    )
    notes = [f"{len(added)} partitions added"] if added else []
    unfinished = (
        launches.unfinished
        or len(partitions) < latest.videos
        or len(plans) < len(Stage)
        or any(plan.missing.num_rows > MAX_MISSING for plan in plans.values())
        or any(plan.restored.num_rows > MAX_RESTORED for plan in plans.values())
    )
    inputs = _look(corpus, stages, in_flight)
    seen = replace(
        last,
        # none where there are runs: the ledgers that they leave are looked at
        digest="" if launches.id_lists else inputs.digest,
        raw=_hashes(listings),
        found={stage: _found(corpus, stage, inputs.missing[stage], listings[stage]) for stage in Stage},
        next_attempt_at=min(filter(None, (plan.next_attempt_at for plan in plans.values())), default=None),
        unfinished=unfinished,
    )
    return replace(launches, notes=[*notes, *launches.notes], unfinished=unfinished), seen


def _look(
    corpus: Corpus, stages: Mapping[Stage, StageCorpus], in_flight: Mapping[Stage, set[str]]
) -> PlanInputs:
    parts: list[object] = [corpus.metadata.etag()]
    missing = {}
    for stage, opened in stages.items():
        parts.append([opened.contract.id, opened.ledger.version(), sorted(in_flight[stage])])
        ids = opened.ledger.video_ids(Status.MISSING_RAW_OBJECT, limit=MAX_ASKED_FOR + 1)
        missing[stage] = sorted(ids)
    return PlanInputs(hashlib.sha256(json.dumps(parts).encode()).hexdigest(), missing)


def _list(
    corpus: Corpus, stages: Sequence[Stage], latest: LatestRows
) -> tuple[dict[Stage, "pa.Table"], float]:
    """Raw listings, and the seconds that they took together."""
    started = time.monotonic()
    listings = corpus.raw_listings(stages, latest) if stages else {}
    return listings, time.monotonic() - started


def _hashes(listings: Mapping[Stage, "pa.Table"]) -> dict[str, str]:
    return {str(stage): listing_hash(listing) for stage, listing in listings.items()}


def _raw_objects_differ(
    corpus: Corpus, last: LastPlan, inputs: PlanInputs, listings: Mapping[Stage, "pa.Table"]
) -> bool:
    """Whether the raw objects differ from what the last plan saw, as far as this tick looks."""
    if any(last.raw.get(stage) != digest for stage, digest in _hashes(listings).items()):
        return True
    unlisted = [stage for stage in Stage if stage not in listings]
    return any(last.found.get(stage) != _found(corpus, stage, inputs.missing[stage]) for stage in unlisted)


def _found(
    corpus: Corpus, stage: Stage, missing: Sequence[str], listing: "pa.Table | None" = None
) -> list[str]:
    """Those of some ids whose raw object is there, by a listing or by asking the store; none of too many."""
    if not missing or len(missing) > MAX_ASKED_FOR:
        return []
    raw_keys = [corpus.keys.raw(stage, video_id) for video_id in missing]
    if listing is not None:
        import pyarrow as pa
        import pyarrow.compute as pc

        there = pc.is_in(pa.array(raw_keys), value_set=listing["key"]).to_pylist()
    else:
        # one that is refused is looked for in a listing
        there = [info is not None for info in corpus.store.head_each(raw_keys)]
    return [video_id for video_id, is_there in zip(missing, there, strict=True) if is_there]


def _resting(last: LastPlan, in_flight: Mapping[Stage, set[str]]) -> str:
    """Why a tick does nothing."""
    busy = ", ".join(f"{len(ids)} {stage}" for stage, ids in in_flight.items() if ids)
    if busy:
        return f"nothing new; in runs now: {busy}"
    if last.next_attempt_at is not None:
        return f"nothing new; the next failed item is due at {last.next_attempt_at}"
    return "nothing new: metadata, raw objects and contracts are unchanged"
