"""Lets an event log storage answer from memory which keys there are, and what became of each partition.

Dagster keeps both as texts in its database, under a hash of all keys, and makes them anew whenever a key is
added: with a million keys that takes the better part of a minute. Here a process reads them once, and then
what was added since; see `change_counts` for what was removed. Whatever is asked otherwise, Dagster answers.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy
from dagster import AssetKey, DagsterEventType, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.definitions.partitions.definition import DynamicPartitionsDefinition, PartitionsDefinition
from dagster._core.definitions.partitions.subset import DefaultPartitionsSubset
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable
from dagster._core.storage.event_log.schema import DynamicPartitionsTable
from dagster._core.storage.partition_status_cache import AssetStatusCacheValue
from sqlalchemy.engine import Connection

from clipfarm_dagster.instance.change_counts import Changes, NotCountedError, counted
from clipfarm_dagster.instance.partition_account import AssetAccount, Horizon, PartitionEvent, ReadUpTo

if TYPE_CHECKING:
    from dagster._core.loader import LoadingContext
    from dagster._core.storage.event_log.base import AssetRecord

_MATERIALIZED = DagsterEventType.ASSET_MATERIALIZATION.value
_PLANNED = DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value

_FEW_KEYS = 1000
"""So few keys are looked up in the database where they are not in memory yet."""
_RUNS_AT_ONCE = 500

_REFUSED_SECONDS = 60
"""So long Dagster answers alone after a database could not be followed."""

_events, _partitions = SqlEventLogStorageTable.c, DynamicPartitionsTable.c
_log = logging.getLogger(__name__)


class PartitionStatus(AssetStatusCacheValue):
    """What Dagster's callers read from a text, as sets."""

    materialized: DefaultPartitionsSubset
    failed: DefaultPartitionsSubset
    in_progress: DefaultPartitionsSubset

    def __new__(
        cls, latest_storage_id: int, materialized: Set[str], failed: Set[str], in_progress: Set[str]
    ) -> PartitionStatus:
        self: PartitionStatus = super().__new__(cls, latest_storage_id)
        self.materialized = DefaultPartitionsSubset(materialized)
        self.failed = DefaultPartitionsSubset(failed)
        self.in_progress = DefaultPartitionsSubset(in_progress)
        return self

    def deserialize_materialized_partition_subsets(
        self, partitions_def: PartitionsDefinition
    ) -> DefaultPartitionsSubset:
        return self.materialized

    def deserialize_failed_partition_subsets(
        self, partitions_def: PartitionsDefinition
    ) -> DefaultPartitionsSubset:
        return self.failed

    def deserialize_in_progress_partition_subsets(
        self, partitions_def: PartitionsDefinition
    ) -> DefaultPartitionsSubset:
        return self.in_progress


@dataclass
class _Keys:
    """The keys of one definition, in the order in which they were added."""

    begun: tuple[str, int]
    read: ReadUpTo
    names: dict[str, str] = field(default_factory=dict)
    """Each key by itself: its order, its membership, and the one copy of its text."""
    last: int = 0
    """The largest id that was read."""

    def extend(self, rows: Iterable[tuple[int, str]]) -> bool:
        """Add keys, given with their ids in order. False if one belongs before others that are here already:
        then all have to be read anew, since ranges of partitions are told by the order of keys."""
        for key_id, key in rows:
            if key_id > self.last:
                self.names[key] = key
                self.last = key_id
            elif key not in self.names:
                return False
        return True


@dataclass
class _Asset:
    """An asset's account, and what was made of it last."""

    begun: tuple[str, int, float | None]
    read: ReadUpTo
    account: AssetAccount
    top: int
    existing: tuple[object, Set[str]] | None = None
    """The partitions that are materialized and exist, under what they were made from."""


@dataclass
class _Kept:
    """What one process knows of one database."""

    pid: int
    lock: threading.RLock = field(default_factory=threading.RLock)
    keys: dict[str, _Keys] = field(default_factory=dict)
    assets: dict[AssetKey, _Asset] = field(default_factory=dict)
    dynamic: set[AssetKey] = field(default_factory=set)
    """Assets whose status comes from here, so that Dagster need not keep its text."""
    refused: float | None = None
    """When it was last found that the database cannot be followed, by `time.monotonic`."""


@dataclass(frozen=True)
class _Now:
    """What a database tells while it is asked."""

    kept: _Kept
    connection: Connection
    changes: Changes
    horizon: Horizon | None


_kept: dict[str, _Kept] = {}
_kept_lock = threading.Lock()


