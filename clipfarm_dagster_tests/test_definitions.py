"""What is defined, and that defining it does nothing else."""

from __future__ import annotations

import subprocess
import sys

import dagster as dg

from clipfarm_dagster.definitions import build_definitions, defs
from clipfarm_dagster.partitions import VIDEO_PARTITIONS
from clipfarm_dagster.resources.object_store import ObjectStoreResource
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
            assert graph.get(key).partitions_def == VIDEO_PARTITIONS
            assert graph.get(key).description
        assert defs.resolve_job_def(f"{stage}_embedding_job").description
    assert {graph.get(dg.AssetKey(f"raw_{stage}")).group_name for stage in Stage} == {"raw"}
    assert {graph.get(dg.AssetKey(f"{stage}_embedding")).group_name for stage in Stage} == {"embeddings"}


def test_definitions_are_loadable_as_dagster_loads_them():
    dg.Definitions.validate_loadable(build_definitions())


def test_resources_can_be_replaced(tmp_path):
    store = ObjectStoreResource(url=str(tmp_path))

    assert build_definitions({"object_store": store}).resources["object_store"] is store
