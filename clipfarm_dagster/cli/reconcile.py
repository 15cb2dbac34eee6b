"""`clipfarm reconcile`: tells Dagster what the ledgers know and it does not."""

from __future__ import annotations

from dataclasses import asdict

import typer

from clipfarm_dagster.cli.output import (
    Json,
    Stages,
    console,
    dagster_instance,
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm reconcile", "clipfarm reconcile --stage text"))(reconcile)


def reconcile(stage: Stages = None, as_json: Json = False) -> None:
    """Tell Dagster about successes that it does not know of because of a crash. Embeds nothing."""
    from clipfarm_dagster.orchestration.erasure_finishing import erasures_followed
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
    from clipfarm_dagster.orchestration.reconcile import reconcile as reconcile_stage

    settings = load_settings()
    corpus = open_corpus(settings)
    with dagster_instance(settings) as instance, erasures_followed(corpus, instance, DEFAULT_NAMES):
        found = {
            str(chosen): reconcile_stage(corpus, instance, DEFAULT_NAMES, chosen)
            for chosen in stage or list(Stage)
        }
    if as_json:
        print_json({"stages": {name: asdict(one) for name, one in found.items()}})
        return
    rows = [
        [name, *(f"{count:,}" for count in (one.successes, one.mended, one.unlabelled, one.unknown))]
        for name, one in found.items()
    ]
    columns = [
        "stage",
        "successes",
        "now reported to Dagster",
        "of an unknown contract",
        "materialized, not in the ledger",
    ]
    console().print(table("Ledgers and Dagster", columns, rows))
