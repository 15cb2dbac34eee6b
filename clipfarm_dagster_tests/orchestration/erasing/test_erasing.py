"""An erased video leaves no trace in Dagster, and its neighbours, and all that Dagster reads, stay."""

from __future__ import annotations

import hashlib
import hmac
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ErasureError
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.orchestration.erasing import Erased, databases, erase_from_dagster, scan_dagster
from clipfarm_dagster.orchestration.erasing import files as files_module
from clipfarm_dagster.orchestration.erasing.databases import Database
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES, CorpusNames
from clipfarm_dagster.orchestration.runs.id_list import id_list
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.orchestration.erasing.story import (
    GONE,
    IDS,
    KEY,
    NEIGHBOURS,
    RAW,
    SAID,
    Rows,
    all_rows,
    files,
    live_through,
    materialize,
    on_postgres,
    read_everything,
    statuses,
)
from clipfarm_dagster_tests.support.postgres import new_database
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

TOMBSTONES = {GONE: hmac.new(b"key", GONE.encode(), hashlib.sha256).hexdigest()}
TOMBSTONE = TOMBSTONES[GONE]
NAMES = DEFAULT_NAMES.partitions_name

pytestmark = [
    pytest.mark.parametrize("store", ["folder"], indirect=True),
    pytest.mark.filterwarnings("ignore:Function `AssetSelection.sources`:DeprecationWarning"),  # Dagster's
]


