"""How much decoding `sample_frames` saves over a full decode: `make bench-frames`.

First 45-second clips of 720x1280 at 30 frames a second, H.264 with B-frames, by length of GOP; then every
clip of the shared media (where they are) and a selection of the generated test clips, to see that planning
never costs more than it saves. Both ways take turns in one process; times are the least of the repeats,
in CPU seconds, so that neighbours on the machine don't count. Every comparison checks bit-identity.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from clipfarm_dagster.embedding.frames import sample_frames, sample_frames_sequential  # noqa: E402
from clipfarm_dagster.errors import InvalidRawObjectError  # noqa: E402
from clipfarm_dagster_tests.embedding.clips import CLIPS, encode  # noqa: E402

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


def compare(data: bytes, repeats: int) -> tuple[float, float, float]:
    """Share of a full decode's frames; least CPU seconds planned, and in full."""
    seconds: dict[object, float] = {}
    ways = [sample_frames_sequential, sample_frames]
    for repeat in range(repeats):
        results = {}
        for sample in ways if repeat % 2 else ways[::-1]:  # neither is always the one that finds warm caches
            begin = time.process_time()
            results[sample] = sample(data, unknown_count="count")
            seconds[sample] = min(time.process_time() - begin, seconds.get(sample, np.inf))
        full, planned = (results[sample] for sample in ways)
        if planned.indices != full.indices or not np.array_equal(planned.frames, full.frames):
            raise AssertionError("the planned frames are not those of a full decode")
    return planned.decoded / full.decoded, seconds[sample_frames], seconds[sample_frames_sequential]


def small_clips(every: int) -> Iterator[tuple[str, bytes]]:
    shared = Path(os.environ.get("SHARED_FOLDER", ROOT.parent / "shared"))
    for path in sorted((shared / "media").glob("*.*")):
        if path.suffix in (".mp4", ".webm"):
            yield path.name, path.read_bytes()
    for spec in CLIPS[::every]:
        yield str(spec), encode(spec)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4, help="of each long clip")
    parser.add_argument("--small-repeats", type=int, default=100, help="of each small clip")
    parser.add_argument("--every", type=int, default=5, help="take each n-th generated clip")
    options = parser.parse_args()

    print(f"{SECONDS} s of {WIDTH}x{HEIGHT} H.264, {RATE} frames a second, with B-frames")
    for gop, target in TARGETS.items():
        share, planned, full = compare(long_clip(gop), options.repeats)
        print(
            f"  GOP {gop:3}: {share:5.1%} of the frames, {full / planned:.2f}x as fast as a full decode "
            f"({planned:.2f} s, {full:.2f} s); wanted: {target}"
        )

    ratios = []
    for name, data in small_clips(options.every):
        try:
            share, planned, full = compare(data, options.small_repeats)
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
