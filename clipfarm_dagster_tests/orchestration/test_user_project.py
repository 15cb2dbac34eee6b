"""ClipFarm in somebody's own project: two corpora beside assets, an executor and an IO manager of theirs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.orchestration.names import BROKEN_TAG, CORPUS_TAG, CorpusNames
from clipfarm_dagster.orchestration.reconcile import reconcile
from clipfarm_dagster.orchestration.runs.broken import launch_again_at
from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs
from clipfarm_dagster.orchestration.runs.id_list import id_list, id_list_run_config, id_list_run_tags
from clipfarm_dagster.orchestration.runs.in_flight import videos_in_flight
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import from_npy
from clipfarm_dagster_tests.support.dg_project import check_defs, project_environment
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

PROJECT = Path(__file__).parent / "user_project"
NEWS, RECIPES = CorpusNames.of("news"), CorpusNames.of("recipes", "food", "recipe")


@dataclass
class Studio:
    """The project, its two corpora and its instance."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    news: Corpus
    recipes: Corpus
    folder: Path

    def tick(self, names: CorpusNames) -> list[dg.RunRequest]:
        """What the corpus's sensor requests, having seen nothing."""
        sensor = self.definitions.resolve_sensor_def(names.embedding_sensor)
        with dg.build_sensor_context(instance=self.instance, resources=self.definitions.resources) as context:
            answer = sensor(context)
        return list(answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []

    def run(self, requests: list[dg.RunRequest]) -> None:
        """Run in this process what a sensor requested."""
        for request in requests:
            job = self.definitions.resolve_job_def(request.job_name or "")
            job.execute_in_process(instance=self.instance, run_config=request.run_config, tags=request.tags)

    def materialize(self, asset: str, *, partition: str | None = None) -> subprocess.CompletedProcess[str]:
        """Materialize as Dagster does for the UI: by the implicit asset job, with the project's executor."""
        command = ["-m", "dagster", "asset", "materialize", "-m", "studio.definitions", "--select", asset]
        chosen = [] if partition is None else ["--partition", partition]
        return subprocess.run(
            [sys.executable, *command, *chosen],
            env=project_environment(PROJECT),
            capture_output=True,
            text=True,
            timeout=300,
        )

    def vector(self, corpus: Corpus, video_id: str) -> np.ndarray:
        return from_npy(corpus.store.get(corpus.keys.embedding(Stage.TEXT, video_id)).data)

    def materialized(self, names: CorpusNames) -> set[str]:
        return set(self.instance.get_materialized_partitions(names.embedding(Stage.TEXT)))


@pytest.fixture
def studio(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Studio]:
    for name in [name for name in os.environ if name.startswith("CLIPFARM_")]:
        monkeypatch.delenv(name)
    folders = {"NEWS_HOME": "news", "RECIPES_HOME": "recipes", "STUDIO_FOLDER": "made"}
    for name, folder in folders.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    for name, value in checkpoints.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(ensure_instance(tmp_path / "dagster")))
    monkeypatch.syspath_prepend(str(PROJECT))
    defs = importlib.import_module("studio.definitions").defs

    news = Corpus.open(load_settings(home=tmp_path / "news"))
    recipes = Corpus.open(load_settings(home=tmp_path / "recipes", text={"source_columns": "title"}))
    put_texts(news, "a", "b")
    put_texts(recipes, "a", "c")
    with dg.DagsterInstance.get() as instance:
        yield Studio(defs, instance, news, recipes, tmp_path / "made")


def put_texts(corpus: Corpus, *video_ids: str) -> None:
    put_metadata(corpus, [metadata_row(video_id) for video_id in video_ids])
    for video_id in video_ids:
        put_transcript(corpus, video_id, f"{video_id} of {corpus.settings.home.name}")


def ids(names: CorpusNames, requests: list[dg.RunRequest]) -> list[str]:
    """The texts that are requested, all of them by the corpus's own job."""
    assert {request.job_name for request in requests} <= {names.embedding_job(Stage.TEXT)}
    return [video_id for request in requests for video_id in id_list(names, Stage.TEXT, request.run_config)]


