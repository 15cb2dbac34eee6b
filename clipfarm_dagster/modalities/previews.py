"""What a person sees of an input in Dagster's UI: sampled frames on one sheet, sound as a waveform, text."""

from __future__ import annotations

import base64
import io
import itertools
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SHEET_BYTES = 40_000
"""A preview is kept in Dagster's event log, so it stays small."""

PREVIEW_CHARACTERS = 4_000
"""The same for text."""

_WAVE = (38, 148, 140, 255)
_CENTRE = (38, 148, 140, 110)
_AXIS = (126, 134, 146, 255)
"""Colours of middling lightness, which read on white and on dark."""

_TICK_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
"""Seconds between two ticks of the time axis."""


_GAP, _COLUMNS, _SHEET_WIDTH, _TALLEST = 4, 8, 800, 180


def contact_sheet(
    frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    *,
    columns: int = _COLUMNS,
    width: int = _SHEET_WIDTH,
) -> bytes:
    """Frames in reading order on one WebP picture of at most `MAX_SHEET_BYTES`, with clear gaps between them.

    Args:
        frames: RGB, uint8 `(height, width, 3)` each, all of one size, at least one.
        columns: frames in a row; fewer frames make a narrower sheet.
        width: pixels across a full row. Tall frames get smaller tiles, so that a row is at most 180 high.

    Raises:
        ValueError: there are no frames.
    """
    return sheet_of_tiles([tile(frame, columns=columns, width=width) for frame in frames], columns=columns)


def tile(
    frame: NDArray[np.uint8], *, columns: int = _COLUMNS, width: int = _SHEET_WIDTH
) -> NDArray[np.uint8]:
    """One frame of a contact sheet at its size there: RGB, uint8 `(height, width, 3)`, as it is given."""
    import numpy as np
    from PIL import Image

    height, breadth = frame.shape[:2]
    shrink = min((width - _GAP * (columns - 1)) / columns / breadth, _TALLEST / height)
    size = max(round(breadth * shrink), 1), max(round(height * shrink), 1)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def sheet_of_tiles(tiles: Sequence[NDArray[np.uint8]], *, columns: int = _COLUMNS) -> bytes:
    """The contact sheet of frames of which `tile` has been taken.

    Raises:
        ValueError: there are no frames.
    """
    from PIL import Image

    if len(tiles) == 0:
        raise ValueError("a contact sheet needs at least one frame")
    high, broad = tiles[0].shape[:2]
    across = min(columns, len(tiles))
    down = -(-len(tiles) // columns)
    sheet = Image.new("RGBA", (across * (broad + _GAP) - _GAP, down * (high + _GAP) - _GAP))
    for number, picture in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(picture), (column * (broad + _GAP), row * (high + _GAP)))
    return _webp_within(sheet, MAX_SHEET_BYTES)


def _webp_within(picture: Any, limit: int) -> bytes:
    """The picture at the best quality that fits; at half the size where none does."""
    for quality in (80, 60, 40, 20):
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality, method=4)
        if file.tell() <= limit:
            return file.getvalue()
    return _webp_within(picture.reduce(2), limit)


def waveform_picture(samples: NDArray[np.float32], sample_rate: int) -> bytes:
    """The sound's envelope over an axis in seconds, as a PNG of 800 × 140 pixels with a clear background.

    Each column of pixels spans the least to the greatest sample of its stretch of time, so that no click is
    lost. A full-scale sample (±1) reaches the edge, and louder ones stop there; a sound that stays below a
    tenth of it is magnified ten times, and the axis says so.

    Args:
        samples: mono, float32 `(n,)`, within ±1; may be empty.
        sample_rate: samples a second.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    width, height, axis, finer = 800, 140, 24, 2
    middle, reach = (height - axis) // 2 * finer, ((height - axis) // 2 - 4) * finer
    seconds = len(samples) / sample_rate
    loudest = float(np.abs(samples).max()) if len(samples) else 0.0
    gain = 10 if 0 < loudest < 0.1 else 1

    image = Image.new("RGBA", (width * finer, height * finer))
    draw = ImageDraw.Draw(image)
    draw.line((0, middle, width * finer, middle), fill=_CENTRE, width=finer)
    edges = np.linspace(0, len(samples), width * finer + 1).astype(int)
    for x, (start, end) in enumerate(itertools.pairwise(edges)):
        stretch = np.clip(samples[start : end + 1] * gain, -1, 1)  # one further sample, to join the columns
        if len(stretch):
            top, bottom = (middle - round(float(v) * reach) for v in (stretch.max(), stretch.min()))
            draw.line((x, top, x, bottom), fill=_WAVE)

    font = ImageFont.load_default(11 * finer)
    ruler = (height - axis) * finer
    draw.line((0, ruler, width * finer, ruler), fill=_AXIS, width=finer)
    step = next((s for s in _TICK_STEPS if seconds / s <= 12), seconds / 12)
    length = f"{round(seconds, 2):g} s" if seconds >= 0.1 else f"{seconds * 1000:.3g} ms"
    notes = [length, f"{sample_rate:,} Hz"]
    notes += ["silent"] if loudest == 0 else [f"× {gain}"] if gain > 1 else []
    label = " · ".join(notes)
    free = width * finer - draw.textlength(label, font) - 14 * finer
    for number in range(int(seconds / step) + 1 if seconds else 1):
        at = number * step / seconds * width * finer if seconds else 0.0
        draw.line((at, ruler, at, ruler + 5 * finer), fill=_AXIS, width=finer)
        text = f"{number * step:g}"
        left = max(at - draw.textlength(text, font) / 2, 0)
        if left + draw.textlength(text, font) < free:
            draw.text((left, ruler + 7 * finer), text, fill=_AXIS, font=font)
    draw.text((width * finer - 2 * finer, ruler + 7 * finer), label, fill=_AXIS, font=font, anchor="ra")

    file = io.BytesIO()
    image.reduce(finer).quantize(32).save(file, "PNG", optimize=True)
    return file.getvalue()


def data_uri_markdown(image: bytes, alt: str) -> str:
    """A Markdown image that carries its own bytes, for metadata that Dagster's UI shows in place.

    Raises:
        ValueError: `image` is neither PNG, JPEG nor WebP.
    """
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif image.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    elif image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        kind = "webp"
    else:
        raise ValueError("a preview must be PNG, JPEG or WebP")
    words = "".join(" " if c in "[]\\\r\n" else c for c in alt)
    return f"![{words}](data:image/{kind};base64,{base64.b64encode(image).decode()})"


def quoted_markdown(text: str) -> str:
    """The first `PREVIEW_CHARACTERS` of a text as it is, for metadata that Dagster's UI shows; where that is
    not all, a line below says so."""
    shown = text[:PREVIEW_CHARACTERS]
    longest_run = max(map(len, re.findall("~+", shown)), default=0)
    fence = "~" * max(3, longest_run + 1)
    # Dagster's UI does not wrap what is fenced
    lines = [wrapped for line in shown.splitlines() for wrapped in textwrap.wrap(line, 76) or [""]]
    quoted = "\n".join([fence, *lines, fence])
    if len(text) > len(shown):
        quoted += f"\n\n… cut here: the first {len(shown):,} of {len(text):,} characters"
    return quoted
