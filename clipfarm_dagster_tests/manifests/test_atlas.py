"""What the viewer is given."""

from __future__ import annotations

import base64
import io

from PIL import Image

from clipfarm_dagster.manifests.atlas import atlas_table
from clipfarm_dagster.manifests.refresh import refresh_fused, refresh_manifest
from clipfarm_dagster.manifests.strategies import make_strategy
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.embedding.clips import ClipSpec, encode
from clipfarm_dagster_tests.manifests.corpora import embed_all, open_corpus, write_metadata

IDS = ["a", "b", "c", "d"]


def test_each_video_has_its_place_its_texts_and_a_frame(tmp_path, store):
    corpus = open_corpus(tmp_path, store)
    write_metadata(corpus, IDS)
    embed_all(corpus, IDS)
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            refresh_manifest(corpus, ledger)
    refresh_fused(corpus, make_strategy("concat", ""))
    clip = encode(ClipSpec(frames=12, gop=12, width=320, height=240))
    corpus.store.put(corpus.keys.raw(Stage.VIDEO, "a"), clip)
    corpus.store.put(corpus.keys.raw(Stage.VIDEO, "b"), b"no clip any more")
    corpus.store.put(corpus.keys.raw(Stage.VIDEO, "d"), clip)

    table = atlas_table(corpus, "concat", thumbnails=3)

    assert table["video_id"].to_pylist() == IDS
    assert table["title"].to_pylist() == [f"Title of {video_id}" for video_id in IDS]
    assert len(set(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True))) == 4
    shown, undecodable, absent, beyond = table["thumbnail"].to_pylist()
    assert undecodable is absent is beyond is None
    kind, _, data = shown.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (224, 168)
    assert atlas_table(corpus, "concat", thumbnails=3).equals(table)
