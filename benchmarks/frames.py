"""How much decoding `sample_frames` saves over a full decode: `make bench-frames`.

First 45-second clips of 720x1280 at 30 frames a second, H.264 with B-frames, by length of GOP; then every
clip of the shared media (where they are) and a selection of the generated test clips, to see that planning
never costs more than it saves. Both ways take turns in one process; times are the median of the repeats,
in CPU seconds, so that neighbours on the machine count little. Every comparison checks bit-identity.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from clipfarm_dagster.errors import InvalidRawObjectError  # noqa: E402
from clipfarm_dagster.modalities.video.frames import sample_frames, sample_frames_sequential  # noqa: E402
from workbench.clips import CLIPS, encode  # noqa: E402

WIDTH, HEIGHT, RATE, SECONDS = 720, 1280, 30, 45
TARGETS = {60: "at most 30% of the frames, at least 2.3x", 250: "at least 1.5x"}


def moving_scene() -> Iterator[np.ndarray]:
    """Frames of a camera that wanders over a soft texture, with sensor noise: uint8 RGB."""
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 256, (HEIGHT // 8 + 40, WIDTH // 8 + 40, 3), dtype=np.uint8)
    coarse = av.VideoFrame.from_ndarray(grid, format="rgb24")
    scene = coarse.reformat(WIDTH + 320, HEIGHT + 320, interpolation="BICUBIC").to_ndarray()
    for index in range(RATE * SECONDS):
        x, y = int(150 + 140 * np.sin(index / 23)), int(150 + 140 * np.cos(index / 31))
        noise = rng.integers(-6, 7, (HEIGHT // 2, WIDTH // 2, 1), dtype=np.int16)
        rgb = scene[y : y + HEIGHT, x : x + WIDTH] + noise.repeat(2, axis=0).repeat(2, axis=1)
        yield rgb.clip(0, 255).astype(np.uint8)


def long_clip(gop: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        stream.options = {"preset": "veryfast", "crf": "26", "keyint_min": str(gop), "sc_threshold": "0"}
        for rgb in moving_scene():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def compare(data: bytes, least_repeats: int, wall_seconds: float = 0) -> tuple[float, float, float]:
    """Share of a full decode's frames; median CPU seconds planned, and in full, of repeats over a time."""
    ways = [sample_frames_sequential, sample_frames]
    seconds: dict[object, list[float]] = {way: [] for way in ways}
    end = time.monotonic() + wall_seconds
    while len(seconds[sample_frames]) < least_repeats or time.monotonic() < end:
        results = {}
        random.shuffle(ways)  # neither is always the one that finds warm caches
        for sample in ways:
            begin = time.process_time()
            results[sample] = sample(data, unknown_count="count")
            seconds[sample].append(time.process_time() - begin)
        full, planned = results[sample_frames_sequential], results[sample_frames]
        if planned.indices != full.indices or not np.array_equal(planned.frames, full.frames):
            raise AssertionError("the planned frames are not those of a full decode")
    medians = [float(np.median(seconds[way])) for way in (sample_frames, sample_frames_sequential)]
    return planned.decoded / full.decoded, medians[0], medians[1]


def small_clips(every: int) -> Iterator[tuple[str, bytes]]:
    shared = Path(os.environ.get("SHARED_FOLDER", ROOT.parent / "shared"))
    for path in sorted((shared / "media").glob("*.*")):
        if path.suffix in (".mp4", ".webm"):
            yield path.name, path.read_bytes()
    for spec in CLIPS[::every]:
        for larger in (1, 2):  # the second just above `LEAST_PLANNED_PIXELS`
            scaled = replace(spec, width=spec.width * larger, height=spec.height * larger)
            yield f"{scaled.width}x{scaled.height} {scaled}", encode(scaled)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="repeat each small clip for so long")
    parser.add_argument("--every", type=int, default=5, help="take each n-th generated clip")
    options = parser.parse_args()

    print(f"{SECONDS} s of {WIDTH}x{HEIGHT} H.264, {RATE} frames a second, with B-frames")
    for gop, target in TARGETS.items():
        share, planned, full = compare(long_clip(gop), 4)
        print(
            f"  GOP {gop:3}: {share:5.1%} of the frames, {full / planned:.2f}x as fast as a full decode "
            f"({planned:.2f} s, {full:.2f} s); wanted: {target}"
        )

    ratios = []
    for name, data in small_clips(options.every):
        try:
            share, planned, full = compare(data, 20, options.seconds)
        except InvalidRawObjectError:
            continue
        ratios.append((planned / full, share, planned, name))
    ratios.sort(reverse=True)
    times, shares = [r[0] for r in ratios], [r[1] for r in ratios]
    print(
        f"{len(ratios)} small clips: median {np.median(times):.2f} of a full decode's time, "
        f"{np.mean(shares):.0%} of its frames on average; the slowest (wanted: at most 1.05):"
    )
    for ratio, share, planned, name in ratios[:8]:
        print(f"  {ratio:.3f} of the time, {share:4.0%} of the frames, {planned * 1000:6.1f} ms  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
