"""The page that tells how a corpus is deployed, without a secret."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.stages import Stage


def shown(instance: dg.DagsterInstance, **arguments: Any) -> dict[str, Any]:
    """The metadata of the asset, materialized now."""
    job = build_definitions(**arguments).resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance, asset_selection=[DEFAULT_NAMES.deployment]).success
    [record] = instance.fetch_materializations(DEFAULT_NAMES.deployment, limit=1).records
    assert record.asset_materialization is not None
    return dict(record.asset_materialization.metadata)


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_settings_store_and_contracts_are_shown_and_no_secret(
    corpus: Corpus, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "8")

    metadata = shown(instance, settings={"text": {"batch_size": 7}})

    assert "s3cret" not in repr(metadata)
    assert metadata["store"].value == f"{corpus.store.url}/clipfarm"
    contracts = {row.data["stage"]: row.data for row in metadata["contracts"].records}
    assert {stage: row["serves"] for stage, row in contracts.items()} == {
        str(stage): corpus.contract(stage).id for stage in Stage
    }
    settings = {row.data["variable"]: row.data for row in metadata["settings"].records}
    assert (settings["CLIPFARM_RUN_SIZE"]["value"], settings["CLIPFARM_RUN_SIZE"]["from"]) == (
        "8",
        "environment",
    )
    assert (settings["CLIPFARM_TEXT_BATCH_SIZE"]["value"], settings["CLIPFARM_TEXT_BATCH_SIZE"]["from"]) == (
        "7",
        "definitions",
    )
    assert settings["CLIPFARM_DEVICE"]["from"] == "default"
    environment = {row.data["variable"]: row.data["value"] for row in metadata["environment"].records}
    assert environment["AWS_SECRET_ACCESS_KEY"] == "(set, not shown)"
