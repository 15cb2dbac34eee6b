"""`clipfarm search`, `duplicates`, `export`, `import` and `atlas`."""

from __future__ import annotations

import dagster as dg
import numpy as np
import pytest

from clipfarm_dagster.manifests.refresh import refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import l2_normalise
from clipfarm_dagster_tests.support.corpora import embed, embed_all, write_metadata
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from clipfarm_dagster_tests.support.stages import opened

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

IDS = [f"v{number:02d}" for number in range(12)]


def _fuse(corpus):
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(opened(corpus, ledger))
    refresh_fused(corpus, make_strategy("concat", ""))


def test_words_find_the_video_that_is_about_them(corpus, clipfarm):
    texts = {
        "cooking": ("Baking sourdough bread", "flour, water and salt become a loaf in the oven"),
        "sailing": ("Storm on the open sea", "high waves break over the deck of a sailing boat"),
        "chess": ("A grandmaster's endgame", "two rooks against a queen on the chess board"),
    }
    put_metadata(corpus, [metadata_row(i, title=t, description=d, query="q") for i, (t, d) in texts.items()])
    for video_id, (_, said) in texts.items():
        put_transcript(corpus, video_id, said)
    assert clipfarm("sync", "--stage", "text", "--json").code == 0

    for words, expected in {
        "bread recipe": "cooking",
        "ocean ship": "sailing",
        "board game": "chess",
    }.items():
        ended = clipfarm("search", words, "--top", "2", "--json")
        results = ended.json["results"]
        assert [set(result) for result in results] == [{"video_id", "title", "score", "keys"}] * 2
        assert results[0]["video_id"] == expected
        assert results[0]["title"] == texts[expected][0]
        assert results[0]["score"] > results[1]["score"] + 0.1
        assert results[0]["keys"] == [corpus.keys.embedding(Stage.TEXT, expected)]
    shown = clipfarm("search", "bread recipe", "-k", "1")
    assert "Baking sourdough bread" in shown.output
    assert "sailing" not in shown.output


@pytest.mark.parametrize("among", [("--modality", "audio"), ("--strategy", "concat")])
def test_a_video_finds_those_like_it(corpus, clipfarm, among):
    made = embed_all(corpus, IDS)
    write_metadata(corpus, IDS)
    _fuse(corpus)
    vectors = {
        i: made[Stage.AUDIO][i] if "audio" in among else np.concatenate([made[s][i] for s in Stage])
        for i in IDS
    }

    found = clipfarm("search", "--like", "v03", *among, "--top", "11", "--json").json["results"]

    expected = sorted(set(IDS) - {"v03"}, key=lambda i: -float(vectors[i] @ vectors["v03"]))
    assert [result["video_id"] for result in found] == expected
    assert found[0]["title"] == f"Title of {expected[0]}"
    assert len(found[0]["keys"]) == (1 if "audio" in among else 3)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "either words or --like"),
        (("words", "--like", "v00"), "either words or --like"),
        (("words", "--modality", "audio"), "with --like"),
        (("--like", "v00", "--modality", "audio", "--strategy", "concat"), "not both"),
        (("--like", "v00", "--strategy", "concat"), "materialize the partition 'concat'"),
        (("--like", "v00", "--strategy", "magic"), "no fusion strategy 'magic'"),
        (("--like", "nobody"), "no vector for the video 'nobody'"),
    ],
)
def test_a_search_that_cannot_be_done_says_why(corpus, clipfarm, arguments, problem):
    embed(corpus, Stage.TEXT, IDS)

    ended = clipfarm("search", *arguments)

    assert (ended.code, ended.output) == (2, "")
    assert problem in ended.errors


def test_a_narrow_terminal_shows_whole_ids(corpus, clipfarm, monkeypatch):
    ids = ["a-" + "x" * 40, "b-" + "y" * 90]
    embed(corpus, Stage.TEXT, ids)
    put_metadata(corpus, [metadata_row(video_id, title="many words " * 10) for video_id in ids])
    monkeypatch.setenv("COLUMNS", "80")

    first = clipfarm("search", "--like", ids[1]).output
    second = clipfarm("search", "--like", ids[0]).output

    assert ids[0] in first
    assert max(map(len, first.splitlines())) <= 80
    assert ids[1] in second


def test_a_search_among_nothing_says_so(corpus, clipfarm):
    nothing = clipfarm("search", "rain")
    assert (nothing.code, nothing.output) == (2, "")
    assert "there are no text vectors" in nothing.errors

    embed(corpus, Stage.TEXT, ["v00"])
    put_metadata(corpus, [metadata_row("v00")])
    alone = clipfarm("search", "--like", "v00")
    assert (alone.code, alone.output.split(":")[0]) == (0, "Nothing to compare with")


