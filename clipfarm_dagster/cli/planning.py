"""`clipfarm plan`: what would run, and why."""

from __future__ import annotations

from typing import Any

import typer

from clipfarm_dagster.cli.output import Json, Stages, console, print_json, table
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(plan)


def plan(stage: Stages = None, as_json: Json = False) -> None:
    """Show what would be embedded now, and why, by stage. Changes nothing."""
    corpus = Corpus.open(load_settings())
    latest = corpus.latest_rows()
    stages: dict[str, Any] = {}
    orphaned: set[str] = set()
    for chosen in stage or list(Stage):
        with corpus.ledger(chosen) as ledger:
            made = corpus.plan(chosen, latest, ledger, limit=0)
            orphaned |= corpus.orphans(latest, ledger)
        stages[str(chosen)] = {
            "delta": made.delta,
            "missing_raw_object": made.missing_raw_object,
            "reasons": made.reasons,
        }
    if as_json:
        print_json(
            {
                "videos": latest.videos,
                "refused": latest.refused_ids,
                "orphaned": len(orphaned),
                "stages": stages,
            }
        )
        return
    out = console()
    out.print(f"{latest.videos:,} videos in {corpus.metadata.url}", soft_wrap=True)
    if latest.refused_ids:
        names = ", ".join(repr(name) for name in list(latest.refused)[:10])
        out.print(f"{latest.refused_ids:,} refused for their video_id: {names}", markup=False)
    if orphaned:
        out.print(f"{len(orphaned):,} embedded earlier and no longer in the CSV; their vectors are kept")
    rows = [
        [
            name,
            f"{entry['delta']:,}",
            f"{entry['missing_raw_object']:,}",
            ", ".join(f"{count:,} {reason}" for reason, count in entry["reasons"].items()) or "-",
        ]
        for name, entry in stages.items()
    ]
    out.print(table("Work now", ["stage", "to embed", "raw object missing", "why"], rows))
