"""How a run tells Dagster what it has recorded, though the instance's server is being restarted."""

from __future__ import annotations

import time
from collections.abc import Sequence

import dagster as dg

from clipfarm_dagster.ledger.patience import hurry
from clipfarm_dagster.ledger.postgres import RESTART_SECONDS, is_lost
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.recording import (
    DATA_VERSION_TAG,
    AssetEvent,
    Context,
    record_events,
    record_failed_partitions,
)

_WAIT_SECONDS = 1.0


def tell(context: Context, asset: dg.AssetKey, failed: Sequence[str], events: Sequence[AssetEvent]) -> None:
    """Record a batch's events, and that some partitions failed.

    If the instance's server ends the connection on the way, or cannot be reached, it is waited for, and then
    asked which of the events it has: each partition is materialized once.

    Raises whatever the storage raises that is not of this kind, or lasts longer.
    """
    deadline, again = time.monotonic() + RESTART_SECONDS, False
    while True:
        try:
            if again:
                events = _unknown(context.instance, asset, events)
            record_failed_partitions(context, asset, failed)
            record_events(context, events)
            return
        except Exception as error:
            if not _of_a_restart(error) or time.monotonic() > deadline or hurry.wait(_WAIT_SECONDS):
                raise
        again = True


def _unknown(
    instance: dg.DagsterInstance, asset: dg.AssetKey, events: Sequence[AssetEvent]
) -> list[AssetEvent]:
    """The events of partitions whose version Dagster does not have yet."""
    known = materialized_versions(instance, asset)
    told = {
        event.partition
        for event in events
        if isinstance(event, dg.AssetMaterialization)
        and event.partition is not None
        and known.get(event.partition) == (event.tags or {}).get(DATA_VERSION_TAG)
    }
    return [event for event in events if event.partition not in told]


def _of_a_restart(error: Exception) -> bool:
    """Whether the server was lost, as SQLAlchemy says it, or dagster-postgres, which has waited a while."""
    return any(isinstance(one, Exception) and is_lost(one) for one in (error, error.__cause__))
