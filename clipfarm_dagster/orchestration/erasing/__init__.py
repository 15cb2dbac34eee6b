"""Removes videos from what Dagster stores, which Dagster itself cannot do: it wipes assets, not partitions.

A partition's events are deleted, and so is its key. Wherever else the id stands, in lists of ids of runs and
backfills, in ticks, cursors, messages and compute logs, its tombstone takes its place, and Dagster reads the
rest as before. Each step is a transaction and can be repeated. The key goes last: where it is still there, an
earlier attempt was broken off, and all is looked through again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.maintenance.scanning import Trace, scan_file, scan_folder, scan_postgres
from clipfarm_dagster.orchestration.erasing.databases import (
    check_known,
    is_known,
    open_databases,
    partitions_database,
)
from clipfarm_dagster.orchestration.erasing.files import clear_files, instance_folders, out_of_reach
from clipfarm_dagster.orchestration.erasing.rows import (
    PARTITIONS_TABLE,
    Counts,
    clear_rows,
    delete_partitions,
    partition_keys,
)
from clipfarm_dagster.orchestration.erasing.scope import Scope
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.stages import Stage

__all__ = ["Erased", "check_known", "erase_from_dagster", "is_known", "scan_dagster"]


@dataclass(frozen=True)
class Erased:
    """What was done; all of it is zero or empty where nothing was left to do."""

    partitions: int = 0
    """Partition keys that were deleted."""
    deleted: Mapping[str, int] = field(default_factory=dict)
    """Rows that were deleted, by table."""
    replaced: Mapping[str, int] = field(default_factory=dict)
    """Rows in which ids were replaced, by table and column."""
    files_changed: int = 0
    files_removed: int = 0
    compacted: int = 0
    """Databases that were written anew, so that no deleted bytes remain."""
    out_of_reach: tuple[str, ...] = ()
    """What the instance is set up to store elsewhere, and was not looked at."""


def erase_from_dagster(
    instance: dg.DagsterInstance,
    names: CorpusNames,
    tombstones: Mapping[str, str],
    *,
    more_assets: Collection[dg.AssetKey] = (),
    besides: Collection[Path] = (),
    dry_run: bool = False,
) -> Erased:
    """Remove videos of a corpus from all that an instance stores, on this machine and in its databases.

    No run may have the videos in hand. Where another corpus of the instance has a video of the same id, only
    what is known to be of this corpus is changed.

    Args:
        tombstones: by `video_id`, the text that takes its place.
        more_assets: assets besides the corpus's own whose partitions are its videos; their events go too.
        besides: folders that are not Dagster's, should they lie in its own.
        dry_run: whether only to count.

    Raises:
        ErasureError: this Dagster or its storage is not known, and nothing was changed; or a database or file
            cannot be used, and repeating finishes what was begun.
    """
    check_known(instance)
    if not tombstones:
        return Erased()
    partitions = partitions_database(instance)
    keys = partition_keys(partitions)
    ids = IdText(tombstones, set().union(*keys.values()) - tombstones.keys())
    asset_keys = [*names.asset_keys(), *more_assets]
    here = tombstones.keys() & keys.pop(names.partitions_name, set())
    shared = tombstones.keys() & set().union(*keys.values())
    scope = Scope(instance, names, asset_keys, ids, shared)

    # they name videos by their titles, too
    comparisons = frozenset(names.comparison(stage).to_string() for stage in Stage)
    total, last, compacted = Counts(), Counts(), 0
    for database in open_databases(instance):
        keys_of_assets = frozenset(key.to_string() for key in asset_keys)
        last = clear_rows(database, ids, keys_of_assets, comparisons, scope, dry_run=dry_run)
        total.add(last)
        if dry_run:
            continue
        if database.path is None or database.path != partitions.path:
            every = bool(here) and database.run_id is None
            compacted += database.compact(database.table_names() if every else last.tables(), ids)
    changed = removed = 0
    for folder in instance_folders(instance):
        in_folder = clear_files(folder, scope.of_file, besides=besides, dry_run=dry_run)
        changed, removed = changed + in_folder[0], removed + in_folder[1]
    if dry_run:
        deleted = len(here)
    else:
        deleted = delete_partitions(partitions, names.partitions_name, ids)
        # a SQLite file whole, once its keys are gone too; of a server the table that was not yet written anew
        touched = {PARTITIONS_TABLE} if deleted or partitions.path is None else last.tables()
        compacted += partitions.compact(touched, ids, within_others=True)
    return Erased(
        deleted,
        dict(+total.deleted),
        dict(total.replaced),
        changed,
        removed,
        compacted,
        out_of_reach(instance),
    )


def scan_dagster(
    instance: dg.DagsterInstance, video_ids: Collection[str], *, besides: Collection[Path] = ()
) -> list[Trace]:
    """Look for ids of videos in all that an instance stores: the bytes of its files, and its databases.

    An id that is a word, such as `video`, is found wherever that word is. No place names an id.

    Args:
        besides: folders that are not Dagster's, should they lie in its own.

    Raises:
        ErasureError: this Dagster or its storage is not known, or a database cannot be used.
        OSError: a file cannot be read.
    """
    check_known(instance)
    keys = partition_keys(partitions_database(instance))
    ids = IdText(dict.fromkeys(video_ids, "…"), set().union(*keys.values()) - set(video_ids))
    folders = instance_folders(instance)
    traces = [trace for folder in folders for trace in scan_folder(folder, ids, besides=besides)]
    seen: set[str] = set()
    for database in open_databases(instance):
        if database.path is None:
            place = database.engine.url.render_as_string(hide_password=False)
            if place not in seen:
                with database.reading() as connection:
                    traces += scan_postgres(connection, ids)
            seen.add(place)
        elif not any(database.path.is_relative_to(folder) for folder in folders):
            for path in sorted(database.path.parent.glob(f"{database.path.name}*")):
                traces += scan_file(path, ids)
    return traces
