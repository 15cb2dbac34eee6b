"""`clipfarm doctor`: whether all is there that embedding needs, and what to do about what is not."""

from __future__ import annotations

import typer

from clipfarm_dagster.cli.output import (
    Json,
    console,
    examples,
    home_left_alone,
    print_json,
)
from clipfarm_dagster.maintenance.health import find_health
from clipfarm_dagster.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm doctor", "clipfarm doctor --json"))(doctor)


def doctor(as_json: Json = False) -> None:
    """Check everything that embedding needs, and say what to do about what is wrong.

    Nothing stays of it, but for an object that is written to the store and removed. Exit code 2 means that
    something is wrong.
    """
    settings, out = load_settings(), console()
    findings = []
    with home_left_alone(settings) as looking:
        for finding in find_health(looking, home=settings.home):
            findings.append(finding)
            if not as_json:
                mark = "ok   " if finding.well else "WRONG"
                out.print(f"{mark}  {finding.what}: {finding.told}", soft_wrap=True)
    wrong = sum(not finding.well for finding in findings)
    if as_json:
        checks = [{"check": one.what, "ok": one.well, "found": one.told} for one in findings]
        print_json({"wrong": wrong, "checks": checks})
    elif wrong:
        out.print(f"\n{wrong} of {len(findings)} checks found something wrong")
    else:
        out.print("\nAll is well; `clipfarm plan` shows what there is to embed")
    raise typer.Exit(2 if wrong else 0)
