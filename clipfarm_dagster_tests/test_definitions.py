"""What is defined, and that defining it does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from clipfarm_dagster.definitions import build_definitions, defs
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource
from clipfarm_dagster.stages import Stage

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