@pytest.mark.parametrize("command", [("search", "--like", "v00"), ("duplicates",)])
def test_a_damaged_fused_manifest_is_named(corpus, clipfarm, command):
    embed_all(corpus, IDS)
    write_metadata(corpus, IDS)
    _fuse(corpus)
    key = corpus.keys.fused_manifest("concat")
    corpus.store.put(key, corpus.store.get(key).data[:-100])

    ended = clipfarm(*command, "--strategy", "concat")

    assert (ended.code, ended.output) == (2, "")
    assert f"{key!r} cannot be read" in ended.errors
    assert "delete it there and materialize it anew" in ended.errors


def test_duplicates_are_listed_with_their_titles(corpus, clipfarm):
    embed(corpus, Stage.VIDEO, IDS, dimension=768)
    key = corpus.keys.embedding(Stage.VIDEO, "v01")
    write_metadata(corpus, [*IDS, "copy"])
    out = corpus.settings.home / "one.npz"
    original = corpus.store.get(key).data
    vector = np.frombuffer(original, dtype=np.float32, offset=len(original) - 4 * 768)
    np.savez(out, video_id=np.array(["copy"]), embedding=vector[None])
    assert clipfarm("import", str(out), "--modality", "video", "--configured").code == 0

    ended = clipfarm("duplicates", "--modality", "video", "--json")

    [pair] = ended.json["pairs"]
    assert pair["video_ids"] == ["copy", "v01"]
    assert pair["titles"] == ["Title of copy", "Title of v01"]
    assert pair["score"] == pytest.approx(1, abs=1e-5)
    assert ended.json["count"] == 1
    assert "1 pairs" in clipfarm("duplicates", "--modality", "video").output


def test_vectors_go_out_and_come_in(corpus, clipfarm, tmp_path):
    embed(corpus, Stage.AUDIO, IDS, dimension=768)
    write_metadata(corpus, IDS)
    out = tmp_path / "audio.parquet"

    ended = clipfarm("export", "--modality", "audio", "--out", str(out), "--json")
    assert (ended.code, ended.json["vectors"], ended.json["dimension"]) == (0, 12, 768)
    with corpus.ledger(Stage.AUDIO) as ledger:
        ledger.mark_overwriting(IDS)

    ended = clipfarm("import", str(out), "--modality", "audio", "--json")
    assert (ended.code, ended.json["imported"], ended.json["configured"]) == (0, 12, True)
    with dg.DagsterInstance.get() as instance:
        key = DEFAULT_NAMES.embedding(Stage.AUDIO)
        assert instance.get_materialized_partitions(key) == set(IDS)
    assert clipfarm("import", str(out), "--modality", "audio", "--json").json["kept"] == 12
    assert "12 videos keep their vector" in clipfarm("import", str(out), "--modality", "audio").output
    again = clipfarm("import", str(out), "--modality", "audio", "--replace", "--json").json
    assert (again["imported"], again["kept"]) == (12, 0)
    wrong = clipfarm("import", str(out), "--modality", "video")
    assert (wrong.code, "holds audio vectors" in wrong.errors) == (2, True)


def test_lost_vectors_make_an_export_end_with_one(corpus, clipfarm, tmp_path):
    embed(corpus, Stage.AUDIO, IDS)
    corpus.store.delete(corpus.keys.embedding(Stage.AUDIO, "v05"))

    ended = clipfarm("export", "--modality", "audio", "--out", str(tmp_path / "a.npz"), "--json")

    assert (ended.code, ended.json["vectors"]) == (1, 11)
    assert [bad["video_id"] for bad in ended.json["bad"]] == ["v05"]


def test_how_imported_vectors_were_made_is_named(corpus, clipfarm, tmp_path):
    write_metadata(corpus, IDS)
    path = tmp_path / "batch.npz"
    vectors = l2_normalise(np.random.default_rng(0).standard_normal((12, 8)))
    np.savez(path, video_id=np.array(IDS), embedding=vectors)
    command = ["import", str(path), "--modality", "text", "--json"]
    assert "does not say how" in clipfarm(*command).errors
    assert "--preprocess NAME@VERSION" in clipfarm(*command, "--model", "a/b", "--revision", "c").errors
    named = ["--model", "a/b", "--revision", "c" * 40, "--preprocess", "ours@2", "--pooling", "mean"]
    assert "not a JSON object" in clipfarm(*command, *named, "--preprocess-params", "[]").errors

    ended = clipfarm(*command, *named)

    assert (ended.code, ended.json["imported"], ended.json["configured"]) == (0, 12, False)
    with corpus.ledger(Stage.TEXT) as ledger:
        contract = ledger.contract(ended.json["contract"])
    assert (contract.model_name, contract.preprocess_name, contract.preprocess_version) == (
        "a/b",
        "ours",
        "2",
    )


def test_a_viewer_that_is_not_installed_is_named(corpus, clipfarm, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    ended = clipfarm("atlas")

    assert ended.code == 2
    assert "pip install '.[atlas]'` in ClipFarm's repository" in ended.errors
