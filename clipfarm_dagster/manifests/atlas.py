"""What the embedding viewer is given: a row a fused video, with its place, texts and a thumbnail."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.manifests.projection import metadata_columns, project_file
from clipfarm_dagster.manifests.refresh import fused_file
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import StoredObject

if TYPE_CHECKING:
    import pyarrow as pa

_THUMBNAIL = (224, 224)
"""Greatest width and height, in pixels."""


def atlas_table(corpus: Corpus, strategy: str, *, thumbnails: int) -> pa.Table:
    """A row for each fused vector: `video_id`, `title`, `thumbnail` for the first `thumbnails` videos,
    `query`, `description`, `captured_at`, and its place `x`, `y`.

    A thumbnail is the middle frame as the data URI of a JPEG; null where the clip cannot be decoded.

    Raises:
        ManifestError: the strategy has no fused manifest, or it cannot be read.
        MetadataError: the metadata cannot be read.
        StoreError: the store cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = fused_file(corpus, strategy)
    places = project_file(file)
    with file.reading() as path:
        captured_at = pq.read_table(path, columns=["captured_at"])["captured_at"]
    made = _thumbnails(corpus, places.video_ids[:thumbnails])
    made += [None] * (len(places.video_ids) - len(made))
    texts = metadata_columns(corpus, places.video_ids, ("title", "query", "description"))
    return pa.table(
        {
            "video_id": pa.array(places.video_ids, pa.string()),
            "title": pa.array(texts["title"], pa.string()),
            # the viewer gives this column most of the width
            "thumbnail": pa.array([picture and _data_uri(picture) for picture in made], pa.string()),
            "query": pa.array(texts["query"], pa.string()),
            "description": pa.array(texts["description"], pa.string()),
            "captured_at": captured_at,
            "x": pa.array(places.points[:, 0], pa.float32()),
            "y": pa.array(places.points[:, 1], pa.float32()),
        }
    )


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _thumbnails(corpus: Corpus, video_ids: Sequence[str]) -> list[bytes | None]:
    """A picture of each clip, or None where there is none; made once for each version of a clip.

    They are made in this process: every clip here was decoded before, when it was embedded.
    """
    folder = corpus.settings.home / "cache" / "thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    listing = corpus.raw_listing(Stage.VIDEO)
    etags = dict(zip(listing["key"].to_pylist(), listing["etag"].to_pylist(), strict=True))
    files = {
        key: folder
        / f"{hashlib.sha256(f'{corpus.store.url} {key} {etags.get(key)}'.encode()).hexdigest()}.jpg"
        for key in (corpus.keys.raw(Stage.VIDEO, video_id) for video_id in video_ids)
    }
    missing = [key for key, file in files.items() if key in etags and not file.exists()]
    for key, answer in corpus.store.get_many(missing, max_concurrency=4):  # clips are large
        if isinstance(answer, StoredObject):
            part = files[key].with_suffix(f".{os.getpid()}.part")
            part.write_bytes(_thumbnail(answer.data, corpus.settings.max_pixels))
            part.replace(files[key])
    return [(file.read_bytes() or None) if file.exists() else None for file in files.values()]


def _thumbnail(data: bytes, max_pixels: int) -> bytes:
    """The middle frame of a clip, upright, as JPEG; empty where the clip cannot be decoded any more."""
    from PIL import Image

    from clipfarm_dagster.embedding.frames import sample_frames

    try:
        sampled = sample_frames(data, count=3, max_pixels=max_pixels)
    except InvalidRawObjectError:
        return b""
    picture = Image.fromarray(sampled.frames[1])
    picture.thumbnail(_THUMBNAIL)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()
