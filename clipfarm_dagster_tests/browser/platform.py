"""A small corpus of real clips, and `clipfarm dev` over it: what the browser looks at."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import pytest

from clipfarm_dagster.cli.output import dagster_instance
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint, make_video_checkpoint, minilm_folder
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.settings import SETTINGS_FILE, load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.servers import clean_environment, clipfarm, serving


@dataclass(frozen=True)
class Clip:
    """One clip of the shared media as a crawler would have named it."""

    video_id: str
    video: str
    sound: str | None
    """File whose sound is the raw audio; `None` leaves the raw audio out."""
    title: str
    description: str
    query: str
    transcript: str

    @property
    def broken(self) -> bool:
        """Whether the video cannot be opened."""
        return self.video in ("truncated_half.mp4", "chunk_out_of_range.mp4")


CLIPS = (
    Clip(
        "mirror-inspection",
        "nasa_13013.mp4",
        "nasa_13013.mp4",
        "Inspecting a space telescope's mirror",
        "A technician with a lamp in front of the golden segments.",
        "nasa telescope mirror",
        "Every segment is looked at by hand before it is folded away.",
    ),
    Clip(
        "singing-bird",
        "bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4",
        "LJ050-0131.wav",
        "A bird sings its heart out",
        "From Big Buck Bunny: early morning, high up on a branch.",
        "animated bird song",
        "Some birds sing. This one performs.",
    ),
    Clip(
        "webcam-hello",
        "sample.mp4",
        "sample.mp4",
        "Saying hello from my desk",
        "First test of the new webcam.",
        "webcam test",
        "Hello, hello. Can you see me? I think it works.",
    ),
    Clip(
        "rooftop-crane",
        "hdr10-av1.mp4",
        "hdr10-av1.mp4",
        "Cloudy rooftops in HDR",
        "Straight from the phone, ten bits, upright.",
        "city rooftops crane",
        "They have been building that tower for three years now.",
    ),
    Clip(
        "evening-skyline",
        "sample_android_slow_motion.mp4",
        None,
        "Evening skyline in slow motion",
        "Seven frames of a setting sun.",
        "skyline sunset slow motion",
        "",
    ),
    Clip(
        "truncated-upload",
        "truncated_half.mp4",
        "3_george_0.wav",
        "Upload that broke off",
        "Half a file: the index was at the end.",
        "broken upload",
        "Three.",
    ),
    Clip(
        "damaged-index",
        "chunk_out_of_range.mp4",
        "LJ050-0131.wav",
        "File with a damaged index",
        "The chunk table points beyond the end.",
        "broken file",
        "The record of the chunk is out of range.",
    ),
)

LATE_CLIP = Clip(
    "portrait-late",
    "sample_portrait.mp4",
    "sample_portrait.mp4",
    "Portrait, a day later",
    "Delivered when everything else was done.",
    "portrait video",
    "Better late than never.",
)
"""A clip that arrives while the platform runs."""

_COLUMNS = ("video_id", "captured_at", "title", "description", "query")


class Platform:
    """A folder store with the clips, light models with random weights, and the server when it runs."""

    def __init__(self, home: Path, media: Path) -> None:
        self.home, self._media = home, media
        self.url = ""
        """The UI's address while the server runs."""
        self._rows: list[dict[str, str]] = []
        models = home / "models"
        make_video_checkpoint(models / "video")
        make_audio_checkpoint(models / "audio")
        lines = {
            "CLIPFARM_VIDEO_MODEL": models / "video",
            "CLIPFARM_AUDIO_MODEL": models / "audio",
            "CLIPFARM_TEXT_MODEL": minilm_folder(),
            "CLIPFARM_WORKERS": 2,
        }
        (home / SETTINGS_FILE).write_text("".join(f'{name}="{value}"\n' for name, value in lines.items()))
        self.corpus = Corpus.open(load_settings(home=home))
        for clip in CLIPS:
            self.deliver(clip)

    def deliver(self, clip: Clip) -> None:
        """Put a clip's raw artifacts into the store, and then its row into the metadata."""
        store, keys = self.corpus.store, self.corpus.keys
        store.put(keys.raw(Stage.VIDEO, clip.video_id), (self._media / clip.video).read_bytes())
        if clip.sound is not None:
            store.put(keys.raw(Stage.AUDIO, clip.video_id), _wav(self._media / clip.sound))
        transcript = json.dumps({"transcript": clip.transcript}).encode()
        store.put(keys.raw(Stage.TEXT, clip.video_id), transcript)
        self._append(clip.video_id, clip.title, clip.description, clip.query)

    def retitle(self, clip: Clip, title: str) -> None:
        """Append a later snapshot of a clip with another title."""
        self._append(clip.video_id, title, clip.description, clip.query)

    def _append(self, video_id: str, title: str, description: str, query: str) -> None:
        captured_at = f"2025-05-01T08:{len(self._rows):02d}:00Z"
        self._rows.append(
            dict(zip(_COLUMNS, (video_id, captured_at, title, description, query), strict=True))
        )
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        self.corpus.store.put(self.corpus.keys.metadata(), text.getvalue().encode())

    def add_partitions(self) -> None:
        """Add the partitions of all clips but the last, which is left to the sensor."""
        settings = self.corpus.settings
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DAGSTER_HOME", "")  # what it is set to here is undone, too
            with dagster_instance(settings) as instance:
                video_ids = [clip.video_id for clip in CLIPS[:-1]]
                instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, video_ids)

    def statuses(self, stage: Stage) -> dict[str, str]:
        """Ledger status by `video_id`."""
        return self._ledger_column(stage, "status")

    def versions(self, stage: Stage) -> dict[str, str]:
        """When each `video_id` was last processed."""
        return self._ledger_column(stage, "processed_at")

    def _ledger_column(self, stage: Stage, name: str) -> dict[str, str]:
        with self.corpus.ledger(stage) as ledger:
            table = ledger.columns(["video_id", name])
        return dict(zip(table["video_id"].to_pylist(), table[name].to_pylist(), strict=True))

    def sync(self, *stages: Stage) -> None:
        """`clipfarm sync` of some stages, of all by default."""
        options = [option for stage in stages for option in ("--stage", str(stage))]
        done = subprocess.run(
            [*clipfarm("sync"), *options, "--json"],
            env=clean_environment(self.home),
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):  # 1: some items failed, as they should
            raise RuntimeError(f"clipfarm sync: {done.stderr}")

    @contextmanager
    def serving(self) -> Iterator[None]:
        """`clipfarm dev` on a free port, until the block ends; nothing that it started is left."""
        with serving("dev", "/server_info", self.home) as server:
            self.url = server.url
            yield

    @contextmanager
    def serving_atlas(self) -> Iterator[str]:
        """`clipfarm atlas` on a free port, until the block ends; yields its address."""
        with serving("atlas", "/", self.home) as server:
            yield server.url


def _wav(path: Path) -> bytes:
    """The first sound of a file as mono 16-bit WAV at its own rate; a WAV as it is."""
    if path.suffix == ".wav":
        return path.read_bytes()
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="s16", layout="mono")
        frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(frames[0].sample_rate)
        writer.writeframes(b"".join(frame.to_ndarray().tobytes() for frame in frames))
    return file.getvalue()
