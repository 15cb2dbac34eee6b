"""`clipfarm plan`: what would run, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from clipfarm_dagster.catalog.metadata import LatestRows
from clipfarm_dagster.cli.fleet import Fleet, shown_duration
from clipfarm_dagster.cli.output import (
    Json,
    Stages,
    console,
    examples,
    home_left_alone,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.corpus.stage_corpus import StageCorpus, plan_stages
from clipfarm_dagster.errors import SettingsError, StoreUnavailableError, VideoNotFoundError
from clipfarm_dagster.planning.delta import StagePlan
from clipfarm_dagster.planning.estimate import Estimate, estimate_fleet, estimate_seconds
from clipfarm_dagster.planning.explain import Explanation
from clipfarm_dagster.planning.rates import Rate, read_rates
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import local_path

TIMED_ITEMS = 1000
"""Items of a stage, the latest ones, whose times make an estimate."""

_SHOWN_CHARACTERS = 80

Explain = Annotated[
    str | None,
    typer.Option(
        "--explain", metavar="VIDEO_ID", help="Only this video: what the ledger holds, and what is true now."
    ),
]

Nodes = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Estimate hours on so many nodes of one kind, as runs have recorded them."
    ),
]
Price = Annotated[
    float | None,
    typer.Option(min=0, metavar="PER_HOUR", help="With --nodes: what one node costs an hour."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples(
            "clipfarm plan", "clipfarm plan --explain VIDEO_ID", "clipfarm plan --nodes 4 --price 1.50"
        )
    )(plan)


def plan(
    stage: Stages = None,
    explain: Explain = None,
    nodes: Nodes = None,
    price: Price = None,
    as_json: Json = False,
) -> None:
    """Show what would be embedded now, and why, by stage. Changes nothing."""
    if price is not None and nodes is None:
        raise SettingsError("--price says what one node costs; say by --nodes how many there are")
    settings = load_settings()
    folder = local_path(settings.store_url)
    if folder is not None and not folder.is_dir():
        raise StoreUnavailableError(
            f"{folder}: there is no such folder; put metadata and raw objects there, or set"
            " CLIPFARM_STORE_URL"
        )
    with home_left_alone(settings) as settings:
        corpus, stages = open_corpus(settings), stage or list(Stage)
        if explain is None:
            _plan(corpus, stages, nodes, price, as_json)
        else:
            _explain(corpus, corpus.latest_rows(), stages, explain, as_json)


def _plan(
    corpus: Corpus, stages: Sequence[Stage], nodes: int | None, price: float | None, as_json: bool
) -> None:
    latest = corpus.latest_rows()
    with corpus.stages(stages) as opened:
        plans = plan_stages(opened, latest, limit=0)
        wanted = {
            name: candidate for name, one in opened.items() if (candidate := one.candidate()) is not None
        }
        candidates = plan_stages(wanted, latest, limit=0)
        fleet = None if nodes is None else _fleet(corpus, nodes, price, opened, plans, wanted, candidates)
    orphaned = _count_orphans(corpus, latest, plans)
    if as_json:
        print_json(
            {
                "videos": latest.videos,
                "refused": latest.refused_ids,
                "orphaned": orphaned,
                "stages": {str(name): _as_json(made) for name, made in plans.items()},
            }
            | (
                {"candidates": {str(name): _as_json(made) for name, made in candidates.items()}}
                if candidates
                else {}
            )
            | ({"erased": latest.erased} if latest.erased else {})
            | ({} if fleet is None else {"fleet": fleet.as_json()})
        )
        return
    out = console()
    out.print(f"{latest.videos:,} videos in {corpus.metadata.url}", soft_wrap=True)
    if latest.refused_ids:
        names = ", ".join(repr(name) for name in list(latest.refused)[:10])
        out.print(f"{latest.refused_ids:,} refused for their video_id: {names}")
    if latest.erased:
        out.print(f"{latest.erased:,} more were erased: `clipfarm erase` keeps them away")
    if orphaned:
        out.print(f"{orphaned:,} embedded earlier and no longer in the CSV; their vectors are kept")
    for name, made in plans.items():
        if made.skipped.count:
            keys = ", ".join(repr(key) for key in made.skipped.examples)
            out.print(
                f"{made.skipped.count:,} keys below {corpus.keys.raw_folder(name)} cannot be used and are"
                f" skipped: {keys}",
                soft_wrap=True,
            )
    out.print(_table("Work now", corpus, plans))
    if candidates:
        out.print()
        out.print(_table("For changed models, beside those that serve", corpus, candidates))
    if fleet is not None:
        fleet.show(out)


def _fleet(
    corpus: Corpus,
    nodes: int,
    price: float | None,
    opened: Mapping[Stage, StageCorpus],
    plans: Mapping[Stage, StagePlan],
    wanted: Mapping[Stage, StageCorpus],
    candidates: Mapping[Stage, StagePlan],
) -> Fleet:
    """What the deltas would take on some nodes; `wanted` are the candidates' stages."""
    delta: dict[str, int] = {}
    rates: dict[str, Sequence[Rate]] = {}
    for suffix, stages, made in (("", opened, plans), (" candidate", wanted, candidates)):
        for stage, one in stages.items():
            delta[f"{stage}{suffix}"] = made[stage].delta
            rates[f"{stage}{suffix}"] = read_rates(corpus.store, corpus.keys, stage, one.contract.id)
    return Fleet(nodes, price, delta, estimate_fleet(delta, rates, nodes))


