"""The sensor: keeps every embedding up to date without anyone clicking.

A tick looks at the metadata CSV, the raw listings, the ledgers and the runs in flight, adds partitions for
new videos and launches id-list runs for the delta. It keeps no list of its own of what was requested: what a
run has in hand is in Dagster's run storage, and what it left undone is in the ledger, so nothing is lost by a
crash.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from clipfarm_dagster.assets.embeddings import embedding_materialization
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.in_flight import videos_in_flight
from clipfarm_dagster.jobs import EMBEDDING_JOBS, embedding_job_name, id_list_run_config, id_list_run_tags
from clipfarm_dagster.ledger.schema import LedgerRow, timestamp
from clipfarm_dagster.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.resources.object_store import ObjectStoreResource
from clipfarm_dagster.resources.stage_state import StageStateResource
from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    import pyarrow as pa

MINIMUM_INTERVAL_SECONDS = 30
TICK_SECONDS = 40.0
"""After so long a tick takes up no further stage; Dagster ends a tick at 60 seconds by default."""
MAX_NEW_PARTITIONS = 10_000
"""Partitions that one tick adds; the rest follow in the next ones, newest first."""


@dataclass(frozen=True)
class Seen:
    """What the last tick saw; while nothing of it changes there is nothing to do."""

    fingerprint: str = ""
    next_attempt_at: str | None = None
    """When the earliest failed item may be tried again."""
    unfinished: bool = True
    """Whether the last tick left work to later ones."""

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "Seen":
        """Read a sensor cursor; one that is not ours counts as nothing seen."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (TypeError, ValueError):
            return cls()

    def to_cursor(self) -> str:
        """As a sensor cursor."""
        return json.dumps(self.__dict__)

    def nothing_to_do(self, fingerprint: str, now: datetime) -> bool:
        """Whether a tick that sees `fingerprint` can end at once."""
        if self.unfinished or fingerprint != self.fingerprint:
            return False
        return self.next_attempt_at is None or timestamp(now) < self.next_attempt_at


def chunks(video_ids: Sequence[str], size: int, limit: int) -> list[Sequence[str]]:
    """At most `limit` chunks of at most `size` ids, in order."""
    return [video_ids[i : i + size] for i in range(0, min(len(video_ids), size * limit), size)]


@dg.sensor(
    name="embedding_sensor",
    jobs=EMBEDDING_JOBS,
    minimum_interval_seconds=MINIMUM_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=(
        "Adds a partition for each new video and embeds what is new, changed or due again, by stage. Reads"
        " the metadata CSV, the raw listings and the ledgers; launches runs by lists of ids."
    ),
)
def embedding_sensor(
    context: dg.SensorEvaluationContext, object_store: ObjectStoreResource, stage_state: StageStateResource
) -> dg.SensorResult | dg.SkipReason:
    """One tick. A metadata file or store that cannot be read changes nothing and is tried again."""
    try:
        return _tick(context, stage_state.corpus(object_store))
    except ClipFarmError as error:
        raise dg.Failure(f"{error}. Nothing was changed; the next tick tries again.") from error


