"""`--generation`: the commands that read vectors read another generation than the one that serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.explore.atlas import atlas_table
from clipfarm_dagster.manifests.vectors import fused_vectors, read_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.corpora import embed
from clipfarm_dagster_tests.support.migrating import TEXT, TEXTS, Migrating

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

COMMANDS = [
    ("search", "bread"),
    ("search", "--like", "bread"),
    ("duplicates", "--threshold", "0"),
    ("export", "--modality", "text", "--out", "vectors.npz"),
]


@pytest.fixture
def migrating(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Migrating:
    monkeypatch.chdir(tmp_path)
    return Migrating(corpus)


def exported(path: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(zip(arrays["video_id"].tolist(), arrays["embedding"], strict=True))


def test_another_generation_is_read_once_it_has_what_is_served(
    migrating: Migrating, clipfarm: Callable[..., Ended]
):
    migrating.embed(migrating.new, list(TEXTS))
    old, new = (read_vectors(migrating.corpus, TEXT, generation=i) for i in (migrating.old, migrating.new))
    assert (np.abs(old.vectors - new.vectors).max(axis=1) > 1e-4).all()

    short = migrating.new[:6]
    found = clipfarm("search", "baking bread", "--generation", short, "--json").json["results"]
    assert found[0]["video_id"] == "bread"
    assert found[0]["keys"] == [migrating.corpus.keys.generation(TEXT, migrating.new, "bread")]
    served = clipfarm("search", "baking bread", "--json").json["results"]
    assert served[0]["keys"] == [migrating.corpus.keys.embedding(TEXT, "bread")]
    assert served[0]["score"] != found[0]["score"]

    scores = {}
    for name in ("", short):
        named = ["--generation", name] if name else ["--modality", "text"]
        pairs = clipfarm("duplicates", *named, "--threshold", "-1", "--json").json
        assert pairs["count"] == len(TEXTS) * (len(TEXTS) - 1) / 2
        scores[name] = {tuple(pair["video_ids"]): pair["score"] for pair in pairs["pairs"]}
    matrix = dict(zip(new.video_ids, new.vectors, strict=True))
    assert scores[short][("bread", "cake")] == pytest.approx(
        float(matrix["bread"] @ matrix["cake"]), abs=1e-5
    )
    assert scores[short] != scores[""]

    for name, vectors, contract in ((migrating.new, new, migrating.new), ("", old, migrating.old)):
        named = ["--generation", name] if name else []
        ended = clipfarm("export", "--modality", "text", "--out", "v.npz", *named, "--json")
        assert (ended.code, ended.json["contract"], ended.json["vectors"]) == (0, contract, 8)
        assert all(
            (exported("v.npz")[i] == v).all() for i, v in zip(vectors.video_ids, vectors.vectors, strict=True)
        )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_generation_that_lacks_videos_is_read_only_if_that_is_allowed(
    migrating: Migrating, clipfarm: Callable[..., Ended], command: tuple[str, ...]
):
    migrating.embed(migrating.new, ["bread", "cake", "soup"])

    ended = clipfarm(*command, "--generation", migrating.new)

    assert (ended.code, ended.output) == (2, "")
    assert "has 3 of the 8 text vectors that serve; --allow-partial takes it as it is" in ended.errors
    ended = clipfarm(*command, "--generation", migrating.new, "--allow-partial")
    assert ended.code == 0, ended.errors
    if command[0] == "export":
        assert set(exported("vectors.npz")) == {"bread", "cake", "soup"}
    else:
        assert "cake" in ended.output
        assert "boat" not in ended.output


@pytest.mark.parametrize("command", [*COMMANDS, ("atlas",)], ids=lambda command: " ".join(command[:2]))
def test_a_name_that_leads_to_no_generation_gets_those_that_there_are(
    migrating: Migrating,
    clipfarm: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    migrating.embed(migrating.new, ["bread"])

    ended = clipfarm(*command, "--generation", "nothing")

    assert (ended.code, ended.output) == (2, "")
    assert "there is no generation 'nothing'" in ended.errors
    for contract_id in (migrating.old, migrating.new):
        assert f"{contract_id} (text)" in ended.errors


def test_fused_vectors_have_a_generation_in_the_place_of_what_serves(
    migrating: Migrating, clipfarm: Callable[..., Ended]
):
    """As search, duplicates and the atlas show them."""
    migrating.embed(migrating.new, list(TEXTS))
    others = {stage: embed(migrating.corpus, stage, list(TEXTS)) for stage in (Stage.VIDEO, Stage.AUDIO)}
    new = read_vectors(migrating.corpus, TEXT, generation=migrating.new)
    text = dict(zip(new.video_ids, new.vectors, strict=True))
    parts = [
        np.stack([vectors[i] for i in TEXTS]) for vectors in (others[Stage.VIDEO], others[Stage.AUDIO], text)
    ]
    fused = np.concatenate(parts, axis=1) / np.sqrt(3)
    ids = list(TEXTS)

    found = clipfarm(
        "search", "--like", "bread", "--strategy", "concat", "--generation", migrating.new[:8], "--json"
    ).json["results"]

    expected = fused @ fused[ids.index("bread")]
    assert {e["video_id"]: e["score"] for e in found} == {
        i: pytest.approx(float(expected[n]), abs=1e-5) for n, i in enumerate(ids) if i != "bread"
    }
    file, _ = fused_vectors(migrating.corpus, "concat", TEXT, migrating.new)
    shown = atlas_table(migrating.corpus, file, thumbnails=0)
    assert sorted(shown["video_id"].to_pylist()) == sorted(TEXTS)
