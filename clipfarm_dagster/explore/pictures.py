"""One picture of a manifest for Dagster's UI: how vectors lie, how much is done, norms, and pace.

Drawn on a clear background in colours of middling lightness, so that it reads on white and on dark.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#7e8692"
ACCENT = "#26948c"
GROUPS = ("#3b82c4", "#e07b39", "#4a9d5b", "#c24d6a", "#8a63c9", "#b5892f", "#2fa3b5", "#9a6a4f")
OTHER = "#a3a9b2"
_STATUS = {
    "success": "#4a9d5b",
    "not yet": "#c3c8cf",
    "missing_raw_object": "#b5892f",
    "fail": "#e07b39",
    "invalid_raw_object": "#c24d6a",
    "quarantined": "#8a63c9",
}
_SHORT = {"success": "done", "missing_raw_object": "no raw object", "invalid_raw_object": "invalid"}
_STEPS = (
    (60, "a minute"),
    (3600, "an hour"),
    (86_400, "a day"),
    (7 * 86_400, "a week"),
    (30 * 86_400, "in 30 days"),
)
_BARS = 60


@dataclass(frozen=True)
class Overview:
    """What the picture shows."""

    title: str
    places: np.ndarray[Any, Any]
    """Of the vectors that are drawn, on a plane: (vectors, 2)."""
    groups: Sequence[str]
    """What each of them is coloured by; empty for none."""
    total: int
    """How many vectors there are, drawn or not."""
    coverage: Mapping[str, Mapping[str, int]]
    """Videos by status, for each stage; a further status is shown in grey."""
    norms: np.ndarray[Any, Any]
    """L2 norms of vectors."""
    processed_at: np.ndarray[Any, Any]
    """When vectors were made, in seconds since 1970; may be empty."""


def overview_picture(overview: Overview) -> bytes:
    """The picture as PNG, 1000 × 620 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.2), dpi=100, layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplot_mosaic(
        [["places", "coverage"], ["places", "norms"], ["places", "pace"]], width_ratios=[1.55, 1]
    )
    for axes in panels.values():
        plain(axes)
    _draw_places(panels["places"], overview)
    _draw_coverage(panels["coverage"], overview.coverage)
    _draw_norms(panels["norms"], overview.norms)
    _draw_pace(panels["pace"], overview.processed_at)
    return png_of(figure)


def png_of(figure: Figure) -> bytes:
    """A figure on a clear background as PNG."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="png", transparent=True)
    return _quantized(file)


def plain(axes: Axes) -> None:
    """Give axes the look that they all have."""
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def without_scales(axes: Axes) -> None:
    """Leave out ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def titled(axes: Axes, text: str) -> None:
    """Give axes a title."""
    axes.set_title(text, loc="left", fontsize=10, color=INK, fontweight="bold")


def _draw_places(axes: Axes, overview: Overview) -> None:
    count = len(overview.places)
    shown = "" if count == overview.total else f", {count:,} of them drawn"
    titled(axes, f"{overview.title}: {overview.total:,} vectors{shown}")
    without_scales(axes)
    if not count:
        say(axes, "nothing is done yet")
        return
    colours = group_colours(overview.groups)
    scatter(axes, overview.places, overview.groups, colours)
    axes.set_xlabel("first and second principal component", color=INK, fontsize=8, loc="left")
    draw_legend(axes, overview.groups, colours)


def group_colours(groups: Sequence[str]) -> dict[str, str]:
    """Colours of the most frequent groups."""
    frequent = Counter(group for group in groups if group).most_common(len(GROUPS))
    return dict(zip([name for name, _ in frequent], GROUPS, strict=False))


def scatter(
    axes: Axes, places: np.ndarray[Any, Any], groups: Sequence[str], colours: Mapping[str, str]
) -> None:
    """Draw vectors on a plane, (vectors, 2), in the colours of their groups; `groups` may be empty."""
    import numpy as np

    count = len(places)
    order = np.random.default_rng(0).permutation(count)  # no group lies on top of all others
    axes.scatter(
        places[order, 0],
        places[order, 1],
        s=float(np.clip(6000 / count, 1.5, 60)),
        c=[colours.get(groups[i], OTHER) if colours else ACCENT for i in order],
        alpha=float(np.clip(4000 / count, 0.25, 0.9)),
        linewidths=0,
    )
    axes.margins(0.06)


