"""`clipfarm migrate compare`: a generation beside the one that serves, for a person to judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipfarm_dagster.canary.record import CanaryRecord
from clipfarm_dagster.cli.migrate_status import contract_told, coverage_told
from clipfarm_dagster.cli.output import (
    Json,
    console,
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.corpus.named_generations import find_generation
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.explore.comparison import SAMPLE, Example, PairChange, VectorSet
from clipfarm_dagster.explore.generations import (
    ComparedGenerations,
    compare_generations,
    generations_picture,
    summary_lines,
    write_neighbours,
)
from clipfarm_dagster.explore.search import Match
from clipfarm_dagster.maintenance.generations import other_generation
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.whole_files import written_whole
from clipfarm_dagster.vectors.contract import Contract


def register(group: typer.Typer) -> None:
    """Add the command of this module."""
    group.command(
        epilog=examples(
            "clipfarm migrate compare text --picture compared.png",
            "clipfarm migrate compare text --generation CONTRACT_ID --sample 500",
        )
    )(compare)


def compare(
    stage: Annotated[Stage, typer.Argument(help="The stage.")],
    generation: Annotated[
        str,
        typer.Option(
            metavar="CONTRACT_ID",
            help="The generation, or how its id begins; by default what the settings ask for, or what served"
            " before.",
        ),
    ] = "",
    sample: Annotated[
        int, typer.Option(min=1, help="Videos whose nearest neighbours are compared.")
    ] = SAMPLE,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write both side by side as a picture.")
    ] = None,
    neighbours: Annotated[
        Path | None,
        typer.Option(
            "--table", metavar="FILE.csv", help="Write the neighbours of all sampled videos, with titles."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare another generation with the one that serves: coverage, neighbours, near duplicates, norms."""
    for file, suffix in ((picture, ".png"), (neighbours, ".csv")):
        if file is not None and file.suffix != suffix:
            raise SettingsError(f"{file}: name a file that ends in {suffix}")
    corpus = open_corpus()
    if generation:
        _, contract_id = find_generation(corpus, [stage], generation)
    else:
        contract_id = other_generation(corpus, stage)
    compared = compare_generations(corpus, stage, contract_id, sample=sample)
    if picture is not None:
        with written_whole(picture) as part:
            part.write_bytes(generations_picture(corpus, compared))
    if neighbours is not None:
        write_neighbours(compared, neighbours)
    if as_json:
        print_json(_told(stage, compared))
    else:
        _show(stage, compared)


def _told(stage: Stage, compared: ComparedGenerations) -> dict[str, Any]:
    comparison, titles = compared.comparison, compared.titles
    overlap, duplicates = comparison.overlap, comparison.duplicates

    def vectors(contract: Contract, found: VectorSet, canary: CanaryRecord | None) -> dict[str, Any]:
        return {
            **contract_told(contract),
            "vectors": found.count,
            "dimension": found.dimension,
            "min_norm": found.min_norm,
            "max_norm": found.max_norm,
            "canary": _canary_told(canary),
        }

    def pairs(found: list[PairChange]) -> list[dict[str, Any]]:
        return [
            {
                "video_ids": [pair.first, pair.second],
                "titles": [titles[pair.first], titles[pair.second]],
                "old_score": round(pair.old_score, 6),
                "new_score": round(pair.new_score, 6),
            }
            for pair in found
        ]

    def matches(found: list[Match]) -> list[dict[str, Any]]:
        return [
            {"video_id": m.video_id, "title": titles[m.video_id], "score": round(m.score, 6)} for m in found
        ]

    differing = compared.canaries.differing
    return {
        "stage": str(stage),
        "old": vectors(compared.old.contract, comparison.old, compared.canaries.old),
        "new": vectors(compared.new.contract, comparison.new, compared.canaries.new),
        "coverage": coverage_told(compared.coverage),
        "shared": comparison.shared,
        "overlap": {
            "videos": len(overlap.shares),
            "mean": overlap.mean,
            "quantiles": {f"{q:g}": value for q, value in overlap.quantiles.items()},
        },
        "duplicates": {
            "threshold": duplicates.threshold,
            "kept": duplicates.kept,
            "lost": duplicates.lost,
            "gained": duplicates.gained,
            "complete": duplicates.complete,
            "best_lost": pairs(list(duplicates.best_lost)),
            "best_gained": pairs(list(duplicates.best_gained)),
        },
        "canary_differs": None if differing is None else [str(step) for step in differing],
        "examples": [
            {
                "video_id": example.video_id,
                "title": titles[example.video_id],
                "share": example.share,
                "old": matches(list(example.old)),
                "new": matches(list(example.new)),
            }
            for example in comparison.examples
        ],
    }


def _canary_told(canary: CanaryRecord | None) -> dict[str, Any] | None:
    if canary is None:
        return None
    return {
        "made_at": canary.baseline.made_at,
        "environment": canary.baseline.environment.id,
        "agreeing_environments": canary.environments,
        "last_agreed_at": canary.last_agreed_at,
    }


def _show(stage: Stage, compared: ComparedGenerations) -> None:
    out, comparison = console(), compared.comparison
    rows = [
        [name, contract.id, contract.model_name, f"{found.count:,}", f"{found.dimension}", _norms(found)]
        for name, contract, found in (
            ("serves", compared.old.contract, comparison.old),
            ("compared", compared.new.contract, comparison.new),
        )
    ]
    out.print(table(f"{stage} vectors", ["", "generation", "model", "vectors", "dimension", "norms"], rows))
    for line in summary_lines(compared):
        out.print(line, soft_wrap=True)
    duplicates = comparison.duplicates
    for title, pairs in (("lost", duplicates.best_lost), ("gained", duplicates.best_gained)):
        if pairs:
            out.print()
            out.print(_pairs_table(f"Nearest pairs that are {title}", list(pairs), compared))
    for example in comparison.examples:
        out.print()
        out.print(_neighbours_table(example, compared))


def _norms(found: VectorSet) -> str:
    return "-" if found.min_norm is None else f"{found.min_norm:.6f} to {found.max_norm:.6f}"


def _pairs_table(title: str, pairs: list[PairChange], compared: ComparedGenerations) -> Any:
    titles = compared.titles
    rows = [
        [f"{p.old_score:.3f}", f"{p.new_score:.3f}", p.first, titles[p.first], p.second, titles[p.second]]
        for p in pairs
    ]
    return table(title, ["before", "now", "video_id", "title", "video_id", "title"], rows)


def _neighbours_table(example: Example, compared: ComparedGenerations) -> Any:
    """The nearest of one video side by side; those in common have a mark."""
    titles = compared.titles
    common = {match.video_id for match in example.old} & {match.video_id for match in example.new}

    def cells(match: Match) -> list[str]:
        mark = "=" if match.video_id in common else ""
        return [f"{match.score:.3f}", mark, titles[match.video_id] or match.video_id]

    rows = [[*cells(old), *cells(new)] for old, new in zip(example.old, example.new, strict=True)]
    title = f"Nearest to {titles[example.video_id]!r} ({example.video_id}): {example.share:.0%} in common"
    return table(title, ["cosine", "", "serves", "cosine", "", "compared"], rows)