def _tick(context: dg.SensorEvaluationContext, corpus: Corpus) -> dg.SensorResult | dg.SkipReason:
    started, now = time.monotonic(), datetime.now(UTC)
    seen = Seen.from_cursor(context.cursor)
    in_flight = videos_in_flight(context.instance)
    listings = {stage: corpus.raw_listing(stage) for stage in Stage}
    fingerprint = _fingerprint(corpus, listings, in_flight)
    if seen.nothing_to_do(fingerprint, now):
        return dg.SkipReason(_resting(seen, in_flight))

    latest = corpus.latest_rows()
    partitions = set(context.instance.get_dynamic_partitions(VIDEO_PARTITIONS.name or ""))
    added = _add_partitions(context.instance, latest.video_ids(), partitions)
    partitions.update(added)
    unfinished = len(partitions) < latest.videos

    requests: list[dg.RunRequest] = []
    next_attempts: list[str] = []
    notes: list[str] = [f"{len(added)} partitions added"] if added else []
    if latest.refused_ids:
        names = ", ".join(repr(name) for name in list(latest.refused)[:5])
        context.log.warning(f"{latest.refused_ids} video_ids of the metadata are refused, such as {names}")
    for stage in Stage:
        if time.monotonic() - started > TICK_SECONDS:
            unfinished = True
            break
        limit = corpus.settings.run_size * corpus.settings.max_runs_per_tick
        with corpus.ledger(stage) as ledger:
            plan = corpus.plan(
                stage, latest, ledger, in_flight=in_flight[stage], limit=limit, listing=listings[stage]
            )
            restored = corpus.record_settled(ledger, plan)
        announce_restored(context.instance, corpus, stage, restored)
        ids = [video_id for video_id in plan.work["video_id"].to_pylist() if video_id in partitions]
        for chunk in chunks(ids, corpus.settings.run_size, corpus.settings.max_runs_per_tick):
            requests.append(
                dg.RunRequest(
                    job_name=embedding_job_name(stage),
                    run_config=id_list_run_config(stage, chunk),
                    tags=id_list_run_tags(stage, chunk),
                )
            )
        unfinished = unfinished or plan.delta > len(ids)
        if plan.next_attempt_at is not None:
            next_attempts.append(plan.next_attempt_at)
        if plan.reasons:
            reasons = ", ".join(f"{count} {reason}" for reason, count in plan.reasons.items())
            notes.append(f"{stage}: {reasons}")
        if plan.missing.num_rows:
            notes.append(f"{stage}: {plan.missing.num_rows} raw objects missing")

    # the fingerprint of this tick is not kept where it led to runs: the ledger that they leave is looked at
    next_attempt_at = min(next_attempts, default=None)
    fingerprint = "" if requests or unfinished else _fingerprint(corpus, listings, in_flight)
    cursor = Seen(fingerprint, next_attempt_at, unfinished).to_cursor()
    context.log.info("; ".join(notes) or "nothing to do")
    if not requests:
        context.update_cursor(cursor)
        return dg.SkipReason("; ".join(notes) or _resting(Seen(next_attempt_at=next_attempt_at), in_flight))
    return dg.SensorResult(run_requests=requests, cursor=cursor)


def announce_restored(
    instance: dg.DagsterInstance, corpus: Corpus, stage: Stage, rows: Sequence[LedgerRow]
) -> None:
    """Tell Dagster of vectors that are the right ones again, without a run."""
    for row in rows:
        instance.report_runless_asset_event(
            embedding_materialization(stage, row, corpus.contract(stage), corpus.store.url)
        )


def _add_partitions(instance: dg.DagsterInstance, video_ids: Sequence[str], known: set[str]) -> list[str]:
    """Add partitions for the first unknown ids, in one call; returns them."""
    new = [video_id for video_id in video_ids if video_id not in known][:MAX_NEW_PARTITIONS]
    if new:
        instance.add_dynamic_partitions(VIDEO_PARTITIONS.name or "", new)
    return new


def _fingerprint(
    corpus: Corpus, listings: Mapping[Stage, "pa.Table"], in_flight: Mapping[Stage, set[str]]
) -> str:
    """A hash of all that planning depends on besides the time."""
    parts: list[Any] = [corpus.metadata.etag()]
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            parts.append([corpus.contract(stage).id, ledger.version(), sorted(in_flight[stage])])
        digest = hashlib.sha256()
        for column in listings[stage].select(["key", "etag"]).sort_by("key").combine_chunks().columns:
            for text in column.to_pylist():
                digest.update(b"%d:" % len(text) + text.encode())
        parts.append(digest.hexdigest())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _resting(seen: Seen, in_flight: Mapping[Stage, set[str]]) -> str:
    """Why a tick does nothing."""
    busy = ", ".join(f"{len(ids)} {stage}" for stage, ids in in_flight.items() if ids)
    if busy:
        return f"nothing new; in runs now: {busy}"
    if seen.next_attempt_at is not None:
        return f"nothing new; the next failed item is due at {seen.next_attempt_at}"
    return "nothing new: metadata, raw objects and contracts are as they were"