class KeptPartitions(SqlEventLogStorage):
    """An event log storage of Dagster that answers from memory; to be inherited before Dagster's class.

    What is kept belongs to the process, not to this object: a webserver makes storages anew all the time.
    """

    _instance: DagsterInstance

    @property
    def _database(self) -> str:
        """What tells the database from others that this process uses."""
        raise NotImplementedError

    # What Dagster asks

    def get_dynamic_partitions(self, partitions_def_name: str) -> Sequence[str]:
        with self._following() as now:
            if now is not None:
                return list(self._keys_of(partitions_def_name, now).names)
        return super().get_dynamic_partitions(partitions_def_name)

    def get_existing_dynamic_partitions(
        self, partitions_def_name: str, partition_keys: Sequence[str]
    ) -> Set[str]:
        if len(partition_keys) > _FEW_KEYS:
            with self._following() as now:
                if now is not None:
                    return self._keys_of(partitions_def_name, now).names.keys() & set(partition_keys)
        return super().get_existing_dynamic_partitions(partitions_def_name, partition_keys)

    def get_materialized_partitions(
        self, asset_key: AssetKey, before_cursor: int | None = None, after_cursor: int | None = None
    ) -> set[str]:
        if not before_cursor and not after_cursor:
            with self._following() as now:
                if now is not None:
                    return set(self._asset(asset_key, now).account.materialized)
        return super().get_materialized_partitions(asset_key, before_cursor, after_cursor)

    def get_latest_asset_partition_materialization_attempts_without_materializations(
        self, asset_key: AssetKey, after_storage_id: int | None = None
    ) -> Mapping[str, tuple[str, int]]:
        if after_storage_id is None:
            with self._following() as now:
                if now is not None:
                    return dict(self._asset(asset_key, now).account.attempts)
        return super().get_latest_asset_partition_materialization_attempts_without_materializations(
            asset_key, after_storage_id
        )

    def get_asset_status_cache_values(
        self,
        partitions_defs_by_key: Iterable[tuple[AssetKey, PartitionsDefinition | None]],
        context: LoadingContext,
    ) -> Sequence[AssetStatusCacheValue | None]:
        values: list[AssetStatusCacheValue | None] = []
        for asset_key, definition in partitions_defs_by_key:
            if isinstance(definition, DynamicPartitionsDefinition) and definition.name:
                with self._following() as now:
                    if now is not None:
                        values.append(self._status(asset_key, definition.name, now))
                        continue
            values += super().get_asset_status_cache_values([(asset_key, definition)], context)
        return values

    # Dagster's own text of the status is neither read nor written for assets that are answered for here

    def _construct_asset_record_from_row(
        self, row: Any, last_materialization_record: Any, can_read_asset_status_cache: bool
    ) -> AssetRecord:
        kept = (
            can_read_asset_status_cache and AssetKey.from_db_string(row["asset_key"]) in self._kept().dynamic
        )
        return super()._construct_asset_record_from_row(
            row, last_materialization_record, can_read_asset_status_cache and not kept
        )

    def update_asset_cached_status_data(
        self, asset_key: AssetKey, cache_values: AssetStatusCacheValue
    ) -> None:
        if asset_key not in self._kept().dynamic:
            super().update_asset_cached_status_data(asset_key, cache_values)

    # Following the database

    def _kept(self) -> _Kept:
        name = self._database
        with _kept_lock:
            kept = _kept.get(name)
            if kept is None or kept.pid != os.getpid():
                kept = _kept[name] = _Kept(os.getpid())
            return kept

    @contextmanager
    def _following(self) -> Iterator[_Now | None]:
        """The database, and what this process knows of it, for one thread at a time; None if Dagster has to
        answer, since the database's changes cannot be followed."""
        kept = self._kept()
        if kept.refused is not None and time.monotonic() - kept.refused < _REFUSED_SECONDS:
            yield None
            return
        with kept.lock, self.index_connection() as connection:
            try:
                changes, horizon = counted(connection)
            except NotCountedError as error:
                kept.refused = time.monotonic()
                _log.warning("Dagster's pages will be slow where there are many partitions: %s", error)
                yield None
                return
            yield _Now(kept, connection, changes, horizon)

    def _keys_of(self, name: str, now: _Now) -> _Keys:
        begun = (now.changes.token, now.changes.keys)
        keys = now.kept.keys.get(name)
        top = now.connection.execute(sqlalchemy.select(sqlalchemy.func.max(_partitions.id))).scalar() or 0
        follows = keys is not None and keys.begun == begun and not keys.read.to_be_repeated(now.horizon)
        if keys is not None and follows:
            if keys.read.is_settled(top):
                return keys
            if keys.extend(self._added_keys(now.connection, name, keys.read.advance(top, now.horizon))):
                return keys
        keys = now.kept.keys[name] = _Keys(begun, ReadUpTo(top, now.horizon))
        keys.extend(self._added_keys(now.connection, name, 0))
        return keys

    @staticmethod
    def _added_keys(connection: Connection, name: str, after: int) -> Iterable[tuple[int, str]]:
        """The ids and keys of a definition after an id, in order."""
        rows = (
            sqlalchemy.select(_partitions.id, _partitions.partition)
            .where(_partitions.partitions_def_name == name, _partitions.id > after)
            .order_by(_partitions.id)
        )
        return connection.execute(rows).tuples()

    def _asset(self, asset_key: AssetKey, now: _Now) -> _Asset:
        details = self._get_assets_details([asset_key])
        wiped = details[0].last_wipe_timestamp if details[0] else None
        begun = (now.changes.token, now.changes.events, wiped)
        name = asset_key.to_string()
        top = max(self._top(now.connection, name, kind) for kind in (_MATERIALIZED, _PLANNED))
        asset = now.kept.assets.get(asset_key)

        def of_asset(kind: str, *columns: Any) -> Any:
            query = sqlalchemy.select(*columns).where(
                _events.asset_key == name, _events.dagster_event_type == kind, _events.partition.is_not(None)
            )
            return self._add_assets_wipe_filter_to_query(query, details, [asset_key])

        names = next(iter(now.kept.keys.values())).names if len(now.kept.keys) == 1 else {}
        if asset is None or asset.begun != begun or asset.read.to_be_repeated(now.horizon):
            read = ReadUpTo(top, now.horizon)
            asset = now.kept.assets[asset_key] = _Asset(begun, read, AssetAccount(), top)
            materialized = of_asset(_MATERIALIZED, _events.partition).distinct()
            asset.account.materialized.update(
                names.get(key, key) for key in now.connection.execute(materialized).scalars()
            )
            asset.account.attempts.update(self._attempts(now.connection, of_asset))
        elif not asset.read.is_settled(top):
            after = asset.read.advance(top, now.horizon)
            columns = (_events.id, _events.partition, _events.run_id)
            rows = [
                PartitionEvent(event_id, partition, run_id if kind == _PLANNED else None)
                for kind in (_MATERIALIZED, _PLANNED)
                for event_id, partition, run_id in now.connection.execute(
                    of_asset(kind, *columns).where(_events.id > after)
                )
            ]
            asset.account.take_in(sorted(rows, key=lambda event: event.id), names)
            asset.top = max(asset.top, top)
        return asset

    @staticmethod
    def _top(connection: Connection, name: str, kind: str) -> int:
        latest = sqlalchemy.select(sqlalchemy.func.max(_events.id))
        return (
            connection.execute(
                latest.where(_events.asset_key == name, _events.dagster_event_type == kind)
            ).scalar()
            or 0
        )

    @staticmethod
    def _attempts(connection: Connection, of_asset: Any) -> dict[str, tuple[str, int]]:
        """Of each partition the latest plan that no materialization followed."""
        latest = of_asset(_PLANNED, _events.partition, sqlalchemy.func.max(_events.id).label("id"))
        latest = latest.group_by(_events.partition).subquery()
        events = SqlEventLogStorageTable.alias("planned")
        following = (
            of_asset(_MATERIALIZED, _events.id)
            .with_only_columns(sqlalchemy.literal(1))
            .where(_events.partition == latest.c.partition, _events.id > latest.c.id)
            .correlate(latest)
            .exists()
        )
        planned = (
            sqlalchemy.select(latest.c.partition, events.c.run_id, events.c.id)
            .join(events, events.c.id == latest.c.id)
            .where(~following)
        )
        return {partition: (run_id, event_id) for partition, run_id, event_id in connection.execute(planned)}

    def _status(self, asset_key: AssetKey, name: str, now: _Now) -> PartitionStatus | None:
        now.kept.dynamic.add(asset_key)
        keys = self._keys_of(name, now)
        asset = self._asset(asset_key, now)
        if not asset.top:
            return None
        made_of = (keys.begun, len(keys.names), len(asset.account.materialized))
        if asset.existing is None or asset.existing[0] != made_of:
            asset.existing = made_of, asset.account.materialized & keys.names.keys()
        attempts = {key: run_id for key, (run_id, _) in asset.account.attempts.items() if key in keys.names}
        runs = sorted(set(attempts.values()))
        unfinished = self._having(runs, NOT_FINISHED_STATUSES)
        failed = self._having(runs, [DagsterRunStatus.FAILURE])
        return PartitionStatus(
            asset.top,
            asset.existing[1],
            {key for key, run_id in attempts.items() if run_id in failed},
            {key for key, run_id in attempts.items() if run_id in unfinished - failed},
        )

    def _having(self, run_ids: Sequence[str], statuses: Sequence[DagsterRunStatus]) -> set[str]:
        """Those of the runs that have one of the statuses."""
        found: set[str] = set()
        for start in range(0, len(run_ids), _RUNS_AT_ONCE):
            some = RunsFilter(run_ids=run_ids[start : start + _RUNS_AT_ONCE], statuses=statuses)
            found.update(self._instance.get_run_ids(filters=some))
        return found