def test_dg_finds_nothing_wrong_with_the_project(studio: Studio) -> None:
    check_defs(PROJECT)


def test_nothing_is_defined_twice_and_everyone_has_their_own_executor(studio: Studio) -> None:
    dg.Definitions.validate_loadable(studio.definitions)
    graph = studio.definitions.resolve_asset_graph()

    assert len(graph.get_all_asset_keys()) == 2 * 17 + 2
    assert len(graph.asset_check_keys) == 2 * 3 * 8
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys()} == {
        *(
            f"{corpus}_{group}"
            for corpus in ("news", "food")
            for group in ("raw", "embeddings", "manifests", "candidates", "deployment")
        ),
        "default",
    }
    partitions = [graph.get(names.embedding(Stage.TEXT)).partitions_def for names in (NEWS, RECIPES)]
    assert partitions == [dg.DynamicPartitionsDefinition(name=name) for name in ("news__video_id", "recipe")]
    executors = {job.name: job.executor_def.name for job in studio.definitions.resolve_all_job_defs()}
    assert {executors.pop(name) for name in ("__ASSET_JOB", "news_job")} == {"studio_executor"}
    assert set(executors) == {*NEWS.jobs(), *RECIPES.jobs()}
    assert set(executors.values()) == {"in_process"}


def test_two_corpora_do_not_touch_each_other(studio: Studio) -> None:
    requests = studio.tick(NEWS)
    assert ids(NEWS, requests) == ["a", "b"]
    studio.run(requests)

    assert studio.materialized(NEWS) == {"a", "b"}
    assert studio.materialized(RECIPES) == set()
    assert set(studio.instance.get_dynamic_partitions("news__video_id")) == {"a", "b"}
    assert list(studio.instance.get_dynamic_partitions("recipe")) == []
    assert list(studio.recipes.store.list(studio.recipes.keys.embedding_folder(Stage.TEXT))["key"]) == []
    assert not (studio.recipes.settings.home / "state").exists()

    requests = studio.tick(RECIPES)
    assert ids(RECIPES, requests) == ["a", "c"]
    studio.run(requests)
    assert studio.materialized(RECIPES) == {"a", "c"}
    assert studio.materialized(NEWS) == {"a", "b"}
    assert not np.allclose(studio.vector(studio.news, "a"), studio.vector(studio.recipes, "a"))
    for corpus, names in ((studio.news, NEWS), (studio.recipes, RECIPES)):
        assert studio.tick(names) == []
        assert reconcile(corpus, studio.instance, names, Stage.TEXT).mended == 0

    # each by its own settings: recipes hash the title alone
    rows = [metadata_row(video_id, query="another") for video_id in ("a", "b", "c")]
    put_metadata(studio.news, rows[:2])
    put_metadata(studio.recipes, [rows[0], rows[2]])
    assert ids(NEWS, studio.tick(NEWS)) == ["a", "b"]
    assert studio.tick(RECIPES) == []


def test_runs_of_one_corpus_are_not_taken_for_those_of_the_other(studio: Studio) -> None:
    job = studio.definitions.resolve_job_def(NEWS.embedding_job(Stage.TEXT))
    run = studio.instance.create_run_for_job(
        job,
        run_config=id_list_run_config(NEWS, Stage.TEXT, ["a"]),
        tags=id_list_run_tags(NEWS, Stage.TEXT, ["a"]),
        status=dg.DagsterRunStatus.STARTED,
    )

    assert run.tags[CORPUS_TAG] == "news"
    assert videos_in_flight(studio.instance, NEWS).serving[Stage.TEXT] == {"a"}
    assert videos_in_flight(studio.instance, RECIPES).serving[Stage.TEXT] == set()
    assert ids(NEWS, studio.tick(NEWS)) == ["b"]
    assert ids(RECIPES, studio.tick(RECIPES)) == ["a", "c"]

    studio.instance.add_run_tags(run.run_id, {BROKEN_TAG: "ModelUnavailableError"})
    studio.instance.report_run_failed(run)
    assert launch_again_at(studio.instance, NEWS.embedding_job(Stage.TEXT)) is not None
    assert launch_again_at(studio.instance, RECIPES.embedding_job(Stage.TEXT)) is None
    assert studio.tick(NEWS) == []
    assert ids(RECIPES, studio.tick(RECIPES)) == ["a", "c"]


