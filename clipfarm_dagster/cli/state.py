"""`clipfarm status`, `verify` and `retry`: what is done, whether it is there, another try for failures."""

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
from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.ledger.schema import FAILED_STATUSES
from clipfarm_dagster.ledger.verify import VectorFinding, repair_vectors, retry_failures, verify_vectors
from clipfarm_dagster.stages import Stage

SHOWN_FAILURES = 50


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm status", "clipfarm status --stage video --json"))(status)
    app.command(epilog=examples("clipfarm verify", "clipfarm verify --stage audio --repair"))(verify)
    app.command(epilog=examples("clipfarm retry VIDEO_ID", "clipfarm retry --all --stage video"))(retry)


def status(stage: Stages = None, as_json: Json = False) -> None:
    """Show what the ledgers hold, by stage and status, failures with causes, notes, and erased videos."""
    corpus = open_corpus()
    counts: dict[str, dict[str, int]] = {}
    failures: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
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
            notes += [
                {"stage": str(chosen), "video_id": row.video_id, "note": row.note}
                for row in ledger.with_note()
            ]
    erased = corpus.tombstones.read()
    if as_json:
        some: dict[str, Any] = {"notes": notes} if notes else {}
        if erased:
            some |= {"erased": {"videos": len(erased.erasures), "unfinished": len(erased.unfinished)}}
        print_json({"stages": counts, "failures": failures} | some)
        return
    out = console()
    if erased:
        goes_on = "; `clipfarm sync` or the sensor goes on with these"
        out.print(
            f"{len(erased.erasures):,} videos are erased, {len(erased.unfinished):,} of them not wholly yet"
            + (goes_on if erased.unfinished else "")
        )
    statuses = sorted({name for entry in counts.values() for name in entry})
    if not statuses:
        out.print("Nothing is recorded yet; `clipfarm plan` shows what there is to do")
        return
    rows = [[name, *(f"{entry.get(s, 0):,}" for s in statuses)] for name, entry in counts.items()]
    out.print(table("Ledgers", ["stage", *statuses], rows))
    _print_listed("Failures", failures, ["stage", "video_id", "status", "retry_count", "error"], "cause")
    _print_listed("Notes", notes, ["stage", "video_id", "note"], "note")


def _print_listed(title: str, entries: list[dict[str, Any]], columns: list[str], last: str) -> None:
    """A table of the first of some entries; the last column goes by the name `last`."""
    if not entries:
        return
    out = console()
    shown = [[str(entry[column]) for column in columns] for entry in entries[:SHOWN_FAILURES]]
    out.print()
    out.print(table(title, [*columns[:-1], last], shown))
    if len(entries) > SHOWN_FAILURES:
        out.print(f"… and {len(entries) - SHOWN_FAILURES:,} more; --json lists all")


def verify(
    stage: Stages = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Queue bad vectors: the next sync embeds them again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every vector that a ledger calls a success, and check that it exists and is intact.

    Exit code 1 means that some were bad, repaired or not.
    """
    corpus = open_corpus()
    checked, repaired, bad = 0, 0, []
    for chosen in stage or list(Stage):
        with corpus.ledger(chosen) as ledger:
            found: list[VectorFinding] = []
            for finding in verify_vectors(ledger, corpus.store, corpus.keys):
                checked += 1
                if finding.problem is not None:
                    found.append(finding)
            if repair and found:
                repaired += len(repair_vectors(ledger, found))
                ledger.push()
        bad += [
            {"stage": str(chosen), "video_id": one.video_id, "key": one.key, "problem": one.problem}
            for one in found
        ]
    if as_json:
        print_json({"checked": checked, "bad": bad})
    else:
        out = console()
        out.print(f"{checked:,} vectors checked, {len(bad):,} bad")
        if bad:
            columns = ["stage", "video_id", "key", "problem"]
            shown = [[str(entry[column]) for column in columns] for entry in bad]
            out.print(table("Bad vectors", columns, shown))
        if repaired:
            out.print(f"{repaired:,} are queued: `clipfarm sync` or the sensor embeds them again")
        elif bad and not repair:
            out.print("`clipfarm verify --repair` queues them to be embedded again")
    raise typer.Exit(1 if bad else 0)


def retry(
    video_ids: Annotated[list[str] | None, typer.Argument(metavar="[VIDEO_ID]...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that failed.")] = False,
    stage: Stages = None,
    as_json: Json = False,
) -> None:
    """Retry failed, invalid and quarantined videos now, and forget their failures.

    The next sync, or the sensor's next tick, embeds them. Exit code 1 means that one of the given
    videos has not failed.
    """
    if bool(video_ids) == everything:
        raise ClipFarmError("name the videos to retry, or give --all")
    corpus = open_corpus()
    due: dict[str, list[str]] = {}
    for chosen in stage or list(Stage):
        with corpus.ledger(chosen) as ledger:
            due[str(chosen)] = retry_failures(ledger, None if everything else set(video_ids or ()))
            ledger.push()
    done = {video_id for ids in due.values() for video_id in ids}
    unknown = [video_id for video_id in dict.fromkeys(video_ids or ()) if video_id not in done]
    if as_json:
        print_json({"stages": {name: len(ids) for name, ids in due.items()}, "not_failed": unknown})
    else:
        out = console()
        out.print(
            table("Due now", ["stage", "videos"], [[name, f"{len(ids):,}"] for name, ids in due.items()])
        )
        if unknown:
            out.print(f"No failure of {', '.join(unknown)} is recorded", soft_wrap=True)
    raise typer.Exit(1 if unknown else 0)
