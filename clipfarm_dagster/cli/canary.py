"""`clipfarm canary`: whether this machine still makes the vectors that it would have made before."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from clipfarm_dagster.cli.output import (
    Json,
    Stages,
    console,
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.stages import Stage


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm canary", "clipfarm canary --stage video --accept"))(canary)


def canary(
    stage: Stages = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Make this machine's present result the baseline.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Embed a fixed input per stage and compare it, step by step, with the baseline in the store.

    The first run stores the baseline. Exit code 1 means that a step moved.
    """
    from clipfarm_dagster.canary.check import accept_canary, check_canary
    from clipfarm_dagster.canary.environment import current_environment
    from clipfarm_dagster.checkpoints.content_check import check_content
    from clipfarm_dagster.modalities.registry import load_encoder, stage_checkpoint

    corpus = open_corpus()
    look = accept_canary if accept else check_canary
    reports = []
    for chosen in stage or list(Stage):
        check_content(stage_checkpoint(chosen, corpus.settings), corpus.store, corpus.keys)
        encoder = load_encoder(chosen, corpus.settings)
        reports.append(look(encoder, current_environment(encoder.device), corpus.store, corpus.keys))
    if as_json:
        stages: dict[str, Any] = {
            str(report.stage): {
                "result": str(report.result),
                "contract": report.contract_id,
                "environment": report.environment.id,
                "baseline_environment": report.baseline_environment.id,
                "baseline_made_at": report.baseline_made_at,
                "moved": None if report.moved is None else str(report.moved),
                "problem": report.problem,
                "deviations": {str(step.step): step.deviation for step in report.steps},
            }
            for report in reports
        }
        print_json({"stages": stages})
    else:
        out = console()
        rows = [
            [
                str(report.stage),
                str(report.result),
                *(_shown(report.steps[i].deviation) if report.steps else "-" for i in range(4)),
                f"{report.baseline_made_at[:10]} in {report.baseline_environment.id}",
            ]
            for report in reports
        ]
        columns = ["stage", "result", "decoder", "preprocessing", "model", "hardware", "baseline"]
        out.print(table("Canary", columns, rows))
        for report in reports:
            if report.problem is not None:
                out.print(f"\n{report.problem}", soft_wrap=True)
    raise typer.Exit(1 if any(report.moved is not None for report in reports) else 0)


def _shown(deviation: float | None) -> str:
    if deviation is None:
        return "differs"
    return "same" if deviation == 0 else f"{deviation:.1e}"
