"""Bouncing balls and a Newton's cradle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clipfarm_dagster.demo.scenes.canvas import Canvas, Colour, gradient, paste
from clipfarm_dagster.demo.scenes.scene import Scene
from clipfarm_dagster.demo.scenes.sound import levelled, noise, strike


def balls(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    paper: list[Colour],
    count: int,
    cradle: bool = False,
) -> Scene:
    """Bouncing balls, computed with gravity and a coefficient of restitution; or a Newton's cradle."""
    floor, gravity, bounce = height * 0.86, 1.6 * height, 0.86
    colours: list[Colour] = [
        (232, 78, 64),
        (44, 132, 208),
        (250, 184, 48),
        (60, 168, 112),
        (150, 92, 190),
        (240, 120, 160),
    ]
    backdrop = gradient(width, height, paper)
    backdrop[int(floor) :] = gradient(width, height - int(floor), [(168, 150, 130), (122, 106, 90)])
    backdrop[:: height // 8, :] *= 0.94
    backdrop[:, :: height // 8] *= 0.94

    def shaded(radius: int, colour: Colour) -> Canvas:
        """A lit sphere (Lambert's cosine law and a highlight) with a smooth edge."""
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1] / np.float64(radius)
        z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
        facing = np.clip(-0.5 * x - 0.62 * y + 0.6 * z, 0, 1)
        lit = np.array(colour) * (0.35 + 0.75 * facing[..., None]) + 200 * facing[..., None] ** 24
        edge = np.clip((1 - np.hypot(x, y)) * radius + 0.5, 0, 1)
        return np.dstack([np.clip(lit, 0, 255), edge]).astype(np.float32)

    def shadow(radius: int) -> Canvas:
        y, x = np.mgrid[-radius // 3 : radius // 3 + 1, -radius : radius + 1]
        dark = np.clip(1 - np.hypot(x / radius, y / (radius / 3)), 0, 1) * 0.5
        return np.dstack([np.full((*dark.shape, 3), 30.0), dark]).astype(np.float32)

    step = 1 / 240
    unit = min(width, height)
    hits: list[tuple[float, float]] = []  # (seconds, pitch)
    paths: list[tuple[int, Canvas, Canvas, NDArray[np.float64]]] = []
    for number in range(0 if cradle else count):
        radius = int(unit * (0.095 if count == 1 else rng.uniform(0.05, 0.085)))
        position = np.array(
            [width * (0.12 if count == 1 else rng.uniform(0.15, 0.85)), height * rng.uniform(0.12, 0.3)]
        )
        speed = np.array([width * (0.2 if count == 1 else rng.uniform(-0.6, 0.6)), 0.0])
        track = []
        for tick in range(int(6 / step)):
            speed[1] += gravity * step
            position = position + speed * step
            if position[1] > floor - radius and speed[1] > 0:
                position[1] = floor - radius
                if speed[1] > 0.15 * height:
                    hits.append((tick * step, 5200 / radius))
                speed[1] *= -bounce
            if not radius < position[0] < width - radius:
                position[0] = min(max(position[0], radius), width - radius)
                speed[0] *= -1
                hits.append((tick * step, 6200 / radius))
            track.append(position.copy())
        colour = colours[(number + int(rng.integers(6)) * (count == 1)) % len(colours)]
        paths.append((radius, shaded(radius, colour), shadow(int(radius * 1.3)), np.array(track)))

    bob_radius, string = int(unit * 0.07), height * 0.5
    steel = shaded(bob_radius, (176, 186, 200))
    under_bob = shadow(int(bob_radius * 1.2))
    pace = np.pi / 0.7  # a swing out and back lasts 0.7 s
    if cradle:
        hits = [(0.35 + 0.7 * n, 2600.0) for n in range(9)]

    def draw_cradle(t: float) -> Canvas:
        canvas = backdrop.copy()
        top = height * 0.2
        swing = 0.62 * np.cos(pace * t)
        bobs = []
        for number in range(5):
            hook = width / 2 + (number - 2) * 2 * bob_radius
            angle = min(swing, 0) if number == 0 else max(swing, 0) if number == 4 else 0.0
            bobs.append((hook, hook + string * np.sin(angle), top + string * np.cos(angle)))
        image = Image.fromarray(canvas.astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for hook, x, y in bobs:
            pen.line((hook, top, x, y), fill=(90, 84, 80), width=1)
        left, right = bobs[0][0] - 2 * bob_radius, bobs[4][0] + 2 * bob_radius
        for x in (left, right):
            pen.rectangle((x - 2, top - 2, x + 2, floor + 4), fill=(70, 62, 58))
        pen.rounded_rectangle((left - 2, top - 5, right + 2, top + 1), 3, fill=(92, 82, 76))
        canvas = np.asarray(image, dtype=np.float32).copy()
        for _, x, y in bobs:
            paste(canvas, under_bob, x, floor + 6)
            paste(canvas, steel, x, y)
        return canvas

    def draw_balls(t: float) -> Canvas:
        canvas = backdrop.copy()
        now = int(t / step)
        for radius, _, dark, track in paths:
            if floor - track[now][1] < height * 0.75:
                paste(canvas, dark, track[now][0], floor + radius * 0.25)
        for _, sphere, _, track in paths:
            if count == 1:  # a strobe's traces show the parabola
                for past in range(now % 36, now, 36):
                    ghost = sphere.copy()
                    ghost[..., 3] *= 0.22
                    paste(canvas, ghost, *track[past])
            paste(canvas, sphere, *track[now])
        return canvas

    def sound(seconds: float, rate: int) -> NDArray[np.float32]:
        time = np.arange(int(seconds * rate)) / rate
        room = 0.01 * noise(rng, len(time), rate, 60, 2000).astype(np.float64)
        for at, pitch in hits:
            if at < seconds:
                decay = 60 if cradle else 22
                room += strike(time, at, pitch, decay) + 0.5 * strike(time, at, pitch * 2.3, 2 * decay)
        return levelled(room)

    return Scene(draw_cradle if cradle else draw_balls, sound)
