"""`clipfarm status` and `clipfarm verify`: what is done, and whether it is there."""

from __future__ import annotations

from typing import Any

import typer

from clipfarm_dagster.cli.output import Json, Stages, console, print_json, table
from clipfarm_dagster.corpus import FAILED_STATUSES, Corpus
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage

SHOWN_FAILURES = 50


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(status)
    app.command()(verify)


def status(stage: Stages = None, as_json: Json = False) -> None:
    """Show what the ledgers hold, by stage and status, and each failure with its cause."""
    corpus = Corpus.open(load_settings())
    counts: dict[str, dict[str, int]] = {}
    failures: list[dict[str, Any]] = []
    for chosen in stage or list(Stage):
        with corpus.ledger(chosen) as ledger:
            counts[str(chosen)] = ledger.counts()
            failures += [
                {
                    "stage": str(chosen),
                    "video_id": row.video_id,
                    "status": row.status,
                    "error": row.error,
                    "retry_count": row.retry_count,
                }
                for row in ledger.with_status(FAILED_STATUSES)
            ]
    if as_json:
        print_json({"stages": counts, "failures": failures})
        return
    out = console()
    statuses = sorted({name for entry in counts.values() for name in entry})
    rows = [[name, *(f"{entry.get(s, 0):,}" for s in statuses)] for name, entry in counts.items()]
    out.print(table("Ledgers", ["stage", *statuses], rows))
    if failures:
        columns = ["stage", "video_id", "status", "retry_count", "error"]
        shown = [[str(failure[column]) for column in columns] for failure in failures[:SHOWN_FAILURES]]
        out.print()
        out.print(table("Failures", ["stage", "video_id", "status", "attempts", "cause"], shown))
        if len(failures) > SHOWN_FAILURES:
            out.print(f"… and {len(failures) - SHOWN_FAILURES:,} more; --json lists all")


def verify(stage: Stages = None, as_json: Json = False) -> None:
    """Read every vector that a ledger calls a success, and check that it is there and whole."""
    corpus = Corpus.open(load_settings())
    checked, bad = 0, []
    for chosen in stage or list(Stage):
        with corpus.ledger(chosen) as ledger:
            for finding in corpus.verify(ledger):
                checked += 1
                if finding.problem is not None:
                    bad.append(
                        {
                            "stage": str(chosen),
                            "video_id": finding.video_id,
                            "key": finding.key,
                            "problem": finding.problem,
                        }
                    )
    if as_json:
        print_json({"checked": checked, "bad": bad})
    else:
        out = console()
        out.print(f"{checked:,} vectors checked, {len(bad):,} bad")
        if bad:
            columns = ["stage", "video_id", "key", "problem"]
            out.print(table("Bad vectors", columns, [[entry[column] for column in columns] for entry in bad]))
    raise typer.Exit(1 if bad else 0)
