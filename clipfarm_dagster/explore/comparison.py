"""How two sets of vectors of the same videos differ, as those of two models: neighbours, duplicates, norms.

Cosines of two models cannot be compared with each other, but what is near to what can: for a sample of
videos, how many of the nearest among all shared videos are the same in both sets.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.explore.search import DUPLICATE_COSINE, Match, Pair, near_duplicates
from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors, vectors_of
from clipfarm_dagster.store.local_copies import LocalFile

if TYPE_CHECKING:
    import numpy as np

SAMPLE = 200
"""Videos whose neighbours are compared by default."""

NEIGHBOURS = 10
"""How many nearest are compared of each."""

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

_PAIRS_COMPARED = 100_000
_PAIRS_NAMED = 5
_DIFFERING, _AGREEING = 3, 2
"""Examples: of how many videos whose neighbours differ most, and of how many whose agree most."""
_NEIGHBOURS_NAMED = 5
_SCORE_STEPS = 10**6
"""Steps of a cosine that are told apart: two equal vectors may differ by a rounding error."""


@dataclass(frozen=True)
class VectorSet:
    """What one file holds."""

    count: int
    dimension: int
    min_norm: float | None
    """Least L2 norm; None where there are no vectors."""
    max_norm: float | None


@dataclass(frozen=True)
class Overlap:
    """What share of their nearest neighbours videos have in common in both sets, from 0 to 1."""

    shares: Mapping[str, float]
    """By `video_id` of the sample; empty where fewer than two videos are shared."""
    mean: float | None
    quantiles: Mapping[float, float]
    """At `QUANTILES`; empty as `shares`."""


@dataclass(frozen=True)
class PairChange:
    """A pair of videos with its cosine in both sets."""

    first: str
    second: str
    old_score: float
    new_score: float


@dataclass(frozen=True)
class Duplicates:
    """Near duplicates among shared videos."""

    threshold: float
    kept: int
    lost: int
    gained: int
    best_lost: Sequence[PairChange]
    """Those that were nearest before."""
    best_gained: Sequence[PairChange]
    """Those that are nearest now."""
    complete: bool
    """Whether all pairs were compared; where there are very many, only the nearest are."""


@dataclass(frozen=True)
class Example:
    """The nearest of one video in both sets, among shared videos, best first."""

    video_id: str
    share: float
    old: Sequence[Match]
    new: Sequence[Match]


@dataclass(frozen=True)
class Comparison:
    """How a new set of vectors differs from an old one."""

    old: VectorSet
    new: VectorSet
    shared: int
    """Videos that both have."""
    coverage: float
    """Share of the old set's videos that the new one has."""
    overlap: Overlap
    duplicates: Duplicates
    sampled: Sequence[Example]
    """The videos of the sample, each with all neighbours that were compared, those that differ most first."""

    @property
    def examples(self) -> list[Example]:
        """Those that a person should look at, each with its nearest neighbours: first some that differ most,
        then some that agree most."""
        differing, others = self.sampled[:_DIFFERING], self.sampled[_DIFFERING:]
        return [
            replace(one, old=one.old[:_NEIGHBOURS_NAMED], new=one.new[:_NEIGHBOURS_NAMED])
            for one in (*differing, *others[::-1][:_AGREEING])
        ]


def compare(
    old: LocalFile,
    new: LocalFile,
    *,
    sample: int = SAMPLE,
    neighbours: int = NEIGHBOURS,
    threshold: float = DUPLICATE_COSINE,
) -> Comparison:
    """Compare two files of vectors (`vector_table.iter_vectors`), whose dimensions may differ.

    Equal files give equal answers: the sample is drawn by a hash of the ids.

    Args:
        sample: number of videos whose neighbours are compared.
        neighbours: how many nearest of each.
        threshold: cosine from which two videos are near duplicates.

    Raises:
        ManifestError: a file cannot be read.
    """
    old_set, old_ids = _measured(old)
    new_set, new_ids = _measured(new)
    shared = sorted(old_ids & new_ids)
    drawn = draw(shared, sample)
    old_nearest = _nearest_of(old, drawn, shared, neighbours)
    new_nearest = _nearest_of(new, drawn, shared, neighbours)
    shares = {
        video_id: _share(old_nearest[video_id], new_nearest[video_id])
        for video_id in drawn
        if len(shared) > 1
    }
    return Comparison(
        old=old_set,
        new=new_set,
        shared=len(shared),
        coverage=len(shared) / len(old_ids) if old_ids else 1.0,
        overlap=_overlap(shares),
        duplicates=_duplicates(old, new, frozenset(shared), threshold),
        sampled=[
            Example(video_id, shares[video_id], old_nearest[video_id], new_nearest[video_id])
            for video_id in sorted(shares, key=lambda video_id: shares[video_id])
        ],
    )


