"""`clipfarm manifests`: brings manifests and fused vectors up to date, as their sensor does by itself."""

from __future__ import annotations

from typing import Any

import dagster as dg
import typer
from rich.console import Console

from clipfarm_dagster.cli.output import (
    Json,
    console,
    dagster_instance,
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.in_process import run_in_process
from clipfarm_dagster.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm manifests", "clipfarm manifests --json"))(manifests)


def manifests(as_json: Json = False) -> None:
    """Bring manifests and fused vectors up to date with the ledgers, through Dagster, in this process."""
    settings = load_settings()
    corpus = open_corpus(settings)
    waiting = Console(stderr=True).status("Making manifests; with many new vectors this takes minutes …")
    with dagster_instance(settings) as instance, waiting:
        made = make_manifests(corpus, instance)
    if as_json:
        print_json({"manifests": made})
        return
    rows = [[entry["key"], f"{entry['rows']:,}", "yes" if entry["written"] else "no"] for entry in made]
    console().print(table("Manifests", ["key", "rows", "written"], rows))


def make_manifests(corpus: Corpus, instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """Run `manifests_job` in this process; of each manifest its key in the store, its rows, and whether it
    had to be written.

    Raises:
        ClipFarmError: the store or a ledger cannot be used, or vectors cannot be fused.
    """
    from clipfarm_dagster.definitions import build_definitions
    from clipfarm_dagster.orchestration.jobs import manifests_run_config
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
    from clipfarm_dagster.orchestration.sensors.manifests import strategies_in_use

    job = build_definitions().resolve_job_def(DEFAULT_NAMES.manifests_job)
    run_config = manifests_run_config(DEFAULT_NAMES, strategies_in_use(corpus))
    result = run_in_process(job, instance, run_config)
    records = [event.metadata for event in _materializations(instance, result.run_id)]
    return [
        {
            "key": str(metadata["key"].value).removeprefix(f"{corpus.store.url}/"),
            "rows": metadata["dagster/row_count"].value,
            "written": metadata["written"].value,
        }
        for metadata in records
    ]


def _materializations(instance: dg.DagsterInstance, run_id: str) -> list[dg.AssetMaterialization]:
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    made = (entry.asset_materialization for entry in entries)
    return [materialization for materialization in made if materialization is not None]