def test_videos_in_a_job_of_the_projects_own_are_not_requested_again(studio: Studio) -> None:
    studio.tick(NEWS)  # adds the partitions
    job = studio.definitions.resolve_job_def("news_job")
    run = studio.instance.create_run_for_job(
        job, tags={"dagster/partition": "a"}, status=dg.DagsterRunStatus.STARTED
    )

    assert run.asset_selection is None
    assert ids(NEWS, studio.tick(NEWS)) == ["b"]
    assert ids(RECIPES, studio.tick(RECIPES)) == ["a", "c"]


def test_runs_of_the_project_are_left_to_whoever_started_them(studio: Studio) -> None:
    overrides = {"run_monitoring": {"enabled": True, "start_timeout_seconds": 1}}
    with dg.instance_for_test(overrides) as instance:
        jobs = {
            job_name: instance.create_run_for_job(
                studio.definitions.resolve_job_def(job_name), status=dg.DagsterRunStatus.STARTING
            )
            for job_name in ("news_job", NEWS.checks_job, RECIPES.checks_job)
        }
        time.sleep(2)  # the database's timestamps count whole seconds

        assert fail_dead_runs(instance, NEWS) == [jobs[NEWS.checks_job].run_id]
        assert fail_dead_runs(instance, RECIPES) == [jobs[RECIPES.checks_job].run_id]


def test_assets_take_vectors_as_inputs_under_the_projects_executor(studio: Studio) -> None:
    studio.tick(NEWS)  # adds the partitions
    studio.run(studio.tick(RECIPES))

    embedded = studio.materialize("news/text_embedding", partition="a")
    assert embedded.returncode == 0, embedded.stderr
    assert "multiprocess executor" in embedded.stderr
    assert studio.materialized(NEWS) == {"a"}
    vector = studio.vector(studio.news, "a")
    taken = studio.materialize("strongest", partition="a")
    assert taken.returncode == 0, taken.stderr
    assert json.loads((studio.folder / "strongest" / "a.json").read_text()) == {
        "shape": [768],
        "dtype": "float32",
        "number": int(np.abs(vector).argmax()),
    }

    averaged = studio.materialize("centroid")
    assert averaged.returncode == 0, averaged.stderr
    made = json.loads((studio.folder / "centroid.json").read_text())
    assert made["videos"] == ["a", "c"]
    vectors = np.stack([studio.vector(studio.recipes, video_id) for video_id in made["videos"]])
    assert np.allclose(made["mean"], vectors.mean(axis=0))

    without = studio.materialize("strongest", partition="b")
    assert without.returncode != 0
    assert "no text vector of 1 videos: 'b'" in without.stderr


def test_what_a_corpus_records_is_recorded_of_its_own_assets(studio: Studio) -> None:
    studio.run(studio.tick(NEWS))
    for job_name in (NEWS.manifests_job, NEWS.checks_job):
        studio.definitions.resolve_job_def(job_name).execute_in_process(instance=studio.instance)
    implicit = studio.definitions.resolve_implicit_global_asset_job_def()
    implicit.execute_in_process(
        instance=studio.instance, asset_selection=[NEWS.raw(Stage.TEXT)], partition_key="a"
    )

    with_events = set(studio.instance.all_asset_keys())
    assert {NEWS.raw(Stage.TEXT), NEWS.embedding(Stage.TEXT), NEWS.fused} < with_events
    assert {key.path[0] for key in with_events} == {"news"}
