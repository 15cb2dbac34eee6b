"""The comparisons, one asset a modality: what would change if the vectors of another model served."""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import MigrationError
from clipfarm_dagster.explore.comparison import PairChange
from clipfarm_dagster.explore.generations import (
    NEIGHBOUR_COLUMNS,
    ComparedGenerations,
    compare_generations,
    generations_picture,
    neighbour_rows,
    summary_lines,
)
from clipfarm_dagster.maintenance.generations import other_generation
from clipfarm_dagster.modalities.previews import data_uri_markdown
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus
from clipfarm_dagster.stages import Stage

_EXAMPLES = ("video_id", "title", "in_common", "old_title", "old_cosine", "new_title", "new_cosine")
"""Columns of `NEIGHBOUR_COLUMNS` that the page has room for."""


def comparison_assets(names: CorpusNames) -> list[dg.AssetsDefinition]:
    """One asset a modality."""
    return [_comparison_asset(names, stage) for stage in Stage]


def _comparison_asset(names: CorpusNames, stage: Stage) -> dg.AssetsDefinition:
    @dg.asset(
        key=names.comparison(stage),
        deps=[names.embedding(stage), names.candidate(stage)],
        group_name=names.group("candidates"),
        description=(
            f"The {stage} vectors of the model that the settings ask for beside those that serve; after a"
            " change of model, those that served before. Its metadata has what both have in common, a picture"
            " and examples. Without another model there is nothing to compare."
        ),
        kinds={"python", "numpy"},
        tags={"clipfarm/stage": str(stage)},
        output_required=False,
        io_manager_key=names.resource(Resource.VECTORS),
        required_resource_keys=names.resources(*CORPUS),
    )
    def comparison(context: dg.AssetExecutionContext) -> Iterator[dg.Output[None]]:
        corpus = take_corpus(context.resources, names)
        try:
            generation = other_generation(corpus, stage)
        except MigrationError as error:
            context.log.info(f"there is nothing to compare: {error}")
            return
        compared = compare_generations(corpus, stage, generation)
        for line in summary_lines(compared):
            context.log.info(line)
        # an output would record the metadata twice, once where erasing a video could not find its title
        context.log_event(
            dg.AssetMaterialization(context.asset_key, metadata=_metadata(corpus, stage, compared))
        )
        yield from ()

    return comparison


def _metadata(corpus: Corpus, stage: Stage, compared: ComparedGenerations) -> dict[str, Any]:
    comparison, coverage = compared.comparison, compared.coverage
    overlap, duplicates = comparison.overlap, comparison.duplicates
    picture = data_uri_markdown(
        generations_picture(corpus, compared),
        f"{stage} vectors of two models on a plane, neighbours in common and near duplicates",
    )
    examples = [row for one in comparison.examples for row in neighbour_rows(one, compared.titles)]
    metadata: dict[str, Any] = {
        "comparison": dg.MetadataValue.md(picture),
        "summary": dg.MetadataValue.md("\n".join(f"- {line}" for line in summary_lines(compared))),
        "serving": f"{compared.old.contract.model_name} ({compared.old.contract.id})",
        "compared": f"{compared.new.contract.model_name} ({compared.new.contract.id})",
        "served": coverage.served,
        "covered": coverage.covered,
        "coverage": coverage.share,
        **{str(cover): count for cover, count in coverage.counts.items()},
        "pairs_kept": duplicates.kept,
        "pairs_lost": duplicates.lost,
        "pairs_gained": duplicates.gained,
    }
    if overlap.mean is not None:
        metadata["neighbours_in_common"] = round(overlap.mean, 4)
    if examples:
        rows = [dict(zip(NEIGHBOUR_COLUMNS, row, strict=True)) for row in examples]
        metadata["neighbours"] = _table([{name: row[name] for name in _EXAMPLES} for row in rows])
    for name, pairs in (("lost", duplicates.best_lost), ("gained", duplicates.best_gained)):
        if pairs:
            metadata[f"{name}_pairs"] = _table(_pair_rows(pairs, compared))
    return metadata


def _pair_rows(
    pairs: Sequence[PairChange], compared: ComparedGenerations
) -> list[dict[str, str | int | float]]:
    return [
        {
            "video_id": pair.first,
            "title": compared.titles[pair.first],
            "other_video_id": pair.second,
            "other_title": compared.titles[pair.second],
            "old_cosine": round(pair.old_score, 4),
            "new_cosine": round(pair.new_score, 4),
        }
        for pair in pairs
    ]


def _table(rows: Sequence[dict[str, str | int | float]]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
