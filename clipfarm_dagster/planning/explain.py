"""Why one video is in a stage's delta or not, and how long a delta may take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.catalog.duckdb_connection import duckdb_connection
from clipfarm_dagster.catalog.metadata import LatestRows, rows_for
from clipfarm_dagster.planning.delta import DEFAULT_KEYS, NoWorkReason, Reason, define_verdicts
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Change:
    """A value that the ledger holds beside the one of now; null where one is unknown."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Explanation:
    """What planning says of one video in one stage."""

    stage: Stage
    video_id: str
    verdict: Reason | NoWorkReason | None
    """None for a video that neither the metadata nor the ledger has."""
    in_flight: bool
    """A run has it, so that it is in no plan whatever the verdict."""
    status: str | None
    """Of the latest attempt."""
    next_attempt_at: str | None
    source: Mapping[str, str]
    """The stage's source columns, as they are now."""
    changes: tuple[Change, ...]
    """What differs between the latest attempt and now: `metadata_hash`, `raw_etag`, `contract_id`, and the
    contract's fields if the contract of the attempt is known."""


def explain(
    stage: Stage,
    video_id: str,
    latest: LatestRows,
    listing: pa.Table | None,
    ledger: pa.Table,
    *,
    contract: Contract,
    recorded: Mapping[str, Contract],
    source_columns: Sequence[str],
    now: datetime,
    in_flight: Collection[str] = (),
    keys: Keys = DEFAULT_KEYS,
) -> Explanation:
    """Run the delta rule over one video.

    Args:
        listing: as for `plan_stage`; the video's own object is enough.
        ledger: as for `plan_stage`; the video's own row is enough.
        recorded: former contracts by id.
        source_columns: the columns that the stage hashes.
    """
    with duckdb_connection() as connection:
        define_verdicts(
            connection, stage, latest.path, listing, ledger, contract.id, now, keys, video_id=video_id
        )
        found = connection.sql("FROM verdicts").to_arrow_table().to_pylist()
    row: dict[str, Any] = found[0] if found else {}
    changes = []
    if row.get("known") and not row["orphaned"]:
        changes = [
            Change(name, row[f"old_{name}"], new)
            for name, new in (
                ("metadata_hash", row["metadata_hash"]),
                ("raw_etag", row["raw_etag"] if row["present"] else None),
                ("contract_id", contract.id),
            )
            if row[f"old_{name}"] != new
        ]
        former = recorded.get(row["old_contract_id"] or "")
        if former is not None:
            changes += [
                Change(name, getattr(former, name), getattr(contract, name))
                for name in contract.differences(former)
            ]
    texts = rows_for(latest, [video_id]).get(video_id, {})
    return Explanation(
        stage=stage,
        video_id=video_id,
        verdict=_verdict(row["verdict"]) if row else None,
        in_flight=video_id in in_flight,
        status=row.get("status"),
        next_attempt_at=row.get("next_attempt_at"),
        source={name: texts[name] for name in source_columns if name in texts},
        changes=tuple(changes),
    )


def explain_erased(stage: Stage, video_id: str) -> Explanation:
    """What there is to say of an erased video."""
    return Explanation(stage, video_id, NoWorkReason.ERASED, False, None, None, {}, ())


def _verdict(name: str) -> Reason | NoWorkReason:
    return NoWorkReason(name) if name in list(NoWorkReason) else Reason(name)
