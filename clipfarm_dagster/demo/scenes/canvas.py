"""Drawing on float32 canvases `(height, width, 3)` of 0–255, with numpy and Pillow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Canvas = NDArray[np.float32]
Colour = tuple[int, int, int]


def gradient(width: int, height: int, colours: list[Colour]) -> Canvas:
    """Vertical gradient through evenly spaced colours, top first."""
    stops = np.linspace(0, 1, len(colours))
    rows = np.linspace(0, 1, height)
    column = np.stack([np.interp(rows, stops, channel) for channel in zip(*colours, strict=True)], axis=1)
    return np.repeat(column[:, None, :], width, axis=1).astype(np.float32)


def glow(radius: int, colour: Colour, strength: float = 1.0, stretch: float = 1.0) -> Canvas:
    """A soft spot of light to add to a canvas; `stretch` > 1 makes it taller than wide."""
    y, x = np.mgrid[-int(radius * stretch) : int(radius * stretch) + 1, -radius : radius + 1]
    falloff = np.clip(1 - np.hypot(x, y / stretch) / radius, 0, 1) ** 2
    light: Canvas = (falloff[..., None] * np.array(colour) * strength).astype(np.float32)
    return light


def _window(canvas: Canvas, shape: tuple[int, ...], x: float, y: float) -> tuple[Canvas, tuple[slice, slice]]:
    """The part of the canvas under a patch centred on (x, y), and the part of the patch that is on it."""
    left, top = round(x) - shape[1] // 2, round(y) - shape[0] // 2
    x0, x1 = max(left, 0), max(min(left + shape[1], canvas.shape[1]), 0)
    y0, y1 = max(top, 0), max(min(top + shape[0], canvas.shape[0]), 0)
    inside = slice(y0 - top, max(y1, y0) - top), slice(x0 - left, max(x1, x0) - left)
    return canvas[y0 : max(y1, y0), x0 : max(x1, x0)], inside


def add(canvas: Canvas, light: Canvas, x: float, y: float, strength: float = 1.0) -> None:
    """Add light, centred on (x, y)."""
    under, inside = _window(canvas, light.shape, x, y)
    under += light[inside] * np.float32(strength)


def paste(canvas: Canvas, sprite: Canvas, x: float, y: float) -> None:
    """Lay an RGBA sprite (alpha 0–1), centred on (x, y)."""
    under, inside = _window(canvas, sprite.shape, x, y)
    colour, alpha = sprite[inside][..., :3], sprite[inside][..., 3:]
    under += (colour - under) * alpha


def sprite(width: float, height: float, paint: Callable[[ImageDraw.ImageDraw, float], None]) -> Canvas:
    """An RGBA sprite with smooth edges: painted four times as large (the scale is passed), then reduced."""
    scale = 4
    size = max(round(width), 1), max(round(height), 1)
    image = Image.new("RGBA", (size[0] * scale, size[1] * scale))
    paint(ImageDraw.Draw(image), scale)
    pixels = np.asarray(image.resize(size, Image.Resampling.BOX), dtype=np.float32).copy()
    pixels[..., 3] /= 255
    return pixels


def skyline(canvas: Canvas, rng: np.random.Generator, ground: int, wall: Colour, lit: float) -> None:
    """Draw a row of buildings that stand on row `ground`; `lit` is the share of windows with light."""
    width = canvas.shape[1]
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for layer, shade in ((0, 0.65), (1, 1.0)):
        x = -int(rng.integers(0, 20))
        while x < width:
            breadth = int(rng.integers(width // 12, width // 6))
            tall = int(ground * rng.uniform(0.25, 0.5) * (1.25 if layer == 0 else 0.85))
            haze = canvas[max(ground - tall, 0), min(max(x, 0), width - 1)]
            colour = tuple(int(c) for c in np.array(wall) * shade + haze * (1 - shade))
            draw.rectangle((x, ground - tall, x + breadth - 2, ground), fill=colour)
            for wy in range(ground - tall + 5, ground - 6, 7):
                for wx in range(x + 4, x + breadth - 6, 6):
                    if rng.random() < lit * shade:
                        glass = (255, int(rng.integers(190, 230)), int(rng.integers(110, 170)))
                        draw.rectangle((wx, wy, wx + 2, wy + 3), fill=glass)
            x += breadth
    canvas[:] = np.asarray(image, dtype=np.float32)
