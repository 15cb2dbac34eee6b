"""What is defined, and that defining it does nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from clipfarm_dagster.definitions import build_definitions, defs
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.maintenance.audit import Audit
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES, Resource
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.dg_project import check_defs, run_dg
from clipfarm_dagster_tests.support.media import REPOSITORY

INERT = """
import os, sys
os.environ["CLIPFARM_RUN_SIZE"] = "no number"  # unusable, but nobody may look yet
import dagster
touched = []
def watch(event, args):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.mkdir"):
        touched.append((event, args))
    if event == "open" and isinstance(args[0], str):
        name = args[0]
        # Python's own search for modules: zip files on its path, and hooks of editable installs
        searching = name in sys.path or "__path_hook__" in name
        code = name.endswith((".py", ".pyc", ".so", ".pth", "METADATA", "/mime.types", "entry_points.txt"))
        if not searching and not code:
            touched.append((event, name))
sys.addaudithook(watch)
import clipfarm_dagster.definitions
clipfarm_dagster.definitions.defs.resolve_all_job_defs()
heavy = {"torch", "transformers", "sentence_transformers", "librosa", "av", "boto3", "duckdb", "pandas"}
print(touched, sorted(heavy & set(sys.modules)))
"""


def test_loading_definitions_opens_no_file_socket_or_model():
    done = subprocess.run([sys.executable, "-c", INERT], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[] []"


def test_each_stage_has_its_raw_asset_its_embedding_and_its_job():
    graph = defs.resolve_asset_graph()
    for stage in Stage:
        raw, embedding = dg.AssetKey(f"raw_{stage}"), dg.AssetKey(f"{stage}_embedding")
        assert graph.get(embedding).parent_keys == {raw}
        assert graph.get(raw).is_observable
        for key in (raw, embedding):
            assert graph.get(key).partitions_def == DEFAULT_NAMES.partitions_def
            assert graph.get(key).description
        assert defs.resolve_job_def(f"{stage}_embedding_job").description
    assert {graph.get(dg.AssetKey(f"raw_{stage}")).group_name for stage in Stage} == {"raw"}
    assert {graph.get(dg.AssetKey(f"{stage}_embedding")).group_name for stage in Stage} == {"embeddings"}


def test_without_arguments_the_names_are_those_that_instances_know() -> None:
    """A name that changes leaves partitions, ticks and runs of before behind."""
    assert {key.to_user_string() for key in defs.resolve_all_asset_keys()} == {
        *(f"{kind}" for kind in ("raw_video", "raw_audio", "raw_text", "fused_manifest")),
        "deployment",
        *(f"{stage}_{kind}" for stage in ("video", "audio", "text") for kind in ("embedding", "manifest")),
        *(f"{stage}_{kind}" for stage in ("video", "audio", "text") for kind in ("candidate", "comparison")),
    }
    assert {job.name for job in defs.resolve_all_job_defs()} == {
        *("__ASSET_JOB", "video_embedding_job", "audio_embedding_job", "text_embedding_job"),
        *("video_candidate_job", "audio_candidate_job", "text_candidate_job"),
        *("cut_over_job", "manifests_job", "checks_job", "erase_videos"),
    }
    assert {sensor.name for sensor in defs.sensors or ()} == {"embedding_sensor", "manifest_sensor"}
    assert [schedule.name for schedule in defs.schedules or ()] == ["checks_schedule"]
    assert DEFAULT_NAMES.partitions_name == "video_id"
    assert DEFAULT_NAMES.run_tags() == {}
    run_config = id_list_run_config(DEFAULT_NAMES, Stage.TEXT, ["a"])
    assert run_config == {"ops": {"embed_text": {"config": {"video_ids": ["a"]}}}}
    checks = {check.name for check in defs.resolve_asset_graph().asset_check_keys}
    assert checks == {*map(str, Audit), "objects_present", "agrees_with_dagster", "canary"}


@pytest.mark.parametrize("prefix", ["two words", "a__b", "_a", "a_", "1a", ["a", "b/c"], "ä"])
def test_a_prefix_that_cannot_be_part_of_a_name_is_refused(prefix: str | list[str]) -> None:
    with pytest.raises(SettingsError, match="cannot be part of every name"):
        build_definitions(key_prefix=prefix)


def test_prefixes_that_look_alike_give_different_names() -> None:
    parts: list[str | list[str]] = ["", "a", ["a", "b"], "a_b", ["a_b"]]
    names = [set(build_definitions(key_prefix=part).resources or {}) for part in parts]

    assert names[3] == names[4]
    assert len(set.union(*names)) == 4 * len(Resource)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"settings": {"hom": "x"}}, "'hom' is not a setting of ClipFarm; did you mean 'home'?"),
        ({"settings": {"text": {"modle": "x"}}}, "text: 'modle' is not a setting of ClipFarm"),
        ({"settings": {"text": "x"}}, "'text' takes a mapping"),
        ({"resource_overrides": {"io_manager": None}}, "unknown resources: io_manager"),
        ({"group_prefix": "my group"}, "group_prefix 'my group' cannot be part"),
    ],
)
def test_a_misspelt_argument_is_told_when_definitions_are_built(
    arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(problem)):
        build_definitions(**arguments)


def test_settings_of_a_corpus_win_over_the_environment_and_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPFARM_HOME", str(tmp_path / "default"))
    monkeypatch.setenv("CLIPFARM_TEXT_BATCH_SIZE", "7")
    monkeypatch.setenv("KITCHEN_MODEL", str(tmp_path / "model"))
    settings = {"home": str(tmp_path / "home"), "text": {"model": dg.EnvVar("KITCHEN_MODEL")}}
    overrides = {"object_store": ObjectStoreResource(prefix="other")}
    resources = build_definitions(settings=settings, resource_overrides=overrides).resources or {}

    corpus = resources["clipfarm_stage_state"].corpus(resources["clipfarm_object_store"])

    assert corpus.settings.home == tmp_path / "home"
    assert corpus.store.url == str(tmp_path / "home" / "store")
    assert corpus.keys.prefix == "other"
    assert (corpus.settings.text.model, corpus.settings.text.batch_size) == (str(tmp_path / "model"), 7)


def test_loading_the_definitions_imports_less_than_dagster_itself() -> None:
    loading = """
