"""What a tick of the embedding sensor looks at, to tell whether there is anything to plan."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from clipfarm_dagster.catalog.metadata import LatestRows
from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.orchestration.candidates import under_way
from clipfarm_dagster.orchestration.runs.in_flight import InFlight
from clipfarm_dagster.orchestration.sensors.cursor import Cursor
from clipfarm_dagster.planning.delta import listing_hash
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.timestamps import timestamp

if TYPE_CHECKING:
    import pyarrow as pa

CHEAP_LISTING_SECONDS = 0.25
LISTING_SHARE = 0.01
MAX_ASKED_FOR = 300
"""Missing objects of a stage that are asked for one by one; for more, one listing costs less."""


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
    """When the earliest failed item may be tried again, or has waited long enough for others."""
    gathering: Mapping[str, float] = field(default_factory=dict)
    """By stage, since when few videos wait for others to share a run with, in seconds since 1970."""
    unfinished: bool = True
    """Whether the last tick left work to later ones."""
    told: Mapping[str, str] = field(default_factory=dict)
    """By stage, contract id of the generation that began to serve and of which Dagster was told."""

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


def look(
    corpus: Corpus,
    stages: Mapping[Stage, StageCorpus],
    candidates: Mapping[Stage, StageCorpus],
    in_flight: InFlight,
) -> PlanInputs:
    """What planning would depend on now."""
    parts: list[object] = [corpus.metadata.etag()]
    missing = {}
    for stage, opened in stages.items():
        parts.append([opened.contract.id, opened.ledger.version(), sorted(in_flight.of(opened))])
        parts.append([under_way(opened.serving)])
        if (candidate := candidates.get(stage)) is not None:
            parts.append([candidate.contract.id, sorted(in_flight.of(candidate))])
        ids = opened.ledger.video_ids(Status.MISSING_RAW_OBJECT, limit=MAX_ASKED_FOR + 1)
        missing[stage] = sorted(ids)
    return PlanInputs(hashlib.sha256(json.dumps(parts).encode()).hexdigest(), missing)


def list_raw(
    corpus: Corpus, stages: Sequence[Stage], latest: LatestRows
) -> tuple[dict[Stage, "pa.Table"], float]:
    """Raw listings, and the seconds that they took together."""
    started = time.monotonic()
    listings = corpus.raw_listings(stages, latest) if stages else {}
    return listings, time.monotonic() - started


def listing_hashes(listings: Mapping[Stage, "pa.Table"]) -> dict[str, str]:
    return {str(stage): listing_hash(listing) for stage, listing in listings.items()}


def raw_objects_differ(
    corpus: Corpus, last: LastPlan, inputs: PlanInputs, listings: Mapping[Stage, "pa.Table"]
) -> bool:
    """Whether the raw objects differ from what the last plan saw, as far as this tick looks."""
    if any(last.raw.get(stage) != digest for stage, digest in listing_hashes(listings).items()):
        return True
    unlisted = [stage for stage in Stage if stage not in listings]
    return any(
        last.found.get(stage) != found_objects(corpus, stage, inputs.missing[stage]) for stage in unlisted
    )


def found_objects(
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
