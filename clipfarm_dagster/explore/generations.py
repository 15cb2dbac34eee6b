"""Compares a generation with the one that serves, with what a person needs to judge the difference."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipfarm_dagster.canary.baseline import Step
from clipfarm_dagster.canary.record import CanaryRecord, canary_record, differing_steps
from clipfarm_dagster.catalog.metadata import metadata_columns
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import MigrationError
from clipfarm_dagster.explore.comparison import SAMPLE, Comparison, Example, compare
from clipfarm_dagster.explore.comparison_picture import comparison_picture, project_both
from clipfarm_dagster.manifests.vectors import ModalityVectors, modality_vectors
from clipfarm_dagster.planning.coverage import Coverage
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.whole_files import written_whole
from clipfarm_dagster.vectors.contract import Contract


@dataclass(frozen=True)
class Canaries:
    """What is recorded of the canary under both contracts."""

    old: CanaryRecord | None
    new: CanaryRecord | None

    @property
    def differing(self) -> list[Step] | None:
        """In which steps the two treat the same input in different ways; None unless both are recorded."""
        if self.old is None or self.new is None:
            return None
        return differing_steps(self.old.baseline, self.new.baseline)


@dataclass(frozen=True)
class ComparedGenerations:
    """A generation beside the one that serves."""

    old: ModalityVectors
    """Of the one that serves."""
    new: ModalityVectors
    coverage: Coverage
    """What the new one has of what is served."""
    comparison: Comparison
    canaries: Canaries
    titles: Mapping[str, str]
    """Of all videos that the comparison names."""


def compare_generations(
    corpus: Corpus, stage: Stage, generation: str, *, sample: int = SAMPLE
) -> ComparedGenerations:
    """Compare a generation with the one that serves; it may lack some videos.

    Args:
        generation: its contract id.
        sample: number of videos whose neighbours are compared.

    Raises:
        MigrationError: it serves.
        ManifestError: one of the two has no vectors, some are being written or lost, or this machine's file
            of them is damaged.
        BaselineError: what is recorded of a canary cannot be read.
        MetadataError: the metadata cannot be read.
        LedgerError: the ledger cannot be read, or does not know the generation.
        StoreError: the store cannot be read.
    """
    with corpus.stage(stage, generation) as opened:
        if opened.serves:
            raise MigrationError(f"generation {generation} serves the {stage} vectors; name another one")
        coverage = opened.coverage(corpus.latest_rows())
    old = modality_vectors(corpus, stage)
    new = modality_vectors(corpus, stage, generation=generation, allow_partial=True)
    comparison = compare(old.file, new.file, sample=sample)
    named = set(_named(comparison))
    rows = corpus.rows(sorted(named))
    return ComparedGenerations(
        old=old,
        new=new,
        coverage=coverage,
        comparison=comparison,
        canaries=Canaries(
            canary_record(old.contract, corpus.store, corpus.keys),
            canary_record(new.contract, corpus.store, corpus.keys),
        ),
        titles={video_id: rows.get(video_id, {}).get("title", "") for video_id in named},
    )


def generations_picture(corpus: Corpus, compared: ComparedGenerations) -> bytes:
    """The two generations side by side, as PNG; videos have the colour of their query.

    Raises:
        MetadataError: the metadata cannot be read.
        ManifestError: a file of vectors cannot be read.
    """
    both = project_both(compared.old.file, compared.new.file)
    groups = metadata_columns(corpus.latest_rows(), list(both.video_ids), ["query"])["query"]
    return comparison_picture(
        compared.comparison,
        both,
        groups,
        old_title=f"serves: {_name(compared.old.contract)}",
        new_title=_name(compared.new.contract),
    )


def summary_lines(compared: ComparedGenerations) -> list[str]:
    """What a person should know first of a comparison, a sentence or two each."""
    comparison, coverage = compared.comparison, compared.coverage
    overlap, duplicates = comparison.overlap, comparison.duplicates
    share = f"{coverage.share:.1%}"
    lines = [f"It has {coverage.covered:,} of the {coverage.served:,} vectors that serve ({share})."]
    if overlap.mean is None:
        lines.append("Too few videos are in both for their neighbours to be compared.")
    else:
        lines.append(
            f"Of the nearest neighbours of {len(overlap.shares):,} videos {overlap.mean:.0%} are the same on"
            f" average; for half of the videos {overlap.quantiles[0.5]:.0%} or more."
        )
    among = "" if duplicates.complete else ", among the nearest"
    lines.append(
        f"Near duplicates (cosine {duplicates.threshold:g} or more{among}): {duplicates.kept:,} pairs kept,"
        f" {duplicates.lost:,} lost, {duplicates.gained:,} gained."
    )
    return [*lines, _canary_line(compared)]


def _canary_line(compared: ComparedGenerations) -> str:
    canary, differing = compared.canaries.new, compared.canaries.differing
    if canary is None:
        return "Its canary: none is recorded, since nothing was embedded by this model here."
    agree = (
        "1 environment agrees" if canary.environments == 1 else f"{canary.environments} environments agree"
    )
    line = f"Its canary: recorded at {canary.baseline.made_at}; {agree} with it"
    if differing is None:
        return f"{line}. There is none of what serves to compare it with."
    steps = ", ".join(step.value for step in differing) or "nothing"
    return f"{line}. On the way to the vector it differs from what serves in: {steps}."


def write_neighbours(compared: ComparedGenerations, output: Path) -> int:
    """Write the neighbours of all sampled videos as CSV, which appears once it is whole: a row for each rank
    of each video, those whose neighbours differ most first. Returns the number of videos.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(output) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(NEIGHBOUR_COLUMNS)
        for example in compared.comparison.sampled:
            writer.writerows(neighbour_rows(example, compared.titles))
    return len(compared.comparison.sampled)


NEIGHBOUR_COLUMNS = (
    "video_id",
    "title",
    "in_common",
    "rank",
    "old_neighbour",
    "old_title",
    "old_cosine",
    "new_neighbour",
    "new_title",
    "new_cosine",
)


def neighbour_rows(example: Example, titles: Mapping[str, str]) -> list[Sequence[str | int | float]]:
    """A video's neighbours in both generations, side by side, best first: `NEIGHBOUR_COLUMNS`."""
    return [
        (
            example.video_id,
            titles[example.video_id],
            round(example.share, 3),
            rank,
            old.video_id,
            titles[old.video_id],
            round(old.score, 4),
            new.video_id,
            titles[new.video_id],
            round(new.score, 4),
        )
        for rank, (old, new) in enumerate(zip(example.old, example.new, strict=True), start=1)
    ]


def _named(comparison: Comparison) -> Iterator[str]:
    """All videos that a comparison names."""
    for example in comparison.sampled:
        yield example.video_id
        yield from (match.video_id for match in (*example.old, *example.new))
    for pair in (*comparison.duplicates.best_lost, *comparison.duplicates.best_gained):
        yield from (pair.first, pair.second)


def _name(contract: Contract) -> str:
    """A contract as a heading."""
    return f"{contract.model_name.rpartition('/')[2]} ({contract.id[:8]})"