@pytest.fixture(params=["shipped", "stock", "postgres"])
def each_instance(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance of each kind of storage."""
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    if request.param == "shipped":
        ensure_instance(home)
    elif request.param == "postgres":
        url = new_database(request.getfixturevalue("postgres_url"))
        (home / "dagster.yaml").write_text(f"storage: {{postgres: {{postgres_url: '{url}'}}}}")
    with dg.DagsterInstance.get() as instance:
        yield instance


def test_an_erased_video_leaves_no_trace_and_its_neighbours_stay(
    corpus: Corpus, each_instance: dg.DagsterInstance
):
    instance = each_instance
    live_through(corpus, instance)
    before, read, status = all_rows(instance), read_everything(instance), statuses(instance)
    places = set(map(_kind, scan_dagster(instance, [GONE])))
    assert places >= {
        "event_logs.event",
        "event_logs.partition",
        "dynamic_partitions.partition",
        "asset_keys.last_materialization",
        "asset_keys.cached_status_data",
        "runs.run_body",
        "run_tags.value",
        "bulk_actions.body",
        "job_ticks.tick_body",
        "step.err",
        "its name",
    }, places
    assert any(SAID.encode() in path.read_bytes() for path in files(instance)) or on_postgres(instance)
    contents = {path: path.read_bytes() for path in files(instance) if ".db" not in path.name}

    planned = erase_from_dagster(instance, DEFAULT_NAMES, TOMBSTONES, dry_run=True)

    assert all_rows(instance) == before
    assert {path: path.read_bytes() for path in contents} == contents

    done = erase_from_dagster(instance, DEFAULT_NAMES, TOMBSTONES)

    assert replace(done, compacted=0) == planned

    assert scan_dagster(instance, [GONE]) == []
    assert not any(SAID.encode() in path.read_bytes() for path in files(instance))
    assert (done.partitions, done.files_removed) == (1, 1)
    assert done.files_changed >= 1
    after = all_rows(instance)
    _only_what_named_it_differs(before, after)
    _still_reads(instance, read)
    assert statuses(instance) == {name: keys - {GONE} for name, keys in status.items()}
    assert set(instance.get_dynamic_partitions(NAMES)) == set(NEIGHBOURS)

    cached = all_rows(instance)
    again = erase_from_dagster(instance, DEFAULT_NAMES, TOMBSTONES)
    assert (again.partitions, again.deleted, again.replaced) == (0, {}, {})
    assert (again.files_changed, again.files_removed) == (0, 0)
    assert all_rows(instance) == cached
    assert materialize(instance, partition_key=NEIGHBOURS[0]).success


def _only_what_named_it_differs(before: Rows, after: Rows) -> None:
    """Every row is what it was, less the columns that named the video, less its events and their tags."""
    ids = IdText(TOMBSTONES, NEIGHBOURS)
    assert after.keys() <= before.keys()
    for place, row in before.items():
        held = {column for column, value in row.items() if list(ids.spans(str(value)))}
        if place not in after:
            assert row.get("partition") == GONE or place[1] == "asset_event_tags"
        else:
            kept = {name: value for name, value in row.items() if name not in held}
            assert {name: value for name, value in after[place].items() if name not in held} == kept
            assert not [value for value in after[place].values() if list(ids.spans(str(value)))]
    gone = {place[2] for place, row in before.items() if place not in after and place[1] == "event_logs"}
    tags = [row for place, row in before.items() if place not in after and place[1] == "asset_event_tags"]
    assert tags
    assert {row["event_id"] for row in tags} <= gone


def _kind(trace: Any) -> str:
    """Table and column of a trace, or the name of its file."""
    place = trace.place.rpartition(": ")[2].removeprefix("public.")
    return Path(place).name


def _still_reads(instance: dg.DagsterInstance, before: dict[str, Any]) -> None:
    """Dagster reads all runs, events, backfills and ticks; those of neighbours alone are equal."""
    now = read_everything(instance)
    assert now["runs"].keys() == before["runs"].keys()
    assert now["records"] == before["records"]
    assert [len(now[name]) for name in ("backfills", "ticks", "assets", "snapshots")] == [
        len(before[name]) for name in ("backfills", "ticks", "assets", "snapshots")
    ]
    for run_id, entries in before["logs"].items():
        kept = [entry for entry in entries if _partition(entry) != GONE]
        assert len(now["logs"][run_id]) == len(kept)
        for entry, was in zip(now["logs"][run_id], kept, strict=True):
            assert entry == was or TOMBSTONE in str(entry)
            if _partition(was) in NEIGHBOURS:
                assert entry.dagster_event.event_specific_data == was.dagster_event.event_specific_data
    lists = [run.run_config["ops"] for run in now["runs"].values() if "ops" in run.run_config]
    assert any(TOMBSTONE in str(ids) and NEIGHBOURS[0] in str(ids) for ids in lists)
    [backfill] = now["backfills"]
    targeted = backfill.asset_backfill_data.target_subset.get_partitions_subset(KEY)
    assert set(targeted.get_partition_keys()) == {TOMBSTONE, *IDS[1:3]}
    assert TOMBSTONE in backfill.title
    skipped, tick = now["ticks"]
    assert TOMBSTONE in skipped.skip_reason
    assert NEIGHBOURS[0] in skipped.skip_reason
    assert TOMBSTONE in tick.cursor
    assert TOMBSTONE in now["state"].instigator_data.cursor
    assert set(tick.tick_data.dynamic_partitions_request_results[0].added_partitions) == {
        TOMBSTONE,
        *NEIGHBOURS,
    }
    for record in now["assets"]:
        latest = record.asset_entry.last_materialization
        assert latest is None or latest.dagster_event.partition in NEIGHBOURS


def _partition(entry: dg.EventLogEntry) -> str | None:
    event = entry.dagster_event
    return event.partition if event is not None and event.asset_key in (KEY, RAW) else None


def test_an_erasure_that_is_broken_off_anywhere_is_finished_by_the_next(
    corpus: Corpus, each_instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    instance = each_instance
    live_through(corpus, instance)
    before, read = all_rows(instance), read_everything(instance)
    # as many as are looked for in another way
    many = {**TOMBSTONES, **{f"absent-{n}": "T" for n in range(9)}}
    steps, limit = 0, 0

    def broken_off_at(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > limit:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return step

    for owner, name in [(Database, "writing"), (Database, "compact"), (files_module, "_replaced")]:
        monkeypatch.setattr(owner, name, broken_off_at(getattr(owner, name)))
    attempts = 0
    while True:
        steps, attempts = 0, attempts + 1
        try:
            erase_from_dagster(instance, DEFAULT_NAMES, many)
            break
        except KeyboardInterrupt:
            limit += 1
            assert not _claims_to_be_done(instance)

    assert attempts > 5
    assert scan_dagster(instance, [GONE]) == []
    _only_what_named_it_differs(before, all_rows(instance))
    _still_reads(instance, read)


def _claims_to_be_done(instance: dg.DagsterInstance) -> bool:
    """Whether the partition is gone, and rows still name it."""
    return GONE not in instance.get_dynamic_partitions(NAMES) and any(
        "." in _kind(trace) and ".db" not in _kind(trace) for trace in scan_dagster(instance, [GONE])
    )


def test_an_id_that_is_a_word_is_erased_where_it_is_an_id_and_nowhere_else(
    corpus: Corpus, instance: dg.DagsterInstance
):
    put_metadata(corpus, [metadata_row("success"), metadata_row("video"), metadata_row("other1")])
    for video_id in ("success", "video", "other1"):
        put_transcript(corpus, video_id, "words")
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)
    assert materialize(instance, partition_key="video").success
    runs = {run.run_id: run for run in instance.get_runs()}

    erase_from_dagster(instance, DEFAULT_NAMES, {"success": "T1", "video": "T2"})

    assert set(instance.get_dynamic_partitions(NAMES)) == {"other1"}
    assert set(instance.get_materialized_partitions(KEY)) == {"other1"}
    for run in instance.get_runs():
        was = runs[run.run_id]
        assert (run.status, run.job_name, run.asset_selection) == (
            was.status,
            was.job_name,
            was.asset_selection,
        )
        assert "success" not in str(run.run_config)
        assert {"dagster/partition": run.tags.get("dagster/partition")} in (
            {"dagster/partition": None},
            {"dagster/partition": "T2"},
        )
        assert run.tags.get("clipfarm/stage") == was.tags.get("clipfarm/stage")
        assert list(instance.all_logs(run.run_id))
    lists = [id_list(DEFAULT_NAMES, Stage.TEXT, run.run_config) for run in instance.get_runs()]
    assert ["T1", "T2", "other1"] in map(sorted, lists)


def test_another_corpus_of_the_instance_keeps_its_video_of_the_same_id(
    corpus: Corpus, instance: dg.DagsterInstance
):
    shop = CorpusNames.of("shop")
    live_through(corpus, instance)
    instance.add_dynamic_partitions(shop.partitions_name, [GONE])
    instance.report_runless_asset_event(
        dg.AssetMaterialization(shop.embedding(Stage.TEXT), partition=GONE, metadata={"of": GONE})
    )
    theirs = {
        place: row
        for place, row in all_rows(instance).items()
        if "shop" in str(row.get("asset_key")) or row.get("partitions_def_name") == shop.partitions_name
    }
    assert len(theirs) >= 3

    erase_from_dagster(instance, DEFAULT_NAMES, TOMBSTONES)

    after = all_rows(instance)
    assert {place: after[place] for place in theirs} == theirs
    left = {place: row for place, row in after.items() if GONE in re.split(r"[^\w.-]", str(row))}
    assert left.keys() <= theirs.keys()
    assert set(instance.get_dynamic_partitions(NAMES)) == set(NEIGHBOURS)
    erase_from_dagster(instance, shop, TOMBSTONES)
    assert scan_dagster(instance, [GONE]) == []


def test_the_events_of_assets_that_a_project_has_made_of_the_videos_go_with_them(
    instance: dg.DagsterInstance, store: object
):
    mine = dg.AssetKey("thumbnails")
    instance.add_dynamic_partitions(NAMES, ["clip-1", "clip-2"])
    for partition in ("clip-1", "clip-2"):
        instance.report_runless_asset_event(dg.AssetMaterialization(mine, partition=partition))

    done = erase_from_dagster(instance, DEFAULT_NAMES, {"clip-1": "T"}, more_assets=[mine])

    assert done.deleted == {"event_logs": 2}
    assert instance.get_materialized_partitions(mine) == {"clip-2"}
    assert erase_from_dagster(instance, DEFAULT_NAMES, {"clip-1": "T"}).deleted == {}


def test_a_dagster_that_is_not_known_is_refused_and_nothing_is_changed(
    instance: dg.DagsterInstance, store: object, monkeypatch: pytest.MonkeyPatch
):
    instance.add_dynamic_partitions(NAMES, ["clip-1"])
    monkeypatch.setattr(dg, "__version__", "1.14.0")
    with pytest.raises(ErasureError, match=r"Dagster 1\.14\.0 .* not known"):
        erase_from_dagster(instance, DEFAULT_NAMES, {"clip-1": "T"})
    with pytest.raises(ErasureError, match=r"not known"):
        scan_dagster(instance, ["clip-1"])
    monkeypatch.undo()
    with (
        dg.DagsterInstance.ephemeral() as ephemeral,
        pytest.raises(ErasureError, match="InMemoryEventLogStorage"),
    ):
        erase_from_dagster(ephemeral, DEFAULT_NAMES, {"clip-1": "T"})
    assert instance.get_dynamic_partitions(NAMES) == ["clip-1"]


def test_a_database_in_use_is_named_and_the_video_is_not(
    instance: dg.DagsterInstance, store: object, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(databases, "_WAIT_SECONDS", 0.1)
    instance.add_dynamic_partitions(NAMES, ["clip-1"])
    index = Path(instance.root_directory) / "history" / "runs" / "index.db"
    with closing(sqlite3.connect(index, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ErasureError, match=r"index\.db: database is locked") as caught:
            erase_from_dagster(instance, DEFAULT_NAMES, {"clip-1": "T"})
        assert "clip-1" not in str(caught.value)
        assert caught.value.__suppress_context__  # which has the statement's values
        other.execute("ROLLBACK")
        other.execute("BEGIN")
        other.execute("SELECT * FROM dynamic_partitions").fetchall()
        with pytest.raises(ErasureError, match=r"index\.db: another process has been reading"):
            erase_from_dagster(instance, DEFAULT_NAMES, {"clip-1": "T"})
        other.execute("ROLLBACK")

    erase_from_dagster(instance, DEFAULT_NAMES, {"clip-1": "T"})
    assert scan_dagster(instance, ["clip-1"]) == []


def test_compute_logs_in_a_bucket_are_said_to_be_out_of_reach(
    tmp_path: Path, store: object, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(
        "compute_logs:\n  module: dagster_aws.s3\n  class: S3ComputeLogManager\n  config: {bucket: logs}\n"
    )
    with dg.DagsterInstance.get() as instance:
        done = erase_from_dagster(instance, DEFAULT_NAMES, TOMBSTONES)
    assert done == Erased(out_of_reach=("compute logs of S3ComputeLogManager",))
