"""`clipfarm migrate`: status, cut-over, roll-back and drop, over two real generations."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.cli import sync
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.serving import ServingRecord
from clipfarm_dagster.manifests.refresh import stored_manifest
from clipfarm_dagster.orchestration import in_process
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.killing import Killed, killing
from clipfarm_dagster_tests.support.migrating import TEXT, TEXTS, Migrating
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

Command = Callable[..., Ended]


@pytest.fixture
def migrating(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Migrating:
    """Half of the candidate is filled."""
    migrating = Migrating(corpus)
    migrating.embed(migrating.new, list(TEXTS)[:4])
    monkeypatch.setenv("CLIPFARM_TEXT_DTYPE", "bfloat16")
    return migrating


@pytest.fixture
def whole(migrating: Migrating) -> Migrating:
    """The candidate has all that is served."""
    migrating.embed(migrating.new, list(TEXTS))
    return migrating


def told(clipfarm: Command) -> Any:
    ended = clipfarm("migrate", "status", "--stage", "text", "--json")
    assert ended.code == 0, ended.errors
    [(stage, answer)] = ended.json["stages"].items()
    assert stage == "text"
    return answer


def served(migrating: Migrating) -> str:
    """Contract id of what readers find."""
    return stored_manifest(migrating.corpus, TEXT)[0].contract.id


def answered(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Let a person answer at a terminal."""
    terminal = io.StringIO(f"{answer}\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)


def test_a_newcomer_sees_one_generation(corpus: Corpus, clipfarm: Command):
    Migrating(corpus)

    answer = told(clipfarm)

    assert answer["candidate"] is None
    assert answer["others"] == []
    assert answer["wanted_problem"] is answer["serving"]["model_problem"] is None
    ended = clipfarm("migrate", "status", "--stage", "text")
    assert ended.code == 0
    assert ended.output.count("serves") == 1


def test_status_says_what_serves_and_how_far_the_candidate_is(migrating: Migrating, clipfarm: Command):
    answer = told(clipfarm)

    contract = migrating.corpus.contract(TEXT)
    serving = answer["serving"]
    assert serving["contract_id"] == migrating.old == contract.id
    assert serving["since"] == "2026-01-31T08:00:00.000000Z"
    assert (serving["model_name"], serving["model_revision"]) == (
        contract.model_name,
        contract.model_revision,
    )
    assert serving["preprocess"] == f"{contract.preprocess_name}@{contract.preprocess_version}"
    assert (serving["vectors"], serving["objects"], serving["settled"]) == (8, 0, True)
    assert serving["before"] is serving["following"] is serving["rolled_back"] is None
    candidate = answer["candidate"]
    assert (candidate["contract_id"], candidate["dtype"]) == (migrating.new, "bfloat16")
    assert (candidate["vectors"], candidate["objects"]) == (4, 4)
    folder = migrating.corpus.keys.generation_folder(TEXT, migrating.new)
    assert candidate["bytes"] == sum(migrating.corpus.store.list(folder)["size"].to_pylist())
    assert candidate["coverage"] == {
        "served": 8, "done": 4, "outdated": 0, "to_do": 4, "waiting": 0, "failed": 0,
        "missing_raw_object": 0, "orphaned": 0,
    }  # fmt: skip
    assert (candidate["ready"], candidate["held"]) == (False, [])
    assert candidate["missing"] == ["4 of 8 served videos are still to be embedded"]
    shown = clipfarm("migrate", "status").output
    assert f"the candidate {migrating.new} has 4 of 8 vectors that serve; 4 to do" in shown
    assert "before it serves: 4 of 8 served videos are still to be embedded" in shown


def test_status_fits_a_narrow_terminal(
    migrating: Migrating, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    ended = clipfarm("migrate", "status", "--stage", "text")

    lines = ended.output.splitlines()
    for generation in (migrating.old, migrating.new):
        assert len([line for line in lines if line.startswith("text ") and generation in line]) == 1
    assert f"text: {migrating.new} differs from what serves: dtype bfloat16 in place of float32" in lines


def test_status_says_if_only_a_person_lets_it_serve(
    whole: Migrating, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    assert told(clipfarm)["candidate"]["ready"]
    monkeypatch.setenv("CLIPFARM_CUT_OVER", "manual")

    candidate = told(clipfarm)["candidate"]

    assert (candidate["ready"], candidate["missing"]) == (False, [])
    assert candidate["held"] == ["CLIPFARM_CUT_OVER is manual"]


def test_status_says_that_the_serving_model_cannot_be_had_any_more(
    corpus: Corpus,
    clipfarm: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    checkpoints: dict[str, str],
):
    mine = tmp_path / "my-model"
    mine.mkdir()
    for file in Path(checkpoints["CLIPFARM_TEXT_MODEL"]).rglob("*"):
        if file.is_file():
            link = mine / file.relative_to(checkpoints["CLIPFARM_TEXT_MODEL"])
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    (mine / "config.json").unlink()
    config = (Path(checkpoints["CLIPFARM_TEXT_MODEL"]) / "config.json").read_text()
    (mine / "config.json").write_text(f"{config}\n")
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", str(mine))
    migrating = Migrating(Corpus.open())
    shutil.rmtree(mine)
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", checkpoints["CLIPFARM_TEXT_MODEL"])

    ended = clipfarm("migrate", "status", "--stage", "text", "--json")

    assert ended.code == 1
    answer = ended.json["stages"]["text"]
    assert (answer["serving"]["contract_id"], answer["serving"]["model_name"]) == (migrating.old, "my-model")
    assert f"{mine} no longer has it" in answer["serving"]["model_problem"]
    assert answer["candidate"]["coverage"]["to_do"] == 8
    assert "text: new and changed videos wait" in clipfarm("migrate", "status").output
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", str(mine))
    ended = clipfarm("migrate", "status", "--stage", "text", "--json")
    assert ended.code == 1
    assert str(mine) in ended.json["stages"]["text"]["wanted_problem"]


def test_what_lacks_videos_serves_only_if_a_person_accepts_that(migrating: Migrating, clipfarm: Command):
    ended = clipfarm("migrate", "cut-over", "text")

    assert (ended.code, ended.output) == (2, "")
    assert "4 of 8 served videos are still to be embedded. --allow-partial lets it serve" in ended.errors
    assert served(migrating) == told(clipfarm)["serving"]["contract_id"] == migrating.old

    ended = clipfarm("migrate", "cut-over", "text", "--allow-partial", "--json")

    assert ended.code == 0
    assert ended.json["contract_id"] == served(migrating) == migrating.new
    assert (ended.json["before"], ended.json["changed"]) == (migrating.old, True)
    assert ended.json["coverage"]["to_do"] == 4


def test_another_generation_serves_and_the_way_back_and_again(
    whole: Migrating, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("clipfarm_dagster.modalities.registry.load_encoder", None)  # no model is called
    ended = clipfarm("migrate", "cut-over", "text", whole.new[:5])
    assert ended.code == 0, ended.errors
    assert f"Generation {whole.new} serves the text vectors now" in ended.output
    assert "clipfarm migrate roll-back text" in ended.output
    assert served(whole) == whole.new
    answer = told(clipfarm)
    assert (answer["candidate"], answer["serving"]["before"]) == (None, whole.old)
    assert [(o["contract_id"], o["vectors"], o["objects"]) for o in answer["others"]] == [(whole.old, 8, 8)]
    again = clipfarm("migrate", "cut-over", "text", "--json")
    assert again.json == {"stage": "text", "contract_id": whole.new, "before": whole.old, "changed": False}

    ended = clipfarm("migrate", "roll-back", "text", "--json")

    assert ended.code == 0, ended.errors
    assert ended.json == {"stage": "text", "contract_id": whole.old, "rolled_back": whole.new, "missing": 0}
    assert served(whole) == whole.old
    answer = told(clipfarm)
    assert answer["serving"]["rolled_back"] == whole.new
    assert answer["candidate"]["held"] == ["a person went back from it"]
    assert f"a person went back from {whole.new}" in clipfarm("migrate", "status").output

    assert clipfarm("migrate", "cut-over", "text").code == 0
    assert told(clipfarm)["serving"]["rolled_back"] is None
    assert served(whole) == whole.new


def test_going_back_says_which_videos_came_since(whole: Migrating, clipfarm: Command):
    assert clipfarm("migrate", "cut-over", "text").code == 0
    whole.put({**TEXTS, "later": "A video that came later"})
    whole.embed(whole.new, ["later"])

    ended = clipfarm("migrate", "roll-back", "text")

    assert ended.code == 0, ended.errors
    assert "It lacks 1 videos that were served; the next sync embeds them" in ended.output
    assert served(whole) == whole.old


def test_a_cut_over_that_is_under_way_is_shown_and_ended(whole: Migrating, clipfarm: Command):
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, 1, (ObjectStore, "copy_each"))
        with pytest.raises(Killed):
            clipfarm("migrate", "cut-over", "text")
    assert told(clipfarm)["serving"]["following"] == whole.new
    assert f"a cut-over to {whole.new} is under way" in clipfarm("migrate", "status").output
    ended = clipfarm("migrate", "drop", "text", whole.new, "--yes")
    assert (ended.code, "a cut-over of the text vectors is under way" in ended.errors) == (2, True)

    ended = clipfarm("migrate", "roll-back", "text", "--json")

    assert ended.code == 0, ended.errors
    assert ended.json == {"stage": "text", "contract_id": whole.old, "rolled_back": whole.new, "missing": 0}
    answer = told(clipfarm)["serving"]
    assert (answer["following"], answer["settled"], answer["objects"]) == (None, True, 0)
    assert served(whole) == whole.old


def test_sync_fills_the_candidate_and_a_person_lets_it_serve(
    migrating: Migrating, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CLIPFARM_CUT_OVER", "manual")
    ended = clipfarm("sync", "--stage", "text", "--json")
    assert ended.code == 0, ended.errors
    assert ended.json["stages"]["text"]["model_calls"] == 0
    assert ended.json["candidates"]["text"]["model_calls"] == 4
    candidate = told(clipfarm)["candidate"]
    assert (candidate["coverage"]["done"], candidate["missing"]) == (8, [])
    assert candidate["held"] == ["CLIPFARM_CUT_OVER is manual"]
    canary = clipfarm("migrate", "compare", "text", "--json").json["new"]["canary"]
    assert canary["agreeing_environments"] == 1

    for command in ("cut-over", "roll-back"):
        assert clipfarm("migrate", command, "text").code == 0
        ended = clipfarm("sync", "--stage", "text", "--json")
        assert ended.code == 0, ended.errors
        assert ended.json["stages"]["text"]["model_calls"] == 0

    assert served(migrating) == migrating.old
    assert told(clipfarm)["candidate"]["held"] == [
        "CLIPFARM_CUT_OVER is manual",
        "a person went back from it",
    ]


def test_dagster_is_told_of_what_serves(whole: Migrating, clipfarm: Command):
    assert clipfarm("migrate", "cut-over", "text").code == 0

    found = clipfarm("reconcile", "--json").json["stages"]["text"]
    assert (found["successes"], found["mended"]) == (8, 0)


def test_where_nothing_served_before_there_is_no_way_back(migrating: Migrating, clipfarm: Command):
    ended = clipfarm("migrate", "roll-back", "text")

    assert (ended.code, ended.output) == (2, "")
    assert "no generation of text vectors served before" in ended.errors


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("old", "serves the text vectors"),
        ("new", "the settings ask for generation"),
        ("zz", "no generation 'zz'"),
    ],
)
def test_what_is_needed_is_not_dropped(migrating: Migrating, clipfarm: Command, name: str, problem: str):
    before = migrating.corpus.store.list()

    ended = clipfarm("migrate", "drop", "text", getattr(migrating, name, name), "--yes")

    assert (ended.code, ended.output) == (2, "")
    assert problem in ended.errors
    assert migrating.corpus.store.list() == before


def test_drop_asks_and_says_that_there_is_no_way_back(
    whole: Migrating, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    assert clipfarm("migrate", "cut-over", "text").code == 0
    for arguments in (["--json"], []):  # nobody is there to ask
        ended = clipfarm("migrate", "drop", "text", whole.old, *arguments)
        assert (ended.code, ended.output) == (2, "")
        assert "give --yes" in ended.errors
    answered(monkeypatch, "n")
    ended = clipfarm("migrate", "drop", "text", whole.old)
    assert ended.code == 2
    assert "This removes 8 text vectors (" in ended.output
    assert "It served before: after this there is no way back to it" in ended.output
    assert "nothing was removed" in ended.errors
    assert told(clipfarm)["others"][0]["objects"] == 8

    answered(monkeypatch, "y")
    ended = clipfarm("migrate", "drop", "text", whole.old[:6])

    assert ended.code == 0, ended.errors
    assert "is dropped: 8 vectors" in ended.output
    assert told(clipfarm)["others"] == []
    assert whole.corpus.store.list(whole.corpus.keys.generations_folder(TEXT)).num_rows == 0
    ended = clipfarm("migrate", "roll-back", "text")
    assert ended.code == 2
    assert "or it was dropped" in ended.errors
    assert served(whole) == whole.new


@pytest.mark.parametrize("at", [1, 3])
def test_a_drop_that_was_killed_is_finished_by_the_next(
    whole: Migrating, clipfarm: Command, at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert clipfarm("migrate", "cut-over", "text").code == 0
    with pytest.MonkeyPatch.context() as patch:
        killing(
            patch,
            at,
            (ServingRecord, "change"),
            (Ledger, "drop"),
            (Ledger, "push"),
            (ObjectStore, "delete_each"),
        )
        with pytest.raises(Killed):
            clipfarm("migrate", "drop", "text", whole.old, "--yes")
    others = [(other["vectors"], other["objects"]) for other in told(clipfarm)["others"]]
    assert others == [(8 if at == 1 else 0, 8)]  # its rows count no longer once it says that it is dropped
    assert served(whole) == whole.new
    monkeypatch.setenv("CLIPFARM_HOME", str(tmp_path / "another machine"))

    ended = clipfarm("migrate", "drop", "text", whole.old, "--yes", "--json")

    assert ended.code == 0, ended.errors
    assert ended.json["vectors"] == 8
    assert ended.json["was_before"] == (at == 1)
    assert told(clipfarm)["others"] == []
    assert whole.corpus.store.list(whole.corpus.keys.generations_folder(TEXT)).num_rows == 0
    assert clipfarm("migrate", "drop", "text", whole.old, "--yes", "--json").json["vectors"] == 0
    assert served(whole) == whole.new


def test_sync_embeds_what_a_cut_over_found_lost_and_finishes_it(
    whole: Migrating, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0)
    whole.corpus.store.delete(whole.corpus.keys.generation(TEXT, whole.new, "boat"))
    ended = clipfarm("migrate", "cut-over", "text")
    assert (ended.code, "boat" in ended.errors) == (2, True)

    ended = clipfarm("sync", "--stage", "text", "--json")

    assert ended.code == 0, ended.errors
    assert ended.json["stages"]["text"]["model_calls"] == 1
    assert told(clipfarm)["serving"]["settled"]
    assert served(whole) == whole.new
    assert stored_manifest(whole.corpus, TEXT)[0].table.num_rows == len(TEXTS)


def test_new_videos_do_not_wait_until_a_candidate_is_filled(
    migrating: Migrating, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "2")
    monkeypatch.setattr(sync, "_LOOK_AGAIN_AFTER", 0)
    run, runs = in_process.run_in_process, []

    def run_and_add(job: Any, instance: Any, config: Any, tags: Any) -> Any:
        runs.append(job.name)
        result = run(job, instance, config, tags)
        if len(runs) == 1:
            put_metadata(
                migrating.corpus, [metadata_row(i, title=TEXTS.get(i, "")) for i in [*TEXTS, "kite"]]
            )
            put_transcript(migrating.corpus, "kite", "Flying a kite on a windy beach")
        return result

    monkeypatch.setattr(sync, "run_in_process", run_and_add)

    ended = clipfarm("sync", "--stage", "text", "--json")

    assert ended.code == 0, ended.errors
    candidate, serving = (DEFAULT_NAMES.candidate_job(TEXT), DEFAULT_NAMES.embedding_job(TEXT))
    assert runs[:3] == [candidate, serving, candidate]
    assert ended.json["stages"]["text"]["model_calls"] == 1
