"""Writes Dagster's asset events in batches; whatever that takes of Dagster's internals stands here.

`context.log_event` costs several database transactions an event. Here the same event log entries are built
and handed to the instance's event log storage as lists, which dagster-postgres and ClipFarm's own storage
(`clipfarm_dagster.instance`) write in one transaction, and Dagster's stock SQLite storage one by one. An
event recorded so leaves no line in the run's compute log; all else is equal. Where Dagster's internals are
not as expected, the public calls record the events one by one.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg
from dagster._core.errors import DagsterInvalidPropertyError

if TYPE_CHECKING:
    from dagster._core.events import DagsterEvent
    from dagster._core.events.log import EventLogEntry
    from dagster._core.execution.context.system import StepExecutionContext

BATCH_SIZE = 500
"""Events in one write: enough to make a transaction's cost vanish, few enough for one SQL statement."""

DATA_VERSION_TAG = "dagster/data_version"
_USER_PROVIDED_TAG = "dagster/data_version_is_user_provided"
_CODE_VERSION_TAG = "dagster/code_version"
_INPUT_VERSION_PREFIX = "dagster/input_data_version/"
_INPUT_POINTER_PREFIX = "dagster/input_event_pointer/"
_NO_POINTER = "NULL"

AssetEvent: TypeAlias = dg.AssetMaterialization | dg.AssetObservation
Context: TypeAlias = dg.AssetExecutionContext | dg.OpExecutionContext

_log = logging.getLogger(__name__)
_INTERNALS_DIFFER = (ImportError, AttributeError, TypeError, DagsterInvalidPropertyError)


def data_version_tags(
    data_version: str, code_version: str | None = None, inputs: Mapping[dg.AssetKey, str] | None = None
) -> dict[str, str]:
    """Tags that give a materialization its data version and say which input versions it was made of.

    Dagster needs all of them to tell whether a partition is stale: without a code version it ignores the
    inputs, and the version of a partitioned input counts only through the storage id of its observation,
    which `record_events` fills in.

    Args:
        data_version: version of what was made.
        code_version: the asset's `code_version`, if it has one.
        inputs: data version of each input, the asset's parents in full (a parent left out makes the
            partition stale).
    """
    tags = {
        DATA_VERSION_TAG: data_version,
        _USER_PROVIDED_TAG: "true",
        _CODE_VERSION_TAG: code_version or "unversioned",
    }
    for key, version in (inputs or {}).items():
        tags[_INPUT_VERSION_PREFIX + key.to_user_string()] = version
        tags[_INPUT_POINTER_PREFIX + key.to_user_string()] = _NO_POINTER
    return tags


def record_events(context: Context, events: Sequence[AssetEvent]) -> None:
    """Record materializations and observations of a running step, of its own asset or of others.

    Observations are written before materializations, and otherwise in the order given for each asset. The
    inputs that a materialization names (`data_version_tags`) are tied to the latest observation of the same
    partition, those in `events` included.

    Raises whatever the storage raises; what was written before that stays.
    """
    _record(context, [event for event in events if isinstance(event, dg.AssetObservation)])
    made = [event for event in events if isinstance(event, dg.AssetMaterialization)]
    _record(context, _tie_inputs(context.instance, made))


def record_failed_partitions(context: Context, asset_key: dg.AssetKey, partition_keys: Sequence[str]) -> None:
    """Make partitions show as failed once the run has failed; call it before raising `dagster.Failure`.

    Dagster shows a partition as failed if a failed run planned it and did not materialize it after that. A
    run of one partition or a range plans its partitions by itself, so there this does nothing; a run whose
    ids stand in its config plans none, and here the failed ones are planned. Where Dagster's internals are
    not as expected they keep the state they had, and the run's log says so.
    """
    if not partition_keys or context.run.is_partitioned:
        return
    try:
        step = context.get_step_execution_context()
        entries = [_planned_entry(step, asset_key, key) for key in partition_keys]
    except _INTERNALS_DIFFER as error:
        context.log.warning(f"Dagster cannot show {len(partition_keys)} partitions as failed: {error}")
    else:
        _store(context.instance, entries)


def report_events(instance: dg.DagsterInstance, events: Sequence[AssetEvent]) -> None:
    """Record events outside a run, in a sensor or a script, as `report_runless_asset_event` does; order and
    inputs as with `record_events`.

    Raises whatever the storage raises; what was written before that stays.
    """
    report_observations(instance, [event for event in events if isinstance(event, dg.AssetObservation)])
    made = [event for event in events if isinstance(event, dg.AssetMaterialization)]
    _report(instance, _tie_inputs(instance, made))


def report_observations(instance: dg.DagsterInstance, observations: Sequence[dg.AssetObservation]) -> None:
    """`report_events` for observations alone."""
    _report(instance, observations)


def _report(instance: dg.DagsterInstance, events: Sequence[AssetEvent]) -> None:
    try:
        entries = [_runless_entry(event) for event in events]
    except _INTERNALS_DIFFER as error:
        _log.warning("Dagster's internals are not as expected, recording one by one: %s", error)
        for event in events:
            instance.report_runless_asset_event(event)
    else:
        _store(instance, entries)


def _record(context: Context, events: Sequence[AssetEvent]) -> None:
    try:
        step = context.get_step_execution_context()
        entries = [_step_entry(step, event) for event in events]
    except _INTERNALS_DIFFER as error:
        context.log.warning(f"Dagster's internals are not as expected, recording one by one: {error}")
        for event in events:
            context.log_event(event)
    else:
        _store(context.instance, entries)