def draw_legend(axes: Axes, groups: Sequence[str], colours: Mapping[str, str]) -> None:
    """Say below the axes which colour is which query."""
    if not colours:
        return
    entries = [(_short(name), colour) for name, colour in colours.items()]
    if any(group not in colours for group in groups):
        entries.append(("others", OTHER))
    handles = [axes.scatter([], [], s=28, c=colour, linewidths=0, label=name) for name, colour in entries]
    axes.legend(
        handles=handles,
        title="query",
        title_fontsize=8,
        fontsize=8,
        labelcolor=INK,
        frameon=False,
        loc="upper left",
        alignment="left",
        bbox_to_anchor=(-0.02, -0.04),
        ncols=min(3, len(entries)),
        handletextpad=0.2,
    ).get_title().set_color(INK)


def _draw_coverage(axes: Axes, coverage: Mapping[str, Mapping[str, int]]) -> None:
    stages = list(coverage)
    done = sum(counts.get("success", 0) for counts in coverage.values())
    total = sum(sum(counts.values()) for counts in coverage.values())
    titled(axes, f"Done: {done / total:.1%}" if total else "Done")
    if not total:
        axes.set_axis_off()
        say(axes, "no videos")
        return
    statuses = [*_STATUS, *sorted({s for counts in coverage.values() for s in counts} - set(_STATUS))]
    left = [0.0] * len(stages)
    for status in statuses:
        widths = [coverage[stage].get(status, 0) for stage in stages]
        if any(widths):
            label = f"{_SHORT.get(status, status)} {sum(widths):,}"
            axes.barh(stages, widths, left=left, color=_STATUS.get(status, OTHER), height=0.6, label=label)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    shown = sum(any(coverage[stage].get(status, 0) for stage in stages) for status in statuses)
    lines = -(-shown // 3)
    axes.set_xlim(0, max(left))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    whole_numbers(axes, "x")
    axes.set_ylim(len(stages) - 0.4, -0.7 - 0.3 * len(stages) * (1 + lines))
    axes.legend(
        fontsize=7, labelcolor=INK, frameon=False, loc="upper left", ncols=3, handlelength=0.8,
        borderaxespad=0, columnspacing=0.9, handletextpad=0.4,
    )  # fmt: skip


def _draw_norms(axes: Axes, norms: np.ndarray[Any, Any]) -> None:
    import numpy as np

    titled(axes, "L2 norms, less 1, in millionths")
    if not len(norms):
        axes.set_axis_off()
        say(axes, "no vectors")
        return
    away = (norms - 1) * 1e6
    reach = max(float(np.abs(away).max()) * 1.1, 0.2)
    axes.hist(away, bins=np.linspace(-reach, reach, 42).tolist(), color=ACCENT)
    axes.set_xlim(-reach, reach)
    axes.locator_params(axis="x", nbins=5)
    whole_numbers(axes, "y")


def _draw_pace(axes: Axes, moments: np.ndarray[Any, Any]) -> None:
    import matplotlib.dates as mdates
    import numpy as np

    if not len(moments):
        titled(axes, "Pace")
        axes.set_axis_off()
        say(axes, "no vectors")
        return
    first, last = float(moments.min()), float(moments.max())
    step, unit = next(
        ((seconds, name) for seconds, name in _STEPS if (last - first) / seconds <= _BARS), _STEPS[-1]
    )
    titled(axes, f"Vectors {unit} (UTC)")
    start = first // step * step
    edges = np.arange(start, max(last, start + 9 * step) + 2 * step, step)
    edges = edges[: 10 * _BARS]
    days = edges / 86_400
    counts, _ = np.histogram(moments, bins=edges)
    axes.bar(days[:-1], counts, width=np.diff(days) * 0.92, align="edge", color=ACCENT)
    axes.set_xlim(days[0], days[-1])
    locator = mdates.AutoDateLocator(minticks=2, maxticks=5)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.xaxis.get_offset_text().set(color=INK, fontsize=8)
    whole_numbers(axes, "y")


def whole_numbers(axes: Axes, which: str) -> None:
    """Mark few and whole numbers on the axis `x` or `y`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(4, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def say(axes: Axes, text: str) -> None:
    """Write a text in the middle of empty axes."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK, fontsize=9)


def _short(text: str) -> str:
    text = " ".join(text.replace("$", r"\$").split())  # matplotlib reads formulas between dollar signs
    return text if len(text) <= 24 else text[:23] + "…"


def _quantized(png: io.BytesIO) -> bytes:
    """The PNG with at most 256 colours: a third of the size, for the picture is kept in the event log."""
    from PIL import Image

    file = io.BytesIO()
    Image.open(png).quantize(256, method=Image.Quantize.FASTOCTREE).save(file, "PNG", optimize=True)
    return file.getvalue()
