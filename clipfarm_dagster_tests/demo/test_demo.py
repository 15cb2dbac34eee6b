"""`clipfarm demo`, as a stranger runs it: once, again, and after a title has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.media import REPOSITORY


def start_demo(
    home: Path, *, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from clipfarm_dagster.cli import main; main()"]
    return subprocess.run(
        [*command, "demo", "--json", "--home", str(home)],
        cwd=cwd,
        env={"PYTHONPATH": str(REPOSITORY), **os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_demo(home: Path, *, cwd: Path | None = None, **environment: str) -> dict[str, Any]:
    done = start_demo(home, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def embedded(answer: dict[str, Any]) -> dict[str, int]:
    return {stage: entry["embedded"] for stage, entry in answer["stages"].items()}


def test_a_folder_that_is_no_demo_is_refused(tmp_path: Path):
    own = tmp_path / "clipfarm.env"
    own.write_text("CLIPFARM_STORE_URL=s3://own\n")

    done = start_demo(tmp_path)

    assert done.returncode == 2
    assert "is not a demo's folder" in done.stderr
    assert list(tmp_path.iterdir()) == [own]


def test_the_demo_embeds_everything_then_nothing_then_one_changed_title(tmp_path: Path):
    own = tmp_path / "own/clipfarm/metadata/shorts_metadata_horizon.csv"
    own.parent.mkdir(parents=True)
    own.write_text("video_id\n")
    settings = {
        "CLIPFARM_STORE_URL": str(tmp_path / "own"),
        "CLIPFARM_METADATA_URL": str(own),
        "CLIPFARM_STATE_URL": "postgresql://127.0.0.1:1/own",
        "DAGSTER_HOME": str(tmp_path / "dagster"),
    }
    first = run_demo(tmp_path / "demo", cwd=None, **settings)
    assert own.read_text() == "video_id\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "own"]

    assert first["stages"] == {s: {"vectors": 12, "embedded": 12} for s in ("video", "audio", "text")}
    theme = first["like"].split("-")[0]
    assert first["neighbours"][0][0].startswith(theme)
    assert embedded(run_demo(tmp_path / "demo")) == {"video": 0, "audio": 0, "text": 0}

    metadata = tmp_path / "demo/store/clipfarm/metadata/shorts_metadata_horizon.csv"
    *earlier, last = metadata.read_text().splitlines()
    newest = first["newest"]
    assert last.startswith(newest["video_id"])
    assert newest["title"] in last
    metadata.write_text("\n".join([*earlier, last.replace(newest["title"], "Another title")]) + "\n")

    assert embedded(run_demo(tmp_path / "demo")) == {"video": 0, "audio": 0, "text": 1}


def tree(folder: Path, without: Path) -> dict[str, bytes | None]:
    """All under `folder` by path, with the bytes of files, but for what is under `without`."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path != without and without not in path.parents
    }


@dataclass(frozen=True)
class DemoBesideACorpus:
    """A demo that was made in a folder whose default home leads to another store, prefix and models."""

    folder: Path
    before: dict[str, bytes | None]
    """All that was there before the demo."""
    answer: dict[str, Any]

    @property
    def home(self) -> Path:
        return self.folder / "work/.clipfarm-demo"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoBesideACorpus:
    folder = tmp_path_factory.mktemp("demo")
    own = folder / "work/.clipfarm"
    own.mkdir(parents=True)
    (folder / "own-store").mkdir()
    lines = [
        f"CLIPFARM_STORE_URL={folder / 'own-store'}",
        "CLIPFARM_PREFIX=own",
        f"CLIPFARM_METADATA_URL={folder / 'own-store/own.csv'}",
        "CLIPFARM_STATE_URL=postgresql://127.0.0.1:1/own",
        "CLIPFARM_TEXT_MODEL=somebody/own-model",
    ]
    (own / "clipfarm.env").write_text("\n".join(lines) + "\n")
    before = tree(folder, without=folder / "work/.clipfarm-demo")
    return DemoBesideACorpus(folder, before, run_demo(Path(".clipfarm-demo"), cwd=folder / "work"))


def test_the_demo_keeps_to_its_own_folder_beside_a_corpus_of_somebody(demo: DemoBesideACorpus):
    assert tree(demo.folder, without=demo.home) == demo.before
    assert demo.answer["store"] == str(demo.home / "store")
    manifests = demo.home / "store/clipfarm/manifests"
    counts = {path.stem: pq.read_table(path).num_rows for path in manifests.rglob("*.parquet")}
    assert counts
    assert set(counts.values()) == {12}, counts


def test_every_partition_of_the_demo_shows_its_preview(
    demo: DemoBesideACorpus, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DAGSTER_HOME", str(demo.home / "dagster"))
    starts = {Stage.VIDEO: "![16 sampled frames](data:image/webp", Stage.AUDIO: "![waveform](data:image/png"}
    with dg.DagsterInstance.get() as instance:
        partitions = instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name)
        assert len(partitions) == 12
        for stage in Stage:
            records = instance.fetch_materializations(DEFAULT_NAMES.embedding(stage), limit=100).records
            previews = {
                record.partition_key: str(record.asset_materialization.metadata["preview"].value)
                for record in records
                if record.asset_materialization is not None
            }
            assert previews.keys() == set(partitions)
            start = starts.get(stage, "**Metadata**")
            assert all(preview.startswith(start) for preview in previews.values())


def test_the_notebook_of_the_documentation_runs_over_the_demo(demo: DemoBesideACorpus):
    docs = demo.folder / "work/docs"
    docs.mkdir()
    notebook = nbformat.read(REPOSITORY / "docs/notebook.ipynb", as_version=4)
    environment = {"PYTHONPATH": str(REPOSITORY), **os.environ}

    client = NotebookClient(notebook, resources={"metadata": {"path": str(docs)}}, timeout=300)
    client.execute(env=environment)

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    assert cells[-1].outputs[-1].data["text/plain"] == "True"