def _as_json(made: StagePlan) -> dict[str, Any]:
    return {
        "delta": made.delta,
        "missing_raw_object": made.missing_raw_object,
        "reasons": made.reasons,
        "skipped_keys": asdict(made.skipped),
    }


def _table(title: str, corpus: Corpus, plans: dict[Stage, StagePlan]) -> Any:
    estimates = _estimates(corpus, plans)
    rows = [
        [
            str(name),
            f"{made.delta:,}",
            f"{made.missing_raw_object:,}",
            ", ".join(f"{count:,} {reason}" for reason, count in made.reasons.items()) or "-",
            _shown_estimate(estimates[name]) if made.delta else "-",
        ]
        for name, made in plans.items()
    ]
    columns = ["stage", "to embed", "raw object missing", "why", "time, one at a time"]
    return table(title, columns, rows)


def _count_orphans(corpus: Corpus, latest: LatestRows, plans: dict[Stage, StagePlan]) -> int:
    """Videos that some ledger has and the metadata has not."""
    orphaned: set[str] = set()
    for stage, made in plans.items():
        if made.orphaned:
            with corpus.stage(stage) as opened:
                orphaned |= opened.orphans(latest)
    return len(orphaned)


def _estimates(corpus: Corpus, plans: dict[Stage, StagePlan]) -> dict[Stage, Estimate | None]:
    estimates = {}
    for stage, made in plans.items():
        with corpus.ledger(stage) as ledger:
            seen = {stage: ledger.recent_seconds(TIMED_ITEMS)}
        estimates[stage] = estimate_seconds(seen, {stage: made.delta})
    return estimates


def _shown_estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "unknown: no item was timed yet"
    low, high = shown_duration(estimate.low), shown_duration(estimate.high)
    return f"{shown_duration(estimate.seconds)} ({low} to {high})"


def _explain(
    corpus: Corpus, latest: LatestRows, stages: Sequence[Stage], video_id: str, as_json: bool
) -> None:
    found: list[Explanation] = []
    for stage in stages:
        with corpus.stage(stage) as opened:
            found.append(opened.explain(video_id, latest))
    if all(explanation.verdict is None for explanation in found):
        raise VideoNotFoundError(
            f"{corpus.metadata.url} has no row of the video {video_id!r}, and no ledger has one;"
            " `clipfarm search` finds ids by words"
        )
    if as_json:
        answer = {}
        for explanation in found:
            fields = asdict(explanation)
            del fields["stage"], fields["video_id"], fields["in_flight"]
            answer[str(explanation.stage)] = fields
        print_json({"video_id": video_id, "stages": answer})
        return
    out = console()
    rows = [
        [
            str(explanation.stage),
            str(explanation.verdict or "in neither metadata nor ledger"),
            explanation.status or "-",
            explanation.next_attempt_at or "-",
        ]
        for explanation in found
    ]
    out.print(table(f"Video {video_id}", ["stage", "verdict", "last attempt", "next attempt"], rows))
    changes = [
        [str(explanation.stage), change.name, _shown(change.old), _shown(change.new)]
        for explanation in found
        for change in explanation.changes
    ]
    if changes:
        out.print()
        out.print(table("Changes since", ["stage", "what", "then", "now"], changes))
    sources = [
        [str(explanation.stage), name, _shown(text)]
        for explanation in found
        for name, text in explanation.source.items()
    ]
    if sources:
        out.print()
        out.print(
            table("What the source hash covers, besides the raw object", ["stage", "column", "now"], sources)
        )


def _shown(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
