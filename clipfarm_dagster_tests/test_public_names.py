"""The names that other people's code may use."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import clipfarm_dagster
from clipfarm_dagster import Corpus, Stage, VectorMatrix, embed_file, read_vectors, search
from clipfarm_dagster.errors import VideoNotFoundError
from clipfarm_dagster_tests.support.media import REPOSITORY
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

NAMES = {
    "ClipFarmError",
    "Contract",
    "Corpus",
    "Explanation",
    "Match",
    "Settings",
    "Stage",
    "StageCorpus",
    "StagePlan",
    "VectorMatrix",
    "build_definitions",
    "embed_file",
    "load_settings",
    "read_vectors",
    "search",
}

FACES = {
    "clipfarm_dagster.corpus": {"Corpus", "StageCorpus"},
    "clipfarm_dagster.store": {"ObjectInfo", "ObjectStore", "S3Options", "StoredObject", "local_path"},
}
"""What packages that are imported from as a whole must export."""


def test_they_are_these():
    assert set(clipfarm_dagster.__all__) == NAMES
    assert set(dir(clipfarm_dagster)) >= NAMES
    for name in NAMES:
        assert getattr(clipfarm_dagster, name).__doc__
    with pytest.raises(AttributeError):
        _ = clipfarm_dagster.nothing


def test_importing_the_package_imports_nothing_heavy():
    program = """
import sys
import clipfarm_dagster
clipfarm_dagster.Stage
print(sorted({"dagster", "torch", "pyarrow", "numpy", "pandas"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_everyday_things_take_a_few_lines(corpus: Corpus, instance):
    from clipfarm_dagster.cli.sync import sync_corpus

    texts = {"a": "a dog runs on the beach", "b": "a train leaves the station", "c": "two dogs at the sea"}
    put_metadata(corpus, [metadata_row(video_id) for video_id in texts])
    for video_id, text in texts.items():
        put_transcript(corpus, video_id, text)
    assert corpus.plans([Stage.TEXT])[Stage.TEXT].reasons == {"new": 3}
    assert len(read_vectors(corpus, Stage.TEXT)) == 0
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)

    assert corpus.plans([Stage.TEXT])[Stage.TEXT].delta == 0
    assert str(corpus.explain(Stage.TEXT, "a").verdict) == "done"
    found = read_vectors(corpus, Stage.TEXT)
    assert sorted(found.video_ids) == ["a", "b", "c"]
    assert found.vectors.shape == (3, 768)
    assert search(corpus, like="a", top=1)[0].video_id == "c"
    assert search(corpus, "railway", top=1)[0].video_id == "b"

    names: dict[str, Any] = {}
    readme = (REPOSITORY / "README.md").read_text()
    exec(readme.partition("## From Python")[2].split("```")[1].removeprefix("python"), names)
    assert names["plans"][Stage.TEXT].delta == 0
    assert np.array_equal(names["vectors"].vectors, found.vectors)
    assert {match.video_id for match in names["matches"]} == {"a", "b", "c"}

    raw = f"{corpus.store.url}/{corpus.keys.raw(Stage.TEXT, 'b')}"
    vector = embed_file(corpus.encoder(Stage.TEXT), raw, corpus.rows(["b"])["b"])
    assert np.array_equal(vector, found.vector("b"))


def test_a_matrix_becomes_an_arrow_table_and_names_what_it_lacks():
    matrix = VectorMatrix(["a", "b"], np.eye(2, 3, dtype=np.float32), {"c": "there is no such object"})

    table = matrix.to_arrow()

    assert table["video_id"].to_pylist() == ["a", "b"]
    assert table["vector"].to_pylist() == [[1, 0, 0], [0, 1, 0]]
    assert repr(matrix) == "VectorMatrix(2 videos, dimension 3, 1 left out)"
    with pytest.raises(VideoNotFoundError, match="'c' here: there is no such object"):
        matrix.vector("c")
    with pytest.raises(VideoNotFoundError, match="'d' here"):
        matrix.vector("d")


@pytest.mark.parametrize("face", FACES)
def test_a_package_exports_what_it_says(face: str) -> None:
    module = importlib.import_module(face)
    members = vars(module).items()
    public = {name for name, value in members if not name.startswith("_") and not inspect.ismodule(value)}

    assert module.__all__ == sorted(module.__all__)
    assert set(module.__all__) == public
    assert set(module.__all__) >= FACES[face]


@pytest.mark.parametrize("face", FACES)
def test_what_a_package_exports_is_its_own_and_documented(face: str) -> None:
    module = importlib.import_module(face)

    for name in module.__all__:
        exported = getattr(module, name)
        assert exported.__module__.startswith(f"{face}."), name
        assert inspect.getdoc(exported), name
