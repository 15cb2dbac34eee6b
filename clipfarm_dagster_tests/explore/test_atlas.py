"""What the viewer is given."""

from __future__ import annotations

import base64
import io

from PIL import Image

from clipfarm_dagster.explore.atlas import atlas_table
from clipfarm_dagster.manifests.refresh import fused_file, refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.corpora import embed_all, open_corpus, write_metadata
from clipfarm_dagster_tests.support.stages import opened
from workbench.clips import ClipSpec, encode

IDS = ["a", "b", "c", "d"]


def _fused(tmp_path, store, ids, **settings):
    corpus = open_corpus(tmp_path, store, **settings)
    write_metadata(corpus, ids)
    embed_all(corpus, ids)
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(opened(corpus, ledger))
    refresh_fused(corpus, make_strategy("concat", ""))
    return corpus


def test_a_clip_over_a_limit_costs_its_own_thumbnail_alone(tmp_path, store):
    good = encode(ClipSpec(frames=12, gop=12))
    clips = {
        "broken": b"no clip any more",
        "good-1": good,
        "many-frames": encode(ClipSpec(frames=40, gop=40)),
        "many-pixels": encode(ClipSpec(frames=3, gop=3, width=5120, height=4096)),
        "memory": encode(ClipSpec(frames=3, gop=3, width=4096, height=4096)),
        "missing": None,
        "more-bytes": good + bytes(2**23),
        "z-good": good,
    }
    limits = {"max_frames": 30, "max_pixels": 2**24, "max_prepare_bytes": 2**28, "max_object_bytes": 2**23}
    corpus = _fused(tmp_path, store, list(clips), workers=2, **limits)
    for video_id, clip in clips.items():
        if clip is not None:
            corpus.store.put(corpus.keys.raw(Stage.VIDEO, video_id), clip)

    for _ in range(2):
        told: dict[str, str] = {}
        table = atlas_table(corpus, fused_file(corpus, "concat"), thumbnails=99, on_problem=told.__setitem__)

        shown = dict(zip(table["video_id"].to_pylist(), table["thumbnail"].to_pylist(), strict=True))
        assert {video_id for video_id, picture in shown.items() if picture} == {"good-1", "z-good"}
        assert told.keys() == clips.keys() - {"good-1", "z-good"}
        assert "cannot open" in told["broken"]
        assert "over the limit of 30" in told["many-frames"]
        assert "over the limit of 16777216 pixels" in told["many-pixels"]
        assert f"more memory than CLIPFARM_MAX_PREPARE_BYTES={2**28}" in told["memory"]
        assert "no object" in told["missing"]
        assert "CLIPFARM_MAX_OBJECT_BYTES=8388608" in told["more-bytes"]


def test_each_video_has_its_place_its_texts_and_a_frame(tmp_path, store):
    corpus = _fused(tmp_path, store, IDS)
    clip = encode(ClipSpec(frames=12, gop=12, width=320, height=240))
    corpus.store.put(corpus.keys.raw(Stage.VIDEO, "a"), clip)
    corpus.store.put(corpus.keys.raw(Stage.VIDEO, "b"), b"no clip any more")
    corpus.store.put(corpus.keys.raw(Stage.VIDEO, "d"), clip)

    table = atlas_table(corpus, fused_file(corpus, "concat"), thumbnails=3)

    assert table["video_id"].to_pylist() == IDS
    assert table["title"].to_pylist() == [f"Title of {video_id}" for video_id in IDS]
    assert len(set(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True))) == 4
    shown, undecodable, absent, beyond = table["thumbnail"].to_pylist()
    assert undecodable is absent is beyond is None
    kind, _, data = shown.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (224, 168)
    assert atlas_table(corpus, fused_file(corpus, "concat"), thumbnails=3).equals(table)
