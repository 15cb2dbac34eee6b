"""Fireworks and a campfire at night."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from clipfarm_dagster.demo.scenes.canvas import Canvas, Colour, add, glow, gradient, skyline
from clipfarm_dagster.demo.scenes.scene import Scene
from clipfarm_dagster.demo.scenes.sound import levelled, noise, strike


def fireworks(
    width: int, height: int, rng: np.random.Generator, *, sky: list[Colour], lake: bool = False
) -> Scene:
    """Shells that rise, burst and fall in glowing sparks over a dark town, mirrored by a lake if asked."""
    ground = int(height * (0.66 if lake else 0.9))
    backdrop = gradient(width, height, sky)
    skyline(backdrop, rng, ground, (14, 14, 26), 0.12)
    if lake:
        backdrop[ground:] = (10, 14, 30)
    else:
        backdrop[ground:] = (8, 8, 14)
    hues: list[Colour] = [(255, 120, 90), (120, 190, 255), (255, 214, 110), (150, 255, 170), (230, 140, 255)]
    shells = []
    for number in range(7):
        centre = np.array([rng.uniform(0.18, 0.82) * width, rng.uniform(0.14, 0.42) * ground])
        angle, reach = rng.uniform(0, 2 * np.pi, 90), rng.beta(5, 1.6, 90) * 0.36 * min(width, height)
        sparks = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]
        shells.append(
            (0.25 + 0.62 * number + rng.uniform(-0.1, 0.1), centre, sparks, hues[number % len(hues)])
        )
    flashes = {hue: glow(int(min(width, height) * 0.45), hue, 0.3) for hue in hues}

    def draw(t: float) -> Canvas:
        light = np.zeros((height, width, 3), np.float32)
        for burst, centre, sparks, hue in shells:
            since = t - burst
            if -0.5 < since <= 0:  # the rocket on its way up
                for lag in range(5):
                    rise = np.clip((0.5 + since - 0.02 * lag) / 0.5, 0, 1) ** 0.6
                    y, x = ground + (centre[1] - ground) * rise, centre[0]
                    light[int(np.clip(y, 0, height - 1)), int(x)] += np.array((255, 210, 150)) / (1 + lag)
            if not 0 < since < 2.4:
                continue
            if since < 0.25:
                add(light, flashes[hue], centre[0], centre[1], 1 - since / 0.25)
            for lag in range(9):
                age = since - 0.022 * lag
                if age <= 0:
                    break
                # Drag makes speed die away exponentially; gravity pulls the slow sparks down.
                at = centre + sparks * (1 - np.exp(-3.2 * age)) + np.array([0, 0.045 * height * age**2])
                column, row = at.astype(int).T
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < ground)
                power = np.exp(-1.35 * age) * (1 - lag / 9) * min(0.2 + 4 * age, 1.9)
                np.add.at(light, (row[inside], column[inside]), np.array(hue, np.float32) * power)
        dots = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
        halo = np.asarray(dots.filter(ImageFilter.BoxBlur(3)), dtype=np.float32)
        crisp = np.asarray(dots.filter(ImageFilter.BoxBlur(0.6)), dtype=np.float32)
        canvas: Canvas = backdrop + light * 0.5 + crisp * 1.5 + halo * 1.6
        if lake:
            depth = height - ground
            shake = np.round(2.5 * np.sin(np.arange(depth) * 0.9 + 5 * t)).astype(int)
            source = canvas[ground - 1 - np.arange(depth) * ground // depth]
            for row in range(depth):
                canvas[ground + row] = 0.5 * np.roll(source[row], shake[row], axis=0) + (6, 9, 20)
        return canvas

    def sound(seconds: float, rate: int) -> NDArray[np.float32]:
        count = int(seconds * rate)
        time = np.arange(count) / rate
        boom = noise(rng, count, rate, 30, 260).astype(np.float64)
        crackle = noise(rng, count, rate, 2000, 9000) * (rng.random(count) < 0.01)
        night = 0.01 * noise(rng, count, rate, 100, 1000).astype(np.float64)
        for burst, *_ in shells:
            since = time - burst
            night += (since > 0) * np.exp(-np.clip(since, 0, None) * 6) * boom
            night += 1.2 * (since > 0.25) * np.exp(-np.clip(since, 0, None) * 2.2) * crackle
            night += 0.1 * ((since > -0.5) & (since < 0)) * np.sin(2 * np.pi * (1800 + 900 * since) * since)
        return levelled(night)

    return Scene(draw, sound)


def campfire(width: int, height: int, rng: np.random.Generator) -> Scene:
    """Flames, sparks and logs before dark pines under the stars."""
    ground = int(height * 0.8)
    backdrop = gradient(width, height, [(8, 12, 34), (16, 22, 52), (34, 30, 52)])
    for x, y in rng.uniform(0, 1, (60, 2)) * (width, ground * 0.6):
        add(backdrop, glow(2, (255, 255, 255), rng.uniform(0.2, 0.8)), x, y)
    image = Image.fromarray(np.clip(backdrop, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for x in np.arange(-0.05, 1.1, 0.11) * width:
        tall, half = ground * rng.uniform(0.35, 0.6), width * 0.075
        for tier in range(4):
            top, base = ground - tall * (1 - 0.2 * tier), ground - tall * (0.62 - 0.2 * tier)
            broad = half * (0.45 + 0.2 * tier)
            pen.polygon([(x, top), (x - broad, base), (x + broad, base)], fill=(9, 17, 22))
    pen.rectangle((0, ground, width, height), fill=(30, 22, 20))
    fire_x, fire_y, size = width / 2, height * 0.88, min(width, height)
    for tilt in (-1, 1):
        reach = 0.22 * size
        pen.line(
            (fire_x - tilt * reach, fire_y + 0.045 * size, fire_x + tilt * reach * 0.8, fire_y - 0.02 * size),
            fill=(92, 56, 34),
            width=int(0.055 * size),
        )
    backdrop = np.asarray(image, dtype=np.float32).copy()
    warmth = glow(int(size * 0.75), (255, 120, 40), 0.45)
    colours: list[Colour] = [(255, 214, 110), (255, 160, 50), (255, 104, 24), (190, 44, 14)]
    tongues = [
        glow(max(int(size * r), 2), c, 0.34, 1.7)
        for r, c in zip((0.1, 0.1, 0.085, 0.06), colours, strict=True)
    ]
    ember = glow(2, (255, 190, 90), 1.3)
    flames = rng.uniform(0, 1, (70, 3))
    embers = rng.uniform(0, 1, (26, 3))

    def draw(t: float) -> Canvas:
        canvas = backdrop.copy()
        flicker = 0.85 + 0.1 * np.sin(13 * t) + 0.08 * np.sin(7.3 * t + 1)
        add(canvas, warmth, fire_x, fire_y, flicker)
        for place, phase, speed in flames:
            age = (phase + t * (0.8 + 0.7 * speed)) % 1
            x = (
                fire_x
                + (place - 0.5) * 0.34 * size * (1 - 0.75 * age)
                + 0.02 * size * np.sin(9 * t + 20 * phase)
            )
            y = fire_y - age * size * (0.5 - 0.5 * abs(place - 0.5))
            add(canvas, tongues[min(int(age * 4), 3)], x, y, (1 - age) * flicker)
        for place, phase, speed in embers:
            age = (phase + t * (0.25 + 0.3 * speed)) % 1
            x = fire_x + (place - 0.5) * 0.5 * size * (0.4 + age) + 0.03 * size * np.sin(4 * t + 30 * phase)
            add(canvas, ember, x, fire_y - 0.15 * size - age * 0.8 * fire_y, 1 - age)
        return canvas

    def sound(seconds: float, rate: int) -> NDArray[np.float32]:
        count = int(seconds * rate)
        time = np.arange(count) / rate
        fire = 0.35 * noise(rng, count, rate, 50, 350).astype(np.float64)
        for at in rng.uniform(0, seconds, int(14 * seconds)):
            fire += rng.exponential(0.9) * strike(time, at, rng.uniform(900, 3800), rng.uniform(150, 500))
        return levelled(fire)

    return Scene(draw, sound)
