"""Dagster is told what the ledgers know, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import dagster as dg
import pyarrow as pa
import pytest

from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.reconcile import Reconciled, reconcile, unreported_successes
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

KEY = DEFAULT_NAMES.embedding(Stage.TEXT)


def test_unreported_successes_are_successes_that_dagster_does_not_know_in_their_version():
    rows = pa.table(
        {
            "video_id": ["told", "new", "changed", "other-contract", "failed"],
            "status": ["success", "success", "success", "success", "fail"],
            "source_hash": ["s1", "s2", "s3", "s4", "s5"],
            "contract_id": ["c", "c", "c", "d", "c"],
        }
    )
    versions = {"told": "s1.c", "changed": "s0.c", "other-contract": "s4.c", "gone": "s9.c"}

    assert unreported_successes(rows, versions) == ["changed", "new", "other-contract"]


@pytest.fixture
def synced(corpus: Corpus, instance: dg.DagsterInstance) -> Corpus:
    """Four embedded transcripts and a broken one."""
    names = [f"clip-{n}" for n in range(4)]
    put_metadata(corpus, [metadata_row(name) for name in [*names, "broken"]])
    for name in names:
        put_transcript(corpus, name, f"what is said in {name}")
    corpus.store.put(corpus.keys.raw(Stage.TEXT, "broken"), json.dumps({"words": 1}).encode())
    sync_corpus(corpus, instance, [Stage.TEXT], quiet=True)
    return corpus


def test_after_a_sync_there_is_nothing_to_tell(synced: Corpus, instance: dg.DagsterInstance):
    assert reconcile(synced, instance, DEFAULT_NAMES, Stage.TEXT) == Reconciled(
        successes=4, mended=0, unlabelled=0, unknown=0
    )


def test_what_a_crash_kept_from_dagster_is_told(synced: Corpus, instance: dg.DagsterInstance):
    before = materialized_versions(instance, KEY)
    instance.wipe_assets([KEY])
    assert materialized_versions(instance, KEY) == {}

    found = reconcile(synced, instance, DEFAULT_NAMES, Stage.TEXT)

    assert found == Reconciled(successes=4, mended=4, unlabelled=0, unknown=0)
    assert materialized_versions(instance, KEY) == before
    assert "broken" not in before
    event = instance.get_latest_materialization_event(KEY)
    assert event is not None
    assert event.asset_materialization is not None
    assert {"source_hash", "contract", "dimension"} <= event.asset_materialization.metadata.keys()
    assert reconcile(synced, instance, DEFAULT_NAMES, Stage.TEXT).mended == 0


def test_an_older_version_is_brought_up_to_date(synced: Corpus, instance: dg.DagsterInstance):
    with synced.ledger(Stage.TEXT) as ledger:
        row = ledger.rows(["clip-2"])["clip-2"]
        ledger.record([replace(row, source_hash="newer", vector_source_hash="newer")])

    assert reconcile(synced, instance, DEFAULT_NAMES, Stage.TEXT).mended == 1
    assert materialized_versions(instance, KEY)["clip-2"].startswith("newer.")


def test_a_partition_that_the_ledger_does_not_know_is_left_alone(
    synced: Corpus, instance: dg.DagsterInstance
):
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="of-another-ledger"))

    found = reconcile(synced, instance, DEFAULT_NAMES, Stage.TEXT)

    assert found.mended == 0
    with synced.ledger(Stage.TEXT) as ledger:
        assert ledger.counts() == {Status.SUCCESS: 4, Status.INVALID_RAW_OBJECT: 1}


def test_a_vector_of_an_unknown_contract_is_not_told_under_another(
    corpus: Corpus, instance: dg.DagsterInstance
):
    original = LedgerRow(video_id="a", status=Status.SUCCESS, source_hash="s", artifact_key="k")
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([original, replace(original, video_id="b", contract_id="of-no-one")])

    found = reconcile(corpus, instance, DEFAULT_NAMES, Stage.TEXT)

    assert found == Reconciled(successes=2, mended=0, unlabelled=2, unknown=0)
    assert materialized_versions(instance, KEY) == {}


def test_a_success_that_fails_meanwhile_is_not_told(
    corpus: Corpus, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    contract = corpus.contract(Stage.TEXT)
    row = LedgerRow(video_id="a", status=Status.SUCCESS, source_hash="s", contract_id=contract.id)
    with corpus.ledger(Stage.TEXT) as ledger:
        ledger.record([row, replace(row, video_id="b")])

    def run_of_another_process(ledger: Ledger, names: Sequence[str]) -> pa.Table:
        table = columns(ledger, names)
        ledger.record([replace(row, status=Status.FAIL, source_hash="newer")])
        return table

    columns = Ledger.columns
    monkeypatch.setattr(Ledger, "columns", run_of_another_process)

    assert reconcile(corpus, instance, DEFAULT_NAMES, Stage.TEXT).mended == 1
    assert materialized_versions(instance, KEY) == {"b": f"s.{contract.id}"}
