"""Each asset check, green over a corpus that is whole and red over one that is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from clipfarm_dagster.canary.baseline import Baseline
from clipfarm_dagster.canary.environment import Environment, current_environment
from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.maintenance.audit import Audit
from clipfarm_dagster.orchestration.checks import AGREES_WITH_DAGSTER, CANARY, OBJECTS_PRESENT, find_objects
from clipfarm_dagster.orchestration.names import CONTRACT_TAG, DEFAULT_NAMES, ENVIRONMENT_TAG
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.corpora import embed_all, move_aside, open_corpus
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript, wav

NAMES = {*(str(name) for name in Audit), OBJECTS_PRESENT, AGREES_WITH_DAGSTER, CANARY}


@pytest.fixture
def store(tmp_path: Any) -> ObjectStore:
    """A folder: what the checks ask of a store is tested over both kinds elsewhere."""
    return ObjectStore.open(str(tmp_path / "store"))


@pytest.fixture
def whole(corpus: Corpus, instance: dg.DagsterInstance) -> Corpus:
    """A corpus of three videos whose audio and text are embedded."""
    put_metadata(corpus, [metadata_row(f"v{i}") for i in range(3)])
    for i in range(3):
        put_transcript(corpus, f"v{i}", f"said in {i}")
        corpus.store.put(corpus.keys.raw(Stage.AUDIO, f"v{i}"), wav(0.1, pitch=300 + 100 * i))
    sync_corpus(corpus, instance, [Stage.AUDIO, Stage.TEXT], quiet=True)
    return corpus


def run_checks(instance: dg.DagsterInstance) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    job = defs.resolve_job_def("checks_job")
    result = job.execute_in_process(instance=instance)
    assert result.success
    return {(e.asset_key.to_user_string(), e.check_name): e for e in result.get_asset_check_evaluations()}


def change_row(corpus: Corpus, stage: Stage, video_id: str, **changes: Any) -> LedgerRow:
    with corpus.ledger(stage) as ledger:
        row = replace(ledger.rows([video_id])[video_id], **changes)
        ledger.record([row])
    return row


def red(evaluations: dict[tuple[str, str], dg.AssetCheckEvaluation]) -> set[tuple[str, str]]:
    return {key for key, evaluation in evaluations.items() if not evaluation.passed}


def test_all_is_green_over_a_corpus_that_is_whole(whole: Corpus, instance: dg.DagsterInstance) -> None:
    evaluations = run_checks(instance)
    assert evaluations.keys() == {(f"{stage}_embedding", name) for stage in Stage for name in NAMES}
    assert red(evaluations) == set()
    audio = evaluations["audio_embedding", str(Audit.FINITE)]
    assert audio.metadata["successes"].value == 3


def test_everything_that_is_wrong_is_found_and_named(whole: Corpus, instance: dg.DagsterInstance) -> None:
    twin = change_row(whole, Stage.AUDIO, "v0")
    change_row(whole, Stage.AUDIO, "v1", artifact_sha256=twin.artifact_sha256, source_hash="another")
    change_row(whole, Stage.AUDIO, "v2", vector_norm=1.5, embedding_dim=3, vector_contract_id="older")
    with whole.ledger(Stage.AUDIO) as ledger:
        ledger.record([replace(twin, video_id="v9", vector_norm=None, artifact_sha256="other")])
    whole.store.delete(whole.keys.embedding(Stage.AUDIO, "v2"))
    contract = whole.contract(Stage.AUDIO)
    key = whole.keys.canary_baseline(Stage.AUDIO, contract.id)
    baseline = Baseline.from_npz(whole.store.get(key).data)
    whole.store.put(key, replace(baseline, weights_sha256="of another model").to_npz())

    evaluations = run_checks(instance)

    # one row alone of a contract has no usual dimension to differ from
    expected = NAMES - {str(Audit.DIMENSION)}
    assert red(evaluations) == {("audio_embedding", name) for name in expected}
    found = {name: evaluations["audio_embedding", name] for name in expected}
    warnings = {name for name in expected if found[name].severity == dg.AssetCheckSeverity.WARN}
    assert warnings == {str(Audit.DISTINCT_VECTORS), AGREES_WITH_DAGSTER}
    examples = {
        name: str(evaluation.metadata["examples"].value)
        for name, evaluation in found.items()
        if name != CANARY
    }
    assert "v2" in examples[Audit.UNIT_NORM]
    assert "v9" in examples[Audit.FINITE]
    assert "1 under older" in examples[Audit.ONE_CONTRACT]
    assert "v0, v1" in examples[Audit.DISTINCT_VECTORS]
    assert "audio/v2.npy" in examples[OBJECTS_PRESENT]
    assert "audio/v9.npy" in examples[OBJECTS_PRESENT]
    assert {"v1", "v9"} <= set(examples[AGREES_WITH_DAGSTER].replace("`", "").split()) - {"v0"}
    assert "moved at the step 'model'" in (found[CANARY].description or "")


def test_a_vector_of_another_dimension_is_found(whole: Corpus, instance: dg.DagsterInstance) -> None:
    change_row(whole, Stage.TEXT, "v1", embedding_dim=384)
    assert red(run_checks(instance)) == {("text_embedding", str(Audit.DIMENSION))}


def test_an_instance_that_knows_nothing_is_a_warning(whole: Corpus) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        evaluations = run_checks(instance)
    assert red(evaluations) == {
        ("audio_embedding", AGREES_WITH_DAGSTER),
        ("text_embedding", AGREES_WITH_DAGSTER),
    }
    assert evaluations["text_embedding", AGREES_WITH_DAGSTER].metadata["not_materialized"].value == 3


def test_objects_are_looked_for_one_by_one(whole: Corpus) -> None:
    finding = find_objects(whole, Stage.TEXT, ["v0", "v8", "v1"])
    assert (finding.bad, finding.more) == (1, {"looked_for": 3})
    assert finding.examples[0].endswith("embeddings/text/v8.npy")


def test_objects_are_looked_for_where_they_lie(tmp_path: Any):
    """While a cut-over is under way, that is elsewhere than usual."""
    corpus = open_corpus(tmp_path)
    embed_all(corpus, ["v0", "v1"])
    move_aside(corpus)
    corpus.store.delete(corpus.keys.embedding(Stage.TEXT, "v0"))

    assert find_objects(corpus, Stage.TEXT, ["v0", "v1"]).bad == 0


# the canary in runs that embed


def test_a_run_says_under_which_contract_and_environment_it_embedded(
    whole: Corpus, instance: dg.DagsterInstance
) -> None:
    contract = whole.contract(Stage.TEXT)
    (run,) = instance.get_runs(dg.RunsFilter(tags={CONTRACT_TAG: contract.id}))
    environment = current_environment("cpu")
    assert run.tags[ENVIRONMENT_TAG] == environment.id
    key = whole.keys.canary_agreement(Stage.TEXT, contract.id, environment.id)
    assert environment.id in key
    assert b'"torch"' in whole.store.get(key).data


def test_a_run_whose_canary_moved_stops_and_writes_nothing(
    whole: Corpus, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = whole.contract(Stage.TEXT)
    key = whole.keys.canary_baseline(Stage.TEXT, contract.id)
    baseline = Baseline.from_npz(whole.store.get(key).data)
    older: Environment = replace(baseline.environment, libraries={"torch": "1.0"})
    vector = -baseline.trace.vector
    moved = replace(baseline, environment=older, trace=replace(baseline.trace, vector=vector))
    whole.store.put(key, moved.to_npz())
    put_transcript(whole, "v1", "something else is said")
    before = whole.store.get(whole.keys.embedding(Stage.TEXT, "v1")).info.etag

    with pytest.raises(ClipFarmError, match=r"canary moved at the step 'hardware'.*torch 1\.0 →"):
        sync_corpus(whole, instance, [Stage.TEXT], quiet=True)

    assert whole.store.get(whole.keys.embedding(Stage.TEXT, "v1")).info.etag == before
    with whole.ledger(Stage.TEXT) as ledger:
        row = ledger.rows(["v1"])["v1"]
        assert (row.status, row.vector_contract_id) == (Status.SUCCESS, contract.id)


def test_materializing_one_partition_runs_the_checks_and_skips_none(
    whole: Corpus, instance: dg.DagsterInstance
) -> None:
    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance, partition_key="v1", asset_selection=[DEFAULT_NAMES.embedding(Stage.TEXT)]
    )
    assert result.success
    wanted = dg.AssetRecordsFilter(DEFAULT_NAMES.embedding(Stage.TEXT), asset_partitions=["v1"])
    assert instance.fetch_materializations(wanted, limit=1).records[0].run_id == result.run_id
    evaluations = result.get_asset_check_evaluations()
    assert {evaluation.check_name for evaluation in evaluations} == NAMES
    assert all(evaluation.passed for evaluation in evaluations)
