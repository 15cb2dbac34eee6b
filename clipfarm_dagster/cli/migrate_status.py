"""`clipfarm migrate status`: what serves, what is being filled and what is kept."""

from __future__ import annotations

from typing import Any

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
from clipfarm_dagster.maintenance.generations import Generation, StageGenerations, stage_generations
from clipfarm_dagster.maintenance.readiness import Readiness
from clipfarm_dagster.planning.coverage import Cover, Coverage
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract


def register(group: typer.Typer) -> None:
    """Add the command of this module."""
    group.command(epilog=examples("clipfarm migrate status", "clipfarm migrate status --stage text"))(status)


def status(stage: Stages = None, as_json: Json = False) -> None:
    """Show what serves, what is being filled and what is kept, by stage.

    Exit code 1 means that a model which is needed cannot be had.
    """
    corpus = open_corpus()
    found = {chosen: stage_generations(corpus, chosen) for chosen in stage or list(Stage)}
    if as_json:
        print_json({"stages": {str(name): _status_told(one) for name, one in found.items()}})
    else:
        _show_status(found)
    problems = [one.model_problem or one.wanted_problem for one in found.values()]
    raise typer.Exit(1 if any(problems) else 0)


def contract_told(contract: Contract) -> dict[str, Any]:
    """A contract for JSON."""
    return {
        "contract_id": contract.id,
        "model_name": contract.model_name,
        "model_revision": contract.model_revision,
        "preprocess": f"{contract.preprocess_name}@{contract.preprocess_version}",
        "preprocess_params": dict(contract.preprocess_params),
        "pooling": contract.pooling,
        "dtype": contract.dtype,
    }


def coverage_told(coverage: Coverage) -> dict[str, int]:
    """Counts of what is served, by what another generation has of it."""
    return {"served": coverage.served, **{str(cover): coverage.count(cover) for cover in Cover}}


def generation_told(generation: Generation) -> dict[str, Any]:
    """A generation for JSON; without its contract where that is not known."""
    known = {} if generation.contract is None else contract_told(generation.contract)
    return {
        "contract_id": generation.contract_id,
        **known,
        "vectors": generation.vectors,
        "objects": generation.objects,
        "bytes": generation.bytes,
    }


def _readiness_told(found: Readiness) -> dict[str, Any]:
    return {
        "coverage": coverage_told(found.coverage),
        "ready": found.ready,
        "missing": found.missing,
        "held": found.held,
    }


def _status_told(found: StageGenerations) -> dict[str, Any]:
    candidate = None
    if found.candidate is not None and found.readiness is not None:
        candidate = {**generation_told(found.candidate), **_readiness_told(found.readiness)}
    record = found.record
    return {
        "serving": {
            **generation_told(found.serving),
            "since": record.since or None,
            "before": record.before,
            "following": record.following,
            "settled": record.settled,
            "rolled_back": record.rolled_back,
            "model_problem": found.model_problem,
        },
        "candidate": candidate,
        "wanted_problem": found.wanted_problem,
        "others": [generation_told(other) for other in found.others],
    }


def _show_status(found: dict[Stage, StageGenerations]) -> None:
    rows = []
    for stage, one in found.items():
        roles = [("serves", one.serving), ("candidate", one.candidate)]
        roles += [("before" if o.contract_id == one.record.before else "kept", o) for o in one.others]
        rows += [_row(stage, role, generation) for role, generation in roles if generation is not None]
    out = console()
    out.print(table("Generations", ["stage", "", "generation", "model", "vectors", "kept apart"], rows))
    for stage, one in found.items():
        for line in _notes(stage, one):
            out.print(line, soft_wrap=True)


def _row(stage: Stage, role: str, generation: Generation) -> list[str]:
    model = "?" if generation.contract is None else generation.contract.model_name
    apart = f"{generation.objects:,} ({size_told(generation.bytes)})" if generation.objects else "-"
    return [str(stage), role, generation.contract_id, model, f"{generation.vectors:,}", apart]


def _notes(stage: Stage, found: StageGenerations) -> list[str]:
    """What a person should know of a stage beyond the table."""
    record, lines = found.record, []
    if record.before is not None:
        lines.append(f"{record.contract_id} serves since {record.since}, {record.before} did before")
    if record.following is not None:
        lines.append(f"a cut-over to {record.following} is under way: what serves is being copied aside")
    elif not record.settled:
        lines.append("a cut-over is under way: what serves now is being copied to its final keys")
    if record.rolled_back is not None:
        lines.append(f"a person went back from {record.rolled_back}; only a person lets it serve again")
    lines += _differences(found)
    if found.readiness is not None:
        lines += _readiness_notes(found.readiness)
    if found.wanted_problem is not None:
        lines.append(f"what the settings ask for is not known: {found.wanted_problem}")
    if found.model_problem is not None and found.model_problem != found.wanted_problem:
        lines.append(f"new and changed videos wait, for {found.model_problem}")
    return [f"{stage}: {line}" for line in lines]


def _differences(found: StageGenerations) -> list[str]:
    """How each of the other generations differs from the one that serves."""
    serving, lines = found.serving.contract, []
    for other in (found.candidate, *found.others):
        if other is None or other.contract is None or serving is None:
            continue
        now, then = contract_told(serving), contract_told(other.contract)
        changes = [
            f"{name} {_value_told(then[name])} in place of {_value_told(now[name])}"
            for name in now
            if now[name] != then[name] and name != "contract_id"
        ]
        lines.append(f"{other.contract_id} differs from what serves: {', '.join(changes)}")
    return lines


def _value_told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in sorted(value.items())) or "none"
    return str(value).removeprefix("sha256:")


def _readiness_notes(found: Readiness) -> list[str]:
    coverage = found.coverage
    counts = ", ".join(
        f"{coverage.count(cover):,} {words}"
        for cover, words in {
            Cover.OUTDATED: "outdated",
            Cover.TO_DO: "to do",
            Cover.WAITING: "waiting for their next attempt",
            Cover.FAILED: "failed for good",
            Cover.MISSING_RAW_OBJECT: "without raw object",
            Cover.ORPHANED: "no longer in the metadata",
        }.items()
        if coverage.count(cover)
    )
    has = f"has {coverage.covered:,} of {coverage.served:,} vectors that serve"
    lines = [f"the candidate {found.contract_id} {has}" + (f"; {counts}" if counts else "")]
    if found.ready:
        return [*lines, "nothing is missing: it serves from the next sync or tick of the sensor on"]
    lines += [f"before it serves: {reason}" for reason in found.missing]
    return lines + [f"it does not serve by itself: {reason}" for reason in found.held]


def size_told(count: int) -> str:
    """A number of bytes as a person reads it."""
    size, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
