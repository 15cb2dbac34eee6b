"""Waves under a sun."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from clipfarm_dagster.demo.scenes.canvas import Canvas, Colour, add, glow, gradient, paste, sprite
from clipfarm_dagster.demo.scenes.scene import Scene
from clipfarm_dagster.demo.scenes.sound import levelled, noise


def ocean(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    sky: list[Colour],
    sea: tuple[Colour, Colour],
    sun: Colour,
    swell: float,
    overcast: bool = False,
    beach: bool = False,
    boat: bool = False,
) -> Scene:
    """Waves rolling towards the camera under a sun or moon."""
    horizon = int(height * 0.42)
    sun_x, sun_y = width * rng.uniform(0.35, 0.65), horizon * 0.62
    backdrop = np.empty((height, width, 3), np.float32)
    backdrop[:horizon] = gradient(width, horizon, sky)
    add(backdrop[:horizon], glow(int(width * 0.45), sun, 0.55), sun_x, sun_y)
    if not overcast:
        add(backdrop[:horizon], np.clip(glow(int(width * 0.075), sun, 9), 0, 255), sun_x, sun_y)

    near = (np.arange(height - horizon, dtype=np.float32)[:, None] + 1) / (height - horizon)
    away = 1 / (near + 0.04)  # perspective: distance grows as rows rise to the horizon
    across = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / height * away
    waves = [
        (
            rng.uniform(-0.6, 0.6) * k * across + k * rng.uniform(0.8, 1.2) * away + rng.uniform(0, 6.3),
            2.2 * np.sqrt(k),
            k**-0.55 / (1 + (away * k / 50) ** 2),  # far waves are finer than a pixel, so they fade
        )
        for k in (1.6, 2.8, 5.0, 9.0, 17.0, 31.0, 57.0)
    ]
    deep, light = (np.array(colour, np.float32) for colour in sea)
    glitter = np.exp(-(((np.arange(width)[None, :] - sun_x) / (width * (0.05 + 0.16 * near))) ** 2))
    columns = np.linspace(0, 2 * np.pi, width)
    sand = np.array((226, 200, 150), np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]

    def boat_paint(draw: ImageDraw.ImageDraw, s: float) -> None:
        draw.polygon(
            [(1 * s, 23 * s), (27 * s, 23 * s), (23 * s, 29 * s), (6 * s, 29 * s)], fill=(40, 30, 45)
        )
        draw.polygon([(14 * s, 1 * s), (14 * s, 22 * s), (25 * s, 22 * s)], fill=(250, 240, 225))
        draw.polygon([(12 * s, 5 * s), (12 * s, 22 * s), (4 * s, 22 * s)], fill=(235, 215, 195))

    sail = sprite(28, 30, boat_paint)

    def draw(t: float) -> Canvas:
        surface = np.zeros((height - horizon, width), np.float32)
        for phase, speed, size in waves:
            surface += size * np.sin(phase + np.float32(speed * t))
        shade = np.clip(0.42 + 0.34 * swell * surface, 0, 1)[..., None]
        canvas = backdrop.copy()
        water = canvas[horizon:]
        water[:] = deep + (light - deep) * shade
        sparkle = glitter * np.clip(0.3 + 0.6 * surface, 0, 1) * (0.25 if overcast else 1.0)
        water += np.array(sun, np.float32) * sparkle[..., None].astype(np.float32)
        foam = np.clip((surface - 1.5 / swell) * 2.0, 0, 0.8)[..., None]
        water += (245 - water) * foam
        if boat:
            bob = 1.5 * np.sin(2.1 * t)
            paste(canvas, sail, width * 0.2 + 9 * t, horizon - 8 + bob)
        if beach:
            reach = 0.84 + 0.055 * np.sin(1.9 * t) + 0.012 * np.sin(5 * columns + 1.3 * t)
            edge = ((reach + 0.006 * np.sin(17 * columns - 2 * t)) * height)[None, :].astype(np.float32)
            dry = np.clip((rows - edge) / (0.09 * height), 0, 1)[..., None]
            shore = np.clip(rows - edge, 0, 1)[..., None]
            canvas += (sand * (0.72 + 0.28 * dry) - canvas) * shore
            lace = np.exp(-(((rows - edge) / 3.5) ** 2))[..., None]
            canvas += (252 - canvas) * lace
        return canvas

    def sound(seconds: float, rate: int) -> NDArray[np.float32]:
        count = int(seconds * rate)
        time = np.arange(count) / rate
        roll = (0.5 + 0.5 * np.sin(1.9 * time - 1.0)) ** 2
        surf = noise(rng, count, rate, 250, 3500) * (0.15 + roll)
        return levelled(surf + 0.7 * swell * noise(rng, count, rate, 40, 180) * (0.4 + roll))

    return Scene(draw, sound)