import sys
before = set(sys.modules)
import dagster
dagsters = set(sys.modules) - before
import clipfarm_dagster.definitions
clipfarm_dagster.definitions.defs.resolve_all_job_defs()
print(len(dagsters), len(set(sys.modules) - before - dagsters))
"""
    counted = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, check=True)
    dagsters, ours = map(int, counted.stdout.split())

    assert ours < dagsters / 2


def test_a_clone_is_a_project_of_dg() -> None:
    check_defs(REPOSITORY)
    components = json.loads(run_dg(REPOSITORY, "list", "components", "--json"))
    assert "clipfarm_dagster.orchestration.component.ClipFarmComponent" in {
        one["key"] for one in components["items"]
    }


def test_definitions_are_loadable_as_dagster_loads_them():
    dg.Definitions.validate_loadable(build_definitions())


def test_resources_can_be_replaced(tmp_path):
    store = ObjectStoreResource(url=str(tmp_path))

    resources = build_definitions(resource_overrides={"object_store": store}).resources
    assert resources is not None
    assert resources["clipfarm_object_store"] is store


@pytest.mark.parametrize(
    ("resource", "field"),
    [
        ("clipfarm_object_store", "url"),
        ("clipfarm_object_store", "prefix"),
        ("clipfarm_stage_state", "home"),
        ("clipfarm_stage_state", "state_url"),
        ("clipfarm_stage_state", "settings"),
    ],
)
def test_no_run_chooses_where_it_writes(
    resource: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPFARM_HOME", str(tmp_path / "home"))
    job = defs.resolve_job_def(DEFAULT_NAMES.embedding_job(Stage.TEXT))
    elsewhere = tmp_path / "elsewhere"
    run_config = {
        "ops": {"embed_text": {"config": {"video_ids": ["one"]}}},
        "resources": {resource: {"config": {field: str(elsewhere)}}},
    }

    with pytest.raises(dg.DagsterInvalidConfigError, match=f'unexpected config entry "{field}"'):
        job.execute_in_process(run_config=run_config)

    assert list(tmp_path.iterdir()) == []


def test_no_resource_of_any_job_takes_a_path_or_address_from_a_run(tmp_path: Path) -> None:
    given = {
        "object_store": ObjectStoreResource(url=str(tmp_path), prefix="p"),
        "stage_state": StageStateResource(home=str(tmp_path), state_url=""),
    }
    # where a project has no io_manager, Dagster defines its own, which takes a folder and is never used
    merged = dg.Definitions.merge(
        build_definitions(resource_overrides=given),
        dg.Definitions(resources={"io_manager": dg.mem_io_manager}),
    )
    fields = set()
    for definitions in (defs, merged):
        for job in definitions.resolve_all_job_defs():
            for name, resource in job.resource_defs.items():
                config_type = resource.config_schema.config_type
                fields |= {(name, field) for field in getattr(config_type, "fields", {})}

    assert fields == {("clipfarm_object_store", "give_up_seconds"), ("clipfarm_encoders", "device")}
