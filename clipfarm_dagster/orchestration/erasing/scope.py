"""Which ids may be replaced where, if another corpus of the instance has a video of the same id."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.orchestration.names import CorpusNames


class Scope:
    """The ids to replace in a row or a file: shared ones only where it is known to be of this corpus.

    Args:
        asset_keys: of this corpus.
        shared: the ids that another set of dynamic partitions of the instance has too.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        names: CorpusNames,
        asset_keys: Collection[dg.AssetKey],
        ids: IdText,
        shared: Collection[str],
    ) -> None:
        self._instance, self._names = instance, names
        self._assets = {key.to_string() for key in asset_keys}
        self._in_bodies = [*self._assets, *(f'"{key.to_user_string()}":' for key in asset_keys)]
        self._ids, self._shared = ids, frozenset(shared)

    def of_row(self, table: str, values: Mapping[str, Any]) -> IdText:
        """The ids to replace in a row of a table, given its columns of text."""
        return self._ids if not self._shared or self._is_own(table, values) else self._sole

    def of_file(self, path: Path) -> IdText:
        """The ids to replace in a file of the instance, which the logs of a run name by its folder."""
        return self._ids if not self._shared or not self._own_runs.isdisjoint(path.parts) else self._sole

    @cached_property
    def _sole(self) -> IdText:
        return self._ids.without(self._shared)

    @cached_property
    def _own_runs(self) -> set[str]:
        return {run.run_id for run in self._instance.get_runs() if self._names.is_run(run)}

    def _is_own(self, table: str, values: Mapping[str, Any]) -> bool:
        if asset_key := values.get("asset_key"):
            return asset_key in self._assets
        if run_id := values.get("run_id"):
            return run_id in self._own_runs
        bodies = [value.replace("\\", "") for value in values.values() if isinstance(value, str)]
        sensors = [f'"{self._names.embedding_sensor}"', f'"{self._names.manifest_sensor}"']
        marks = self._in_bodies if table == "bulk_actions" else sensors
        return any(mark in body for mark in marks for body in bodies)
