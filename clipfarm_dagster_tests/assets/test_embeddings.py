"""Backfills of the embeddings, as the UI launches them: counts, retries, and what the ledger holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.asset_backfill import AssetBackfillStatus, PartitionedAssetBackfillStatus
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    BACKFILL_ID_TAG,
)
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster_graphql.schema import create_schema

from clipfarm_dagster.assets.embeddings import embedding_asset_key
from clipfarm_dagster.checks import materialized_versions
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.reconcile import Reconciled, reconcile
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.raw import metadata_row, put_metadata, put_transcript

KEY = embedding_asset_key(Stage.TEXT)
IDS = [f"clip-{n}" for n in range(6)]
RANGE = IDS[1:5]
BROKEN = IDS[2]


@dataclass(frozen=True)
class Platform:
    """Dagster's daemon and the UI's server over the real code location, less their clocks and ports."""

    context: WorkspaceProcessContext

    @property
    def instance(self) -> dg.DagsterInstance:
        return self.context.instance

    def backfill(self, partitions: Sequence[str]) -> str:
        """Launch a backfill, as the UI's dialog does; returns its id."""
        asset = {"path": KEY.path}
        return self._launch(
            "launchPartitionBackfill(backfillParams: $params)",
            "LaunchBackfillParams!",
            {"assetSelection": [asset], "partitionNames": partitions, "fromFailure": False},
        )

    def retry_failed(self, backfill_id: str) -> str:
        """Retry a backfill from failure, as the UI's button does; returns the new one's id."""
        return self._launch(
            "reexecutePartitionBackfill(reexecutionParams: $params)",
            "ReexecutionParams!",
            {"parentRunId": backfill_id, "strategy": "FROM_FAILURE"},
        )

    def _launch(self, mutation: str, kind: str, params: Mapping[str, Any]) -> str:
        answers = "... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }"
        result = create_schema().execute(
            f"mutation($params: {kind}) {{ {mutation} {{ __typename {answers} }} }}",
            context_value=self.context.create_request_context(),
            variable_values={"params": params},
        )
        assert not result.errors, result.errors
        [answer] = result.data.values()
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return str(answer["backfillId"])

    def finish(self, backfill_id: str) -> BulkActionStatus:
        """Let the daemons do their work until a backfill has ended."""
        queue = QueuedRunCoordinatorDaemon(interval_seconds=1)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            list(execute_backfill_iteration(self.context, logging.getLogger("backfill")))
            list(queue.run_iteration(self.context))
            backfill = self.instance.get_backfill(backfill_id)
            assert backfill is not None
            if backfill.status in BULK_ACTION_TERMINAL_STATUSES:
                return backfill.status
            time.sleep(0.2)
        raise TimeoutError(f"backfill {backfill_id} does not end")

    def counts(self, backfill_id: str) -> tuple[int, dict[AssetBackfillStatus, int]]:
        """Partitions that a backfill targeted, and how many of them are in each state, as the UI shows."""
        backfill = self.instance.get_backfill(backfill_id)
        assert backfill is not None
        graph = self.context.create_request_context().asset_graph
        [status] = backfill.get_asset_backfill_data(graph).get_backfill_status_per_asset_key(graph)
        assert isinstance(status, PartitionedAssetBackfillStatus)
        counts = {state: count for state, count in status.partitions_counts_by_status.items() if count}
        return status.num_targeted_partitions, counts

    def run_of(self, backfill_id: str) -> dg.DagsterRun:
        """The one run that a backfill launched."""
        [run] = self.instance.get_runs(dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill_id}))
        return run


@pytest.fixture
def platform(corpus: Corpus, instance: dg.DagsterInstance) -> Iterator[Platform]:
    target = ModuleTarget("clipfarm_dagster.definitions", "defs", None, "clipfarm")
    with WorkspaceProcessContext(instance, target) as context:
        yield Platform(context)


@pytest.mark.parametrize("store", ["folder"], indirect=True)
@pytest.mark.filterwarnings("ignore:Function `AssetSelection.sources` is deprecated")  # Dagster's own call
def test_a_backfill_with_a_bad_item_counts_right_and_its_retry_takes_that_item_alone(
    corpus: Corpus, platform: Platform
):
    instance = platform.instance
    put_metadata(corpus, [metadata_row(video_id) for video_id in IDS])
    for video_id in IDS:
        put_transcript(corpus, video_id, f"what is said in {video_id}")
    corpus.store.put(corpus.keys.raw(Stage.TEXT, BROKEN), b"no JSON")
    instance.add_dynamic_partitions(VIDEO_PARTITIONS.name or "", IDS)

    first = platform.backfill(RANGE)

    assert platform.finish(first) == BulkActionStatus.COMPLETED_FAILED
    assert platform.counts(first) == (4, {AssetBackfillStatus.MATERIALIZED: 3, AssetBackfillStatus.FAILED: 1})
    run = platform.run_of(first)
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert partition_range(run) == (RANGE[0], RANGE[-1])
    assert statuses(instance) == {
        **dict.fromkeys(IDS),
        **dict.fromkeys(RANGE, AssetPartitionStatus.MATERIALIZED),
        BROKEN: AssetPartitionStatus.FAILED,
    }
    before = materialized_versions(instance, KEY)
    assert ledger_statuses(corpus) == {
        **dict.fromkeys(RANGE, Status.SUCCESS),
        BROKEN: Status.INVALID_RAW_OBJECT,
    }

    put_transcript(corpus, BROKEN, "mended")
    second = platform.retry_failed(first)

    assert platform.finish(second) == BulkActionStatus.COMPLETED_SUCCESS
    assert platform.counts(second) == (1, {AssetBackfillStatus.MATERIALIZED: 1})
    run = platform.run_of(second)
    assert partition_range(run) == (BROKEN, BROKEN)
    assert materializations(instance, run.run_id) == [BROKEN]
    assert set(statuses(instance).values()) == {AssetPartitionStatus.MATERIALIZED, None}
    after = materialized_versions(instance, KEY)
    assert after.keys() == set(RANGE)
    assert {video_id: after[video_id] for video_id in before} == before
    assert ledger_statuses(corpus) == dict.fromkeys(RANGE, Status.SUCCESS)
    assert reconcile(corpus, instance, Stage.TEXT) == Reconciled(successes=4, mended=0, unknown=0)


def partition_range(run: dg.DagsterRun) -> tuple[str, str]:
    return run.tags[ASSET_PARTITION_RANGE_START_TAG], run.tags[ASSET_PARTITION_RANGE_END_TAG]


def statuses(instance: dg.DagsterInstance) -> dict[str, AssetPartitionStatus | None]:
    return dict(instance.get_status_by_partition(KEY, IDS, VIDEO_PARTITIONS) or {})


def materializations(instance: dg.DagsterInstance, run_id: str) -> list[str | None]:
    of_type = dg.DagsterEventType.ASSET_MATERIALIZATION
    return [entry.get_dagster_event().partition for entry in instance.all_logs(run_id, of_type=of_type)]


def ledger_statuses(corpus: Corpus) -> dict[str, str]:
    with corpus.ledger(Stage.TEXT) as ledger:
        rows = ledger.columns(["video_id", "status"]).to_pylist()
    return {row["video_id"]: row["status"] for row in rows}