def draw(video_ids: Collection[str], count: int) -> list[str]:
    """Some of many videos, the same each time: those whose ids have the least hashes."""
    return heapq.nsmallest(count, video_ids, key=lambda i: hashlib.sha256(i.encode()).digest())


def _measured(file: LocalFile) -> tuple[VectorSet, set[str]]:
    import numpy as np

    count, dimension = count_vectors(file)
    least, most = np.inf, -np.inf
    all_ids: set[str] = set()
    for ids, vectors in iter_vectors(file):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        least, most = min(least, float(norms.min())), max(most, float(norms.max()))
        all_ids.update(ids)
    return VectorSet(count, dimension, least if count else None, most if count else None), all_ids


def _nearest_of(
    file: LocalFile, queries: Sequence[str], shared: Sequence[str], count: int
) -> dict[str, list[Match]]:
    """The nearest shared videos of each of some videos, without itself, best first; exact.

    A cosine and the video's number among all shared ones make one integer, whose order is that of the
    cosines, and for equal ones that of the ids, however the files are sorted.
    """
    import numpy as np

    if not queries:
        return {}
    number = {video_id: position for position, video_id in enumerate(shared)}
    found = vectors_of(file, queries)
    matrix = np.stack([found[video_id] for video_id in queries])
    own = np.array([number[video_id] for video_id in queries])[:, None]
    none = np.iinfo(np.int64).min
    best = np.full((len(queries), count), none)
    for ids, vectors in iter_vectors(file):
        numbers = np.array([number.get(video_id, -1) for video_id in ids])[None, :]
        steps = np.rint(matrix @ vectors.T * _SCORE_STEPS).astype(np.int64)
        ranked = np.where((numbers < 0) | (numbers == own), none, (steps << 32) + len(shared) - numbers)
        best = np.partition(np.hstack([best, ranked]), -count, axis=1)[:, -count:]
    return {
        video_id: [
            Match(shared[len(shared) - (rank & 0xFFFFFFFF)], (rank >> 32) / _SCORE_STEPS)
            for rank in sorted(row, reverse=True)
            if rank != none
        ]
        for video_id, row in zip(queries, best.tolist(), strict=True)
    }


def _share(old: Sequence[Match], new: Sequence[Match]) -> float:
    """The share of neighbours that are the same; both have as many."""
    return len({match.video_id for match in old} & {match.video_id for match in new}) / len(old)


def _overlap(shares: Mapping[str, float]) -> Overlap:
    import numpy as np

    if not shares:
        return Overlap({}, None, {})
    values = np.array(list(shares.values()))
    quantiles = np.quantile(values, QUANTILES).tolist()
    return Overlap(shares, float(values.mean()), dict(zip(QUANTILES, quantiles, strict=True)))


def _duplicates(old: LocalFile, new: LocalFile, shared: Collection[str], threshold: float) -> Duplicates:
    before, all_before = _pairs(old, shared, threshold)
    after, all_after = _pairs(new, shared, threshold)
    lost = heapq.nlargest(_PAIRS_NAMED, before.keys() - after.keys(), key=lambda pair: (before[pair], pair))
    gained = heapq.nlargest(_PAIRS_NAMED, after.keys() - before.keys(), key=lambda pair: (after[pair], pair))
    named = {video_id for pair in lost + gained for video_id in pair}
    changes = list(_changes(lost + gained, vectors_of(old, named), vectors_of(new, named)))
    kept = len(before.keys() & after.keys())
    return Duplicates(
        threshold=threshold,
        kept=kept,
        lost=len(before) - kept,
        gained=len(after) - kept,
        best_lost=changes[: len(lost)],
        best_gained=changes[len(lost) :],
        complete=all_before and all_after,
    )


def _pairs(
    file: LocalFile, shared: Collection[str], threshold: float
) -> tuple[dict[tuple[str, str], float], bool]:
    """Cosines of near duplicates among shared videos, by their ids, and whether these are all."""
    listed: list[Pair]
    listed, count = near_duplicates(file, threshold, limit=_PAIRS_COMPARED)
    pairs = {
        (min(p.first, p.second), max(p.first, p.second)): p.score
        for p in listed
        if p.first in shared and p.second in shared
    }
    return pairs, count == len(listed)


def _changes(
    pairs: Sequence[tuple[str, str]],
    old: Mapping[str, np.ndarray[Any, Any]],
    new: Mapping[str, np.ndarray[Any, Any]],
) -> Iterator[PairChange]:
    for first, second in pairs:
        yield PairChange(first, second, float(old[first] @ old[second]), float(new[first] @ new[second]))
