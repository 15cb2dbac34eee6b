"""Cars and a tram in a street."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from clipfarm_dagster.demo.scenes.canvas import Canvas, Colour, add, glow, gradient, paste, skyline, sprite
from clipfarm_dagster.demo.scenes.scene import Scene
from clipfarm_dagster.demo.scenes.sound import levelled, noise, strike


def traffic(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    sky: list[Colour],
    wall: Colour,
    lit: float,
    rain: bool = False,
    tram: bool = False,
) -> Scene:
    """A street seen from its side, cars going both ways in front of a row of buildings."""
    ground = int(height * 0.66)
    dark = lit > 0.3
    backdrop = gradient(width, height, sky)
    skyline(backdrop, rng, ground, wall, lit)
    road = gradient(
        width, height - ground, [(74, 74, 82), (44, 44, 52)] if not dark else [(40, 40, 52), (22, 22, 30)]
    )
    if rain:
        mirrored = backdrop[:ground][::-1][: height - ground]
        soft = Image.fromarray(mirrored.astype(np.uint8)).filter(ImageFilter.BoxBlur(3))
        road[: len(mirrored)] += 0.45 * np.asarray(soft, dtype=np.float32)
    backdrop[ground:] = road
    backdrop[ground : ground + 4] = (96, 94, 98)
    lanes = [ground + (height - ground) * share for share in (0.3, 0.74)]
    size = min(width, height) / 240

    def car_paint(colour: Colour) -> Callable[[ImageDraw.ImageDraw, float], None]:
        def paint(draw: ImageDraw.ImageDraw, scale: float) -> None:
            s = scale * size
            shade = tuple(int(c * 0.8) for c in colour)
            draw.polygon([(13 * s, 12 * s), (20 * s, 2 * s), (42 * s, 2 * s), (51 * s, 12 * s)], fill=shade)
            draw.polygon(
                [(17 * s, 12 * s), (22 * s, 4 * s), (30 * s, 4 * s), (30 * s, 12 * s)], fill=(170, 205, 225)
            )
            draw.polygon(
                [(32 * s, 12 * s), (32 * s, 4 * s), (41 * s, 4 * s), (47 * s, 12 * s)], fill=(170, 205, 225)
            )
            draw.rounded_rectangle((1 * s, 11 * s, 63 * s, 24 * s), 5 * s, fill=colour)
            for x in (15, 49):
                draw.ellipse(((x - 6) * s, 18 * s, (x + 6) * s, 30 * s), fill=(20, 20, 24))
                draw.ellipse(((x - 3) * s, 21 * s, (x + 3) * s, 27 * s), fill=(150, 150, 155))

        return paint

    def tram_paint(draw: ImageDraw.ImageDraw, scale: float) -> None:
        s = scale * size
        draw.rounded_rectangle((1 * s, 4 * s, 179 * s, 48 * s), 8 * s, fill=(196, 52, 46))
        draw.rectangle((1 * s, 32 * s, 179 * s, 38 * s), fill=(245, 232, 205))
        for x in range(10, 170, 23):
            draw.rounded_rectangle((x * s, 10 * s, (x + 17) * s, 28 * s), 2 * s, fill=(255, 232, 170))
        for x in (24, 42, 138, 156):
            draw.ellipse(((x - 6) * s, 42 * s, (x + 6) * s, 54 * s), fill=(25, 25, 30))

    paints: list[Colour] = [
        (206, 66, 58),
        (62, 116, 196),
        (238, 196, 72),
        (236, 236, 232),
        (72, 160, 110),
        (120, 90, 160),
    ]
    cars = [
        (
            lane,
            float(rng.uniform(0, 2 * width)),
            float(rng.uniform(70, 130) * size),
            sprite(64 * size, 31 * size, car_paint(paints[int(rng.integers(len(paints)))])),
        )
        for lane in (0, 1)
        for _ in range(3)
    ]
    wagon = sprite(180 * size, 55 * size, tram_paint)
    head, tail = glow(int(22 * size), (255, 240, 190), 0.9), glow(int(10 * size), (255, 40, 30), 1.0)
    drops = rng.uniform(0, 1, (110, 2)) * (width, height)
    span = width + 160 * size

    def draw(t: float) -> Canvas:
        canvas = backdrop.copy()
        dash = (np.arange(width) // 14) % 2 == 0
        middle = int((lanes[0] + lanes[1]) / 2 + 8 * size)
        canvas[middle : middle + 2, dash] = (200, 196, 180)
        if tram:
            paste(canvas, wagon, (0.85 * width - 55 * size * t), ground - 14 * size)
        for lane, start, speed, car in cars:
            way = 1 if lane else -1
            x = (start + way * speed * t) % span - 80 * size
            y = lanes[lane]
            paste(canvas, car if way > 0 else car[:, ::-1], x, y)
            if dark:
                add(canvas, head, x + way * 36 * size, y + 2 * size)
                add(canvas, tail, x - way * 31 * size, y + 2 * size)
        if rain:
            fall = (drops + np.array([-40, 420]) * t) % (width, height)
            image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
            pen = ImageDraw.Draw(image)
            for x, y in fall:
                pen.line((x, y, x - 1, y + 9), fill=(168, 182, 205))
            canvas = np.asarray(image, dtype=np.float32)
        return canvas

    def sound(seconds: float, rate: int) -> NDArray[np.float32]:
        count = int(seconds * rate)
        time = np.arange(count) / rate
        street = 0.5 * noise(rng, count, rate, 40, 400).astype(np.float64)
        for lane, start, speed, _ in cars:
            way = 1 if lane else -1
            offset = ((start + way * speed * time) % span - 80 * size - width / 2) / (width / 3)
            pitch = rng.uniform(70, 110)
            engine = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in (1, 2, 3, 5))
            street += 0.5 * np.exp(-(offset**2)) * (engine + 0.6 * noise(rng, count, rate, 300, 1500))
        if rain:
            street += 0.5 * noise(rng, count, rate, 1500, 8000)
        horn_or_bell = (2200, 3310) if tram else (415, 523)
        for at in rng.uniform(0.4, max(seconds - 0.6, 0.5), 2):
            since = time - at
            if tram:
                street += 1.6 * sum(strike(time, at, pitch, 7) for pitch in horn_or_bell)
            else:
                on = (since > 0) & (since < 0.3)
                street += 0.8 * on * sum(np.sign(np.sin(2 * np.pi * pitch * time)) for pitch in horn_or_bell)
        return levelled(street)

    return Scene(draw, sound)
