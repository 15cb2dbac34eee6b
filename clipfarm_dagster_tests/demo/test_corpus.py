"""The demo corpus: real media, words that fit it, the same bytes each time."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections import Counter

import av
import numpy as np
import pytest
import soundfile

from clipfarm_dagster.demo.checkpoints import minilm_folder
from clipfarm_dagster.demo.clips import CLIPS
from clipfarm_dagster.demo.corpus import METADATA_COLUMNS, DemoVideo, demo_videos, metadata_csv
from clipfarm_dagster.store.keys import is_valid_video_id


@pytest.fixture(scope="module")
def thirteen() -> list[DemoVideo]:
    return list(demo_videos(13))


@pytest.fixture(scope="module")
def videos(thirteen: list[DemoVideo]) -> list[DemoVideo]:
    return thirteen[:12]


def test_a_dozen_videos_in_four_themes(videos: list[DemoVideo]) -> None:
    assert len({video.video_id for video in videos}) == 12
    assert all(is_valid_video_id(video.video_id) for video in videos)
    assert Counter(video.theme for video in videos) == {"ocean": 3, "city": 3, "physics": 3, "fire": 3}


def test_clips_are_h264_with_b_frames_that_move_and_aac(videos: list[DemoVideo]) -> None:
    shapes, distances, rates = set(), set(), set()
    for video in videos:
        with av.open(io.BytesIO(video.mp4), "r") as container:
            stream, sound = container.streams.video[0], container.streams.audio[0]
            assert (stream.codec_context.name, sound.codec_context.name) == ("h264", "aac")
            assert stream.duration is not None
            assert stream.time_base is not None
            assert stream.average_rate is not None
            seconds = float(stream.duration * stream.time_base)
            assert 3 <= seconds <= 5
            rate = float(stream.average_rate)
            rates.add((rate, sound.rate))
            kinds, pictures = [], []
            for frame in container.decode(stream):
                kinds.append(frame.pict_type)
                pictures.append(frame.to_ndarray(format="gray").astype(np.int16))
        assert len(pictures) == round(seconds * rate)
        assert av.video.frame.PictureType.B in kinds
        keyframes = [n for n, kind in enumerate(kinds) if kind == av.video.frame.PictureType.I]
        distances.add(min((b - a for a, b in itertools.pairwise(keyframes)), default=len(kinds)))
        middle = len(pictures) // 2
        assert np.abs(pictures[middle] - pictures[middle + 10]).max() > 40, video.video_id
        assert pictures[middle].std() > 10, video.video_id
        shapes.add(pictures[0].shape)
    assert {(426, 240), (240, 320), (240, 426)} == shapes
    assert len(distances) >= 3
    assert len(rates) >= 4


def test_wav_is_the_sound_of_the_clip(videos: list[DemoVideo]) -> None:
    for video in videos:
        samples, rate = soundfile.read(io.BytesIO(video.wav), dtype="float32")
        assert soundfile.info(io.BytesIO(video.wav)).subtype == "PCM_16"
        with av.open(io.BytesIO(video.mp4), "r") as container:
            sound_stream = container.streams.audio[0]
            heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert sound_stream.rate == rate
        assert 0.5 < np.abs(samples).max() <= 0.71
        loudness, heard_loudness = (_loudness(sound, rate) for sound in (samples, heard[: len(samples)]))
        # an encoder of sound keeps no samples, but keeps how loud it was when
        assert np.corrcoef(loudness, heard_loudness)[0, 1] > 0.95, video.video_id


def _loudness(samples: np.ndarray, rate: int) -> np.ndarray:
    step = rate // 20
    loudness: np.ndarray = np.sqrt(
        (samples[: len(samples) // step * step].reshape(-1, step) ** 2).mean(axis=1)
    )
    return loudness


def test_metadata_has_several_snapshots_of_some_videos(videos: list[DemoVideo]) -> None:
    rows = list(csv.DictReader(io.StringIO(metadata_csv(videos).decode())))
    assert tuple(rows[0]) == METADATA_COLUMNS
    assert all(all(row.values()) for row in rows)
    captured = [row["captured_at"] for row in rows]
    assert captured == sorted(captured)
    latest = {row["video_id"]: row["title"] for row in rows}
    assert latest == {clip.video_id: clip.title for clip in CLIPS}
    assert max(Counter(row["video_id"] for row in rows).values()) == 3
    assert len(rows) > len(latest)


def test_transcript_artifact_holds_the_transcript(videos: list[DemoVideo]) -> None:
    for video in videos:
        assert json.loads(video.transcript_json) == {"transcript": video.transcript}


def test_same_arguments_give_same_bytes_and_another_seed_other_clips() -> None:
    def digest(seed: int) -> list[str]:
        return [
            hashlib.sha256(video.mp4 + video.wav + metadata_csv([video])).hexdigest()
            for video in demo_videos(3, seed)
        ]

    first = digest(0)
    assert digest(0) == first
    assert not set(digest(1)) & set(first)


def test_more_than_a_dozen_are_further_takes(thirteen: list[DemoVideo]) -> None:
    first, later = thirteen[0], thirteen[12]
    assert later.video_id == "ocean-sunset-2"
    assert later.rows[-1]["title"].endswith("(take 2)")
    assert later.mp4 != first.mp4


def test_text_neighbours_share_the_theme(videos: list[DemoVideo]) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm_folder()), device="cpu")
    texts = [
        " [SEP] ".join(video.rows[-1][column] for column in ("title", "description", "query"))
        for video in videos
    ]
    both = [
        model.encode(words, normalize_embeddings=True)
        for words in (texts, [video.transcript for video in videos])
    ]
    vectors = np.hstack(both) / np.sqrt(2)
    likeness = vectors @ vectors.T - 2 * np.eye(len(videos))
    nearest = likeness.argmax(axis=1)
    assert [videos[n].theme for n in nearest] == [video.theme for video in videos]