def _store(instance: dg.DagsterInstance, entries: Sequence[EventLogEntry]) -> None:
    """Write entries of one event type, each asset's in batches of its own.

    dagster-postgres updates its table of assets from the last event of a batch, and writes in one statement
    only batches of one event type.
    """
    by_asset: defaultdict[dg.AssetKey | None, list[EventLogEntry]] = defaultdict(list)
    for entry in entries:
        by_asset[entry.get_dagster_event().asset_key].append(entry)
    for group in by_asset.values():
        for start in range(0, len(group), BATCH_SIZE):
            instance.event_log_storage.store_event_batch(group[start : start + BATCH_SIZE])


def _step_entry(step: StepExecutionContext, event: AssetEvent) -> EventLogEntry:
    """The entry that `context.log_event(event)` would store."""
    from dagster._core.events import (
        AssetObservationData,
        DagsterEvent,
        DagsterEventType,
        StepMaterializationData,
    )

    data: StepMaterializationData | AssetObservationData
    message: str | None
    if isinstance(event, dg.AssetMaterialization):
        kind, data = DagsterEventType.ASSET_MATERIALIZATION, StepMaterializationData(event)
        message = event.description or f"Materialized value {event.label}."
    else:
        kind, data = DagsterEventType.ASSET_OBSERVATION, AssetObservationData(event)
        message = None
    dagster_event = DagsterEvent(
        event_type_value=kind.value,
        job_name=step.job_name,
        step_handle=step.step.handle,
        node_handle=step.step.node_handle,
        step_kind_value=step.step.kind.value,
        logging_tags=step.event_tags,
        event_specific_data=data,
        message=message,
        pid=os.getpid(),
    )
    return _entry(
        dagster_event,
        step.run_id,
        message=message or f"{kind} for step {step.step.key}",
        step_key=step.step.key,
    )


def _planned_entry(step: StepExecutionContext, asset_key: dg.AssetKey, partition_key: str) -> EventLogEntry:
    """The entry that Dagster stores for a partition when it creates a run that targets it."""
    from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

    dagster_event = DagsterEvent.build_asset_materialization_planned_event(
        step.job_name, step.step.key, AssetMaterializationPlannedData(asset_key, partition=partition_key)
    )
    return _entry(dagster_event, step.run_id, step_key=step.step.key)


def _runless_entry(event: AssetEvent) -> EventLogEntry:
    """The entry that `instance.report_runless_asset_event(event)` would store."""
    from dagster._core.events import (
        AssetObservationData,
        DagsterEvent,
        DagsterEventType,
        StepMaterializationData,
    )
    from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID

    data: StepMaterializationData | AssetObservationData
    if isinstance(event, dg.AssetMaterialization):
        kind, data = DagsterEventType.ASSET_MATERIALIZATION, StepMaterializationData(event)
    else:
        kind, data = DagsterEventType.ASSET_OBSERVATION, AssetObservationData(event)
    dagster_event = DagsterEvent(
        event_type_value=kind.value, job_name=RUNLESS_JOB_NAME, event_specific_data=data
    )
    return _entry(dagster_event, RUNLESS_RUN_ID, level=logging.INFO)


def _entry(
    dagster_event: DagsterEvent,
    run_id: str,
    *,
    message: str = "",
    step_key: str | None = None,
    level: int = logging.DEBUG,
) -> EventLogEntry:
    from dagster._core.events.log import EventLogEntry

    return EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        level=level,
        user_message=message,
        run_id=run_id,
        timestamp=time.time(),
        step_key=step_key,
        job_name=dagster_event.job_name,
        dagster_event=dagster_event,
    )


def _tie_inputs(
    instance: dg.DagsterInstance, materializations: Sequence[dg.AssetMaterialization]
) -> list[dg.AssetMaterialization]:
    """Point every named input at the latest observation of the same partition, where there is one."""
    partitions: defaultdict[str, list[str]] = defaultdict(list)
    for event in materializations:
        for name in _named_inputs(event):
            if event.partition is not None:
                partitions[name].append(event.partition)
    ids = {name: _observation_ids(instance, name, keys) for name, keys in partitions.items()}
    return [_with_pointers(event, ids) if _named_inputs(event) else event for event in materializations]


def _with_pointers(
    event: dg.AssetMaterialization, ids: Mapping[str, Mapping[str, int]]
) -> dg.AssetMaterialization:
    pointers = {
        _INPUT_POINTER_PREFIX + name: str(ids[name][event.partition])
        for name in _named_inputs(event)
        if event.partition is not None and event.partition in ids[name]
    }
    return dg.AssetMaterialization(
        asset_key=event.asset_key,
        description=event.description,
        metadata=event.metadata,
        partition=event.partition,
        tags={**(event.tags or {}), **pointers},
    )


def _named_inputs(event: dg.AssetMaterialization) -> list[str]:
    return [
        tag.removeprefix(_INPUT_VERSION_PREFIX)
        for tag in event.tags or {}
        if tag.startswith(_INPUT_VERSION_PREFIX)
    ]


def _observation_ids(
    instance: dg.DagsterInstance, input_name: str, partition_keys: Sequence[str]
) -> dict[str, int]:
    """Storage id of the latest observation of each partition; those never observed are left out."""
    asset_key = dg.AssetKey.from_user_string(input_name)
    ids: dict[str, int] = {}
    for start in range(0, len(partition_keys), BATCH_SIZE):
        chunk = set(partition_keys[start : start + BATCH_SIZE])
        ids |= instance.event_log_storage.get_latest_storage_id_by_partition(
            asset_key, dg.DagsterEventType.ASSET_OBSERVATION, chunk
        )
    return ids
