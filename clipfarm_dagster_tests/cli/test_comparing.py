"""`clipfarm migrate compare`, over two real generations."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from clipfarm_dagster.canary.check import check_canary
from clipfarm_dagster.canary.environment import current_environment
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.manifests.vectors import read_vectors
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.migrating import TEXT, TEXTS, Migrating, encoder

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

Command = Callable[..., Ended]


@pytest.fixture
def migrating(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Migrating:
    """The candidate has all but one of the videos."""
    migrating = Migrating(corpus)
    migrating.embed(migrating.new, list(TEXTS)[:-1])
    monkeypatch.setenv("CLIPFARM_TEXT_DTYPE", "bfloat16")
    return migrating


def test_it_says_what_another_model_changes(migrating: Migrating, clipfarm: Command, tmp_path: Path):
    picture, neighbours = tmp_path / "both.png", tmp_path / "neighbours.csv"

    ended = clipfarm(
        "migrate", "compare", "text", "--picture", str(picture), "--table", str(neighbours), "--json"
    )

    assert ended.code == 0, ended.errors
    answer = ended.json
    assert (answer["stage"], answer["shared"]) == ("text", 7)
    for name, contract_id, count in (("old", migrating.old, 8), ("new", migrating.new, 7)):
        assert (answer[name]["contract_id"], answer[name]["vectors"]) == (contract_id, count)
        assert answer[name]["dimension"] == 768
        assert answer[name]["min_norm"] == pytest.approx(1, abs=1e-5)
        assert answer[name]["max_norm"] == pytest.approx(1, abs=1e-5)
        assert answer[name]["canary"] is None
    assert answer["canary_differs"] is None
    assert answer["coverage"] == {
        "served": 8, "done": 7, "outdated": 0, "to_do": 1, "waiting": 0, "failed": 0,
        "missing_raw_object": 0, "orphaned": 0,
    }  # fmt: skip
    assert answer["overlap"]["videos"] == 7
    assert answer["overlap"]["mean"] == 1  # of ten nearest all six others
    assert {"threshold": 0.98, "kept": 0, "lost": 0, "gained": 0}.items() <= answer["duplicates"].items()
    assert len(answer["examples"]) == 5
    new = read_vectors(migrating.corpus, TEXT, generation=migrating.new)
    vectors = dict(zip(new.video_ids, new.vectors, strict=True))
    for example in answer["examples"]:
        assert example["title"] == TEXTS[example["video_id"]]
        scores = {i: float(vectors[i] @ vectors[example["video_id"]]) for i in vectors}
        del scores[example["video_id"]]
        best = sorted(scores, key=lambda i: -scores[i])[:5]
        assert [match["video_id"] for match in example["new"]] == best
        assert [match["title"] for match in example["new"]] == [TEXTS[i] for i in best]
        assert [m["score"] for m in example["new"]] == pytest.approx([scores[i] for i in best], abs=1e-5)
    with Image.open(picture) as opened:
        assert (opened.format, opened.size) == ("PNG", (1200, 560))
    with neighbours.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 6
    assert {row["video_id"] for row in rows} == set(TEXTS) - {"cards"}
    assert all(row["new_title"] == TEXTS[row["new_neighbour"]] for row in rows)
    assert [row["rank"] for row in rows[:6]] == list("123456")


def test_a_person_sees_titles_and_what_is_in_common(migrating: Migrating, clipfarm: Command):
    migrating.embed(migrating.new, list(TEXTS))

    ended = clipfarm("migrate", "compare", "text", "--generation", migrating.new[:4], "--sample", "3")

    assert ended.code == 0, ended.errors
    assert "It has 8 of the 8 vectors that serve (100.0%)." in ended.output
    assert "Of the nearest neighbours of 3 videos 100% are the same on average" in ended.output
    assert "Near duplicates (cosine 0.98 or more): 0 pairs kept, 0 lost, 0 gained." in ended.output
    assert "Its canary: none is recorded" in ended.output
    assert ended.output.count("Nearest to ") == 3
    assert "100% in common" in ended.output
    assert TEXTS["boat"] in ended.output


def test_what_is_recorded_of_the_canaries_is_compared(migrating: Migrating, clipfarm: Command):
    for corpus in (migrating.corpus, migrating.wants_new):
        model = encoder(corpus.settings)
        check_canary(model, current_environment(model.device), corpus.store, corpus.keys)

    answer = clipfarm("migrate", "compare", "text", "--json").json

    assert answer["new"]["canary"]["agreeing_environments"] == 1
    assert answer["old"]["canary"]["made_at"] < answer["new"]["canary"]["made_at"]
    assert answer["canary_differs"] == ["model"]
    shown = clipfarm("migrate", "compare", "text").output
    assert "it differs from what serves in: model." in shown


def test_after_a_cut_over_what_served_before_is_compared(migrating: Migrating, clipfarm: Command):
    migrating.embed(migrating.new, list(TEXTS))
    assert clipfarm("migrate", "cut-over", "text").code == 0

    answer = clipfarm("migrate", "compare", "text", "--json").json

    assert (answer["old"]["contract_id"], answer["new"]["contract_id"]) == (migrating.new, migrating.old)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--generation", "old"), "serves the text vectors; name another one"),
        (("--generation", "zz"), "there is no generation 'zz'"),
        (("--picture", "both.jpg"), "both.jpg: name a file that ends in .png"),
        (("--table", "table.txt"), "table.txt: name a file that ends in .csv"),
    ],
)
def test_what_cannot_be_compared_is_said(
    migrating: Migrating, clipfarm: Command, arguments: tuple[str, str], problem: str
):
    option, value = arguments

    ended = clipfarm("migrate", "compare", "text", option, migrating.old if value == "old" else value)

    assert (ended.code, ended.output) == (2, "")
    assert problem in ended.errors


def test_with_one_generation_there_is_nothing_to_compare(corpus: Corpus, clipfarm: Command):
    Migrating(corpus)

    ended = clipfarm("migrate", "compare", "text")

    assert (ended.code, ended.output) == (2, "")
    assert "the settings ask for the text vectors that serve, and none served before" in ended.errors
