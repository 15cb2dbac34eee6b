"""What Dagster's UI is told, asked of its server as the UI asks: failures, checks, and runs of commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster_graphql.schema import create_schema

from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.instance import LOCATION_NAME
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

KEY = DEFAULT_NAMES.embedding(Stage.TEXT)
CHECKS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    assetChecksOrError { ... on AssetChecks { checks {
        name canExecuteIndividually executionForLatestMaterialization { status runId }
    } } } } } }"""
OBSERVATIONS = """query($key: AssetKeyInput!, $partitions: [String!]) {
    assetNodeOrError(assetKey: $key) { ... on AssetNode {
        assetObservations(partitions: $partitions) { description metadataEntries {
            label ... on TextMetadataEntry { text } ... on IntMetadataEntry { intValue }
            ... on MarkdownMetadataEntry { mdStr } } } } } }"""
RUNS = """query($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results {
    runId jobName status repositoryOrigin { repositoryLocationName } } } } }"""
REEXECUTE = """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
    __typename ... on LaunchRunSuccess { run { jobName parentRunId } } ... on PythonError { message } } }"""


@dataclass(frozen=True)
class Server:
    """The UI's server over the code location of `clipfarm dev`."""

    context: WorkspaceProcessContext

    def ask(self, query: str, **variables: Any) -> Any:
        """The one field of an answer."""
        asked = create_schema().execute_async(
            query, context_value=self.context.create_request_context(), variable_values=variables
        )
        result = asyncio.run(asked)
        assert not result.errors, result.errors
        [answer] = result.data.values()
        return answer

    def checks(self) -> Mapping[str, Mapping[str, Any]]:
        """The checks of the text embeddings by name."""
        answer = self.ask(CHECKS, key={"path": KEY.path})
        return {check["name"]: check for check in answer["assetChecksOrError"]["checks"]}


@pytest.fixture
def server(corpus: Corpus, instance: dg.DagsterInstance) -> Iterator[Server]:
    target = ModuleTarget("clipfarm_dagster.definitions", "defs", None, LOCATION_NAME)
    with WorkspaceProcessContext(instance, target) as context:
        yield Server(context)
    context._grpc_server_registry.wait_for_processes()  # not ended while another test looks for leaks


def put_texts(corpus: Corpus, *video_ids: str) -> None:
    put_metadata(corpus, [metadata_row(video_id) for video_id in video_ids])
    for video_id in video_ids:
        put_transcript(corpus, video_id, f"said in {video_id}")


def test_a_failed_partition_says_why_and_a_run_of_a_command_can_be_executed_again(
    corpus: Corpus, instance: dg.DagsterInstance, server: Server
):
    put_texts(corpus, "good", "broken")
    corpus.store.put(corpus.keys.raw(Stage.TEXT, "broken"), b"no JSON")
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)

    answer = server.ask(OBSERVATIONS, key={"path": KEY.path}, partitions=["broken"])
    [observation] = answer["assetObservations"]
    told = {
        entry["label"]: entry.get("text") or entry.get("intValue") or entry.get("mdStr")
        for entry in observation["metadataEntries"]
    }
    assert told["status"] == "invalid_raw_object"
    assert "the transcript is not JSON" in told["cause"]
    assert observation["description"] == told["cause"]
    assert told["attempts"] == 1
    assert "not tried again until its raw object" in told["next"]
    assert server.ask(OBSERVATIONS, key={"path": KEY.path}, partitions=["good"])["assetObservations"] == []

    label = f"__repository__@{LOCATION_NAME}"
    by_location = {"tags": [{"key": ".dagster/repository", "value": label}]}
    [run] = server.ask(RUNS, filter={"pipelineName": "text_embedding_job", **by_location})["results"]
    assert run["repositoryOrigin"] == {"repositoryLocationName": LOCATION_NAME}
    again = server.ask(REEXECUTE, params={"parentRunId": run["runId"], "strategy": "ALL_STEPS"})
    assert again["__typename"] == "LaunchRunSuccess", again
    assert again["run"] == {"jobName": "text_embedding_job", "parentRunId": run["runId"]}


def test_all_checks_can_be_executed_alone_and_stay_passed_when_a_partition_is_materialized(
    corpus: Corpus, instance: dg.DagsterInstance, server: Server
):
    put_texts(corpus, "a", "b")
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)
    whole = defs.resolve_implicit_global_asset_job_def()
    keys = {key for key in defs.resolve_asset_graph().asset_check_keys if key.asset_key == KEY}
    assert len(keys) == 8

    alone = whole.get_subset(asset_selection=set(), asset_check_selection=keys)
    assert alone.execute_in_process(instance=instance).success
    one = {dg.AssetCheckKey(KEY, "unit_norm")}
    result = whole.get_subset(asset_selection=set(), asset_check_selection=one).execute_in_process(
        instance=instance
    )
    assert {evaluation.check_name for evaluation in result.get_asset_check_evaluations()} == {"unit_norm"}
    assert {check["canExecuteIndividually"] for check in server.checks().values()} == {"CAN_EXECUTE"}

    made = whole.execute_in_process(instance=instance, partition_key="a", asset_selection=[KEY])

    assert made.success
    statuses = {
        name: check["executionForLatestMaterialization"]["status"] for name, check in server.checks().items()
    }
    assert statuses == dict.fromkeys([key.name for key in keys], "SUCCEEDED")
