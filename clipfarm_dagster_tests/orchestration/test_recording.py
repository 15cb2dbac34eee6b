"""Events recorded in batches must be what `context.log_event` would have recorded, in every kind of run."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from pydantic import Field

from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.orchestration import recording
from clipfarm_dagster.orchestration.recording import (
    DATA_VERSION_TAG,
    data_version_tags,
    record_events,
    record_failed_partitions,
    report_observations,
)
from clipfarm_dagster_tests.support.postgres import new_database

VIDEOS = dg.DynamicPartitionsDefinition(name="videos")
IDS = [f"v{n:02}" for n in range(8)]
RAW = dg.AssetKey(["raw", "video"])
EMBEDDING = dg.AssetKey(["embedding", "video"])
CODE = "contract-1"


class Items(dg.Config):
    """Ids of an id-list run, those to fail, and the ETag at which each raw object is read."""

    ids: list[str] = Field(default=[])
    bad: list[str] = Field(default=[])
    etag: str = "e1"
    one_by_one: bool = False


@dg.asset(
    key=EMBEDDING,
    deps=[RAW],
    partitions_def=VIDEOS,
    code_version=CODE,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=100),
    output_required=False,
)
def embedding(context: dg.AssetExecutionContext, config: Items) -> Iterator[dg.Output[None]]:
    yield from ()
    embed(context, context.partition_keys, config)


@dg.op
def embed_ids(context: dg.OpExecutionContext, config: Items) -> None:
    embed(context, config.ids, config)


@dg.job(executor_def=dg.in_process_executor)
def id_list_job() -> None:
    embed_ids()


def embed(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, ids: Sequence[str], config: Items
) -> None:
    events: list[dg.AssetMaterialization | dg.AssetObservation] = []
    for video_id in ids:
        if video_id not in config.bad:
            events += [materialization(video_id, config.etag), observation(video_id, config.etag)]
    if config.one_by_one:
        for event in events:
            context.log_event(event)
    else:
        record_events(context, events)
    record_failed_partitions(context, EMBEDDING, [video_id for video_id in ids if video_id in config.bad])
    if config.bad:
        raise dg.Failure(f"failed: {config.bad}", allow_retries=False)


DEFS = dg.Definitions(assets=[dg.AssetSpec(RAW, partitions_def=VIDEOS), embedding], jobs=[id_list_job])


def materialization(video_id: str, etag: str) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        EMBEDDING,
        partition=video_id,
        metadata={"dim": 768, "key": f"clipfarm/embeddings/video/{video_id}.npy"},
        tags=data_version_tags(f"{etag}-{CODE}", CODE, {RAW: etag}),
    )


def observation(video_id: str, etag: str) -> dg.AssetObservation:
    return dg.AssetObservation(RAW, partition=video_id, tags={DATA_VERSION_TAG: etag})


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Dagster's own default instance."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.add_dynamic_partitions("videos", IDS)
        yield instance


@pytest.fixture(params=["stock", "shipped", "postgres"])
def each_instance(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance with each kind of event log."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    if request.param == "shipped":
        ensure_instance(tmp_path)
    elif request.param == "postgres":
        url = new_database(request.getfixturevalue("postgres_url"))
        (tmp_path / "dagster.yaml").write_text(f"storage: {{postgres: {{postgres_url: '{url}'}}}}")
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("videos", IDS)
        yield instance


def run_ids(instance: dg.DagsterInstance, ids: Sequence[str], **config: object) -> dg.ExecuteInProcessResult:
    return id_list_job.execute_in_process(
        instance=instance,
        run_config={"ops": {"embed_ids": {"config": {"ids": list(ids), **config}}}},
        raise_on_error=False,
    )


def run_range(
    instance: dg.DagsterInstance, first: str, last: str, **config: object
) -> dg.ExecuteInProcessResult:
    return DEFS.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[EMBEDDING],
        run_config={"ops": {"embedding__video": {"config": config}}},
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        raise_on_error=False,
    )


def entries(
    instance: dg.DagsterInstance, run_id: str, of_type: dg.DagsterEventType
) -> list[dg.EventLogEntry]:
    return list(instance.event_log_storage.get_logs_for_run(run_id, of_type=of_type))


def statuses(instance: dg.DagsterInstance) -> dict[str, AssetPartitionStatus | None]:
    found = instance.get_status_by_partition(EMBEDDING, IDS, VIDEOS)
    assert found is not None
    return dict(found)


def staleness(instance: dg.DagsterInstance, video_id: str) -> StaleStatus:
    graph = DEFS.resolve_asset_graph()
    return CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance)).get_status(
        EMBEDDING, video_id
    )


@pytest.mark.parametrize(
    "of_type", [dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION]
)
def test_entries_are_those_of_log_event(instance: dg.DagsterInstance, of_type: dg.DagsterEventType) -> None:
    batched = entries(instance, run_ids(instance, IDS[:3]).run_id, of_type)
    single = entries(instance, run_ids(instance, IDS[:3], one_by_one=True).run_id, of_type)
    assert len(batched) == len(single) == 3
    for ours, theirs in zip(batched, single, strict=True):
        assert _comparable(ours) == _comparable(theirs)


def _comparable(entry: dg.EventLogEntry) -> object:
    event = entry.get_dagster_event()
    tags = dict(entry.tags or {})
    tags.pop("dagster/input_event_pointer/raw/video", None)
    return (
        entry._replace(run_id="", timestamp=0.0, dagster_event=None),
        event._replace(event_specific_data=None, logging_tags={**(event.logging_tags or {}), "run_id": ""}),
        event.asset_key,
        event.partition,
        entry.asset_materialization and entry.asset_materialization._replace(tags=tags),
        entry.asset_observation and entry.asset_observation._replace(tags=tags),
    )


def test_id_list_run_tells_successes_and_failures_apart(each_instance: dg.DagsterInstance) -> None:
    result = run_ids(each_instance, IDS[:6], bad=IDS[4:6])
    assert not result.success
    assert each_instance.get_materialized_partitions(EMBEDDING) == set(IDS[:4])
    assert statuses(each_instance) == (
        dict.fromkeys(IDS[:4], AssetPartitionStatus.MATERIALIZED)
        | dict.fromkeys(IDS[4:6], AssetPartitionStatus.FAILED)
        | dict.fromkeys(IDS[6:])
    )


def test_failed_partition_of_an_id_list_run_is_mended_by_the_next(each_instance: dg.DagsterInstance) -> None:
    run_ids(each_instance, IDS, bad=IDS[:1])
    assert statuses(each_instance)[IDS[0]] == AssetPartitionStatus.FAILED
    assert run_ids(each_instance, IDS[:1]).success
    assert set(statuses(each_instance).values()) == {AssetPartitionStatus.MATERIALIZED}
    run_ids(each_instance, IDS[:1], bad=IDS[:1])
    assert statuses(each_instance)[IDS[0]] == AssetPartitionStatus.FAILED


def test_range_run_plans_each_partition_once(each_instance: dg.DagsterInstance) -> None:
    result = run_range(each_instance, IDS[2], IDS[6], bad=[IDS[3]])
    assert not result.success
    planned = entries(each_instance, result.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    assert sorted(str(entry.get_dagster_event().partition) for entry in planned) == IDS[2:7]
    expected = dict.fromkeys(IDS) | dict.fromkeys(IDS[2:7], AssetPartitionStatus.MATERIALIZED)
    assert statuses(each_instance) == expected | {IDS[3]: AssetPartitionStatus.FAILED}


def test_latest_materialization_and_data_version_of_each_partition(each_instance: dg.DagsterInstance) -> None:
    first, second = run_ids(each_instance, IDS), run_ids(each_instance, IDS[:5], etag="e2")
    ids = each_instance.event_log_storage.get_latest_storage_id_by_partition(
        EMBEDDING, dg.DagsterEventType.ASSET_MATERIALIZATION
    )
    for number, video_id in enumerate(IDS):
        event = each_instance.get_latest_data_version_record(EMBEDDING, partition_key=video_id)
        assert event is not None
        assert event.storage_id == ids[video_id]
        expected_run, etag = (second, "e2") if number < 5 else (first, "e1")
        assert event.run_id == expected_run.run_id
        assert (event.event_log_entry.tags or {})[DATA_VERSION_TAG] == f"{etag}-{CODE}"
    latest = each_instance.get_latest_materialization_event(EMBEDDING)
    assert latest is not None
    assert latest.run_id == second.run_id
    assert latest.get_dagster_event().partition == IDS[4]


def test_events_keep_their_order(each_instance: dg.DagsterInstance) -> None:
    shuffled = IDS[::2] + IDS[1::2]
    run = run_ids(each_instance, shuffled)
    found = each_instance.fetch_materializations(EMBEDDING, limit=100, ascending=True).records
    assert [record.partition_key for record in found] == shuffled
    assert [record.storage_id for record in found] == sorted(record.storage_id for record in found)
    in_run = entries(each_instance, run.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert [entry.get_dagster_event().partition for entry in in_run] == shuffled


def test_other_assets_observations_reach_the_asset_table(instance: dg.DagsterInstance) -> None:
    run_ids(instance, IDS[:2])
    assert set(instance.all_asset_keys()) == {RAW, EMBEDDING}
    found = instance.fetch_observations(RAW, limit=10).records
    assert {record.partition_key for record in found} == set(IDS[:2])


def test_partition_is_fresh_until_its_input_is_observed_changed(each_instance: dg.DagsterInstance) -> None:
    assert staleness(each_instance, IDS[0]) == StaleStatus.MISSING
    report_observations(each_instance, [observation(video_id, "e1") for video_id in IDS])
    run_ids(each_instance, IDS[:2])
    assert staleness(each_instance, IDS[0]) == StaleStatus.FRESH
    report_observations(each_instance, [observation(video_id, "e1") for video_id in IDS])
    assert staleness(each_instance, IDS[0]) == StaleStatus.FRESH
    report_observations(each_instance, [observation(IDS[0], "e2")])
    assert [staleness(each_instance, video_id) for video_id in IDS[:3]] == [
        StaleStatus.STALE,
        StaleStatus.FRESH,
        StaleStatus.MISSING,
    ]
    run_ids(each_instance, IDS[:1], etag="e2")
    assert staleness(each_instance, IDS[0]) == StaleStatus.FRESH


def test_other_code_version_is_stale(instance: dg.DagsterInstance) -> None:
    @dg.asset(partitions_def=VIDEOS, code_version="new")
    def downstream(context: dg.AssetExecutionContext) -> None: ...

    graph = dg.Definitions(assets=[downstream]).resolve_asset_graph()
    for code_version, expected in {"old": StaleStatus.STALE, "new": StaleStatus.FRESH}.items():
        instance.report_runless_asset_event(
            dg.AssetMaterialization("downstream", partition=IDS[0], tags=data_version_tags("d", code_version))
        )
        resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
        assert resolver.get_status(downstream.key, IDS[0]) == expected


def test_without_the_internals_events_are_recorded_by_the_public_call(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(dg.OpExecutionContext, "get_step_execution_context")
    result = run_ids(instance, IDS[:4], bad=IDS[3:4])
    assert instance.get_materialized_partitions(EMBEDDING) == set(IDS[:3])
    assert staleness(instance, IDS[0]) == StaleStatus.FRESH
    assert statuses(instance)[IDS[3]] is None
    log = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == logging.WARNING]
    assert len([line for line in log if "one by one" in line]) == 2
    assert len([line for line in log if "cannot show 1 partitions as failed" in line]) == 1


def test_direct_invocation_records_by_the_public_call() -> None:
    with dg.DagsterInstance.ephemeral() as instance, dg.build_op_context(instance=instance) as context:
        embed_ids(context, Items(ids=IDS[:2]))
        recorded = context.get_events()
    shown = [event.partition for event in recorded if isinstance(event, dg.AssetMaterialization)]
    assert (len(shown), set(shown)) == (2, set(IDS[:2]))


def test_reported_observations_are_those_of_the_public_call(instance: dg.DagsterInstance) -> None:
    report_observations(instance, [observation(video_id, "e1") for video_id in IDS])
    instance.report_runless_asset_event(observation(IDS[-1], "e1"))
    records = instance.fetch_observations(RAW, limit=100, ascending=True).records
    assert [record.partition_key for record in records] == [*IDS, IDS[-1]]
    ours, theirs = (record.event_log_entry._replace(timestamp=0.0) for record in records[-2:])
    assert ours == theirs


def test_reported_observations_without_the_internals(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def moved(event: dg.AssetObservation) -> None:
        raise ImportError("cannot import name 'AssetObservationData'")

    monkeypatch.setattr(recording, "_runless_entry", moved)
    report_observations(instance, [observation(video_id, "e1") for video_id in IDS])
    records = instance.fetch_observations(RAW, limit=100, ascending=True).records
    assert [record.partition_key for record in records] == IDS
    assert "one by one" in caplog.text


def test_nothing_to_record_writes_nothing(instance: dg.DagsterInstance) -> None:
    report_observations(instance, [])
    assert instance.all_asset_keys() == []


def test_long_lists_are_written_in_several_batches(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "BATCH_SIZE", 3)
    run_ids(instance, IDS)
    assert instance.get_materialized_partitions(EMBEDDING) == set(IDS)
    assert {staleness(instance, video_id) for video_id in IDS} == {StaleStatus.FRESH}
    report_observations(instance, [observation(video_id, "e2") for video_id in IDS])
    assert {staleness(instance, video_id) for video_id in IDS} == {StaleStatus.STALE}


@pytest.mark.filterwarnings("ignore:Property `OpDefinition.version` is deprecated")
def test_observable_source_asset_records_the_chosen_partitions(instance: dg.DagsterInstance) -> None:
    @dg.observable_source_asset(key=RAW, partitions_def=VIDEOS)
    def raw(context: dg.AssetExecutionContext) -> dg.DataVersionsByPartition:
        record_events(context, [observation(video_id, "e1") for video_id in context.partition_keys])
        return dg.DataVersionsByPartition({})

    job = dg.Definitions(assets=[raw, embedding]).resolve_implicit_global_asset_job_def()
    tags = {"dagster/asset_partition_range_start": IDS[1], "dagster/asset_partition_range_end": IDS[3]}
    assert job.execute_in_process(instance=instance, asset_selection=[RAW], tags=tags).success
    found = instance.fetch_observations(RAW, limit=100, ascending=True).records
    assert [record.partition_key for record in found] == IDS[1:4]
