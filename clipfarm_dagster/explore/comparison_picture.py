"""One picture of two sets of vectors of the same videos, side by side, and of how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.explore.comparison import Comparison, Duplicates, Overlap, draw
from clipfarm_dagster.explore.pictures import (
    ACCENT,
    INK,
    draw_legend,
    group_colours,
    plain,
    png_of,
    say,
    scatter,
    titled,
    whole_numbers,
    without_scales,
)
from clipfarm_dagster.explore.projection import Plane
from clipfarm_dagster.manifests.vector_table import iter_vectors, vectors_of
from clipfarm_dagster.store.local_copies import LocalFile

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

DRAWN = 4096
"""Most videos that are drawn."""

_CHANGES = {"kept": "#4a9d5b", "lost": "#c24d6a", "gained": "#3b82c4"}


@dataclass(frozen=True)
class SideBySide:
    """The same videos on a plane through the old vectors, and on one through the new ones."""

    video_ids: Sequence[str]
    old: np.ndarray[Any, Any]
    """float32 (videos, 2)"""
    new: np.ndarray[Any, Any]
    """As `old`, turned and reflected so that the videos lie as near to their old places as they can."""


def project_both(old: LocalFile, new: LocalFile, *, at_most: int = DRAWN) -> SideBySide:
    """Project the videos that two files of vectors share, or some of them, the same each time.

    Raises:
        ManifestError: a file cannot be read.
    """
    import numpy as np

    ids = [{video_id for some, _ in iter_vectors(file) for video_id in some} for file in (old, new)]
    drawn = draw(ids[0] & ids[1], at_most)
    if not drawn:
        return SideBySide([], np.empty((0, 2), dtype=np.float32), np.empty((0, 2), dtype=np.float32))
    places = []
    for file in (old, new):
        found = vectors_of(file, drawn)
        matrix = np.stack([found[video_id] for video_id in drawn])
        places.append(Plane.fit(matrix).project(matrix))
    before, after = places
    left, _, right = np.linalg.svd(after.T @ before)  # orthogonal Procrustes; both are centred
    return SideBySide(drawn, before, (after @ left @ right).astype(np.float32))


def comparison_picture(
    comparison: Comparison,
    both: SideBySide,
    groups: Sequence[str],
    *,
    old_title: str = "old",
    new_title: str = "new",
) -> bytes:
    """The picture as PNG, 1200 × 560 pixels.

    Args:
        groups: what each video of `both` is coloured by, such as its query; empty for none.
        old_title: what the old set is called.
        new_title: what the new set is called.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(wspace=0.05, hspace=0.06)
    figure = Figure(figsize=(12, 5.6), dpi=100, layout=layout)
    figure.patch.set_alpha(0)
    panels = figure.subplot_mosaic(
        [["old", "new", "overlap"], ["old", "new", "duplicates"]],
        width_ratios=[1.2, 1.2, 1],
        height_ratios=[1.5, 1],
    )
    for axes in panels.values():
        plain(axes)
    colours = group_colours(groups)
    drawn, covered = len(both.video_ids), f"{comparison.coverage:.1%} of the old videos"
    for name, title, places, vectors, more in (
        ("old", old_title, both.old, comparison.old, f"; {drawn:,} of {comparison.shared:,} shared drawn"),
        ("new", new_title, both.new, comparison.new, f"; {covered}; turned to match"),
    ):
        axes = panels[name]
        titled(axes, title)
        _caption(axes, f"{vectors.count:,} vectors of {vectors.dimension} numbers{more}")
        without_scales(axes)
        if len(places):
            scatter(axes, places, groups, colours)
        else:
            say(axes, "no shared videos")
    draw_legend(panels["old"], groups, colours)
    _draw_overlap(panels["overlap"], comparison.overlap)
    _draw_duplicates(panels["duplicates"], comparison.duplicates)
    return png_of(figure)


def _caption(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, color=INK, fontsize=8, loc="left")


def _draw_overlap(axes: Axes, overlap: Overlap) -> None:
    import numpy as np

    if overlap.mean is None:
        titled(axes, "Neighbours in common")
        axes.set_axis_off()
        say(axes, "too few shared videos")
        return
    titled(axes, f"Neighbours in common: {overlap.mean:.0%}")
    edges = np.linspace(-0.05, 1.05, 12)
    axes.hist(list(overlap.shares.values()), bins=edges.tolist(), color=ACCENT, rwidth=0.92)
    axes.axvline(overlap.mean, color="#e07b39", linewidth=1.5, linestyle=(0, (4, 3)))
    axes.set_xlim(-0.07, 1.07)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    whole_numbers(axes, "y")
    _caption(axes, f"of the nearest to each of {len(overlap.shares):,} videos\ndashed: their mean")


def _draw_duplicates(axes: Axes, duplicates: Duplicates) -> None:
    counts = {name: getattr(duplicates, name) for name in _CHANGES}
    more = "" if duplicates.complete else ", the nearest of them"
    titled(axes, f"Pairs of cosine {duplicates.threshold:g} or more{more}")
    bars = axes.barh(list(counts), list(counts.values()), color=list(_CHANGES.values()), height=0.62)
    labels = [f"{count:,}" for count in counts.values()]
    axes.bar_label(bars, labels=labels, padding=4, color=INK, fontsize=8)
    axes.set_xlim(0, max(*counts.values(), 1) * 1.15)
    axes.invert_yaxis()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
