"""What the embedding viewer is given: a row a fused video, with its place, texts and a thumbnail."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from clipfarm_dagster.catalog.metadata import metadata_columns
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.corpus.stage_corpus import list_raw_objects
from clipfarm_dagster.engine.local.preparation import Limits, PreparedItem, preparation
from clipfarm_dagster.engine.options import cores
from clipfarm_dagster.errors import ClipFarmError, InvalidRawObjectError, PreparationError, StoreError
from clipfarm_dagster.explore.projection import project_file
from clipfarm_dagster.modalities.encoder import Prepared
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster.store.whole_files import written_whole

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_THUMBNAIL = (224, 224)
"""Greatest width and height, in pixels."""

OnProblem: TypeAlias = Callable[[str, str], None]
"""Takes a video_id, and why the video has no thumbnail."""


def atlas_table(
    corpus: Corpus, file: LocalFile, *, thumbnails: int, on_problem: OnProblem = lambda video_id, cause: None
) -> pa.Table:
    """A row for each vector of a file of fused ones: `video_id`, `title`, `thumbnail` for the first
    `thumbnails` videos, `query`, `description`, `captured_at`, and its place `x`, `y`.

    A thumbnail is the middle frame as the data URI of a JPEG; null where there is none, of which `on_problem`
    is told with the cause: the clip is gone, cannot be decoded, or is over a limit.

    Raises:
        ManifestError: the file cannot be read.
        MetadataError: the metadata cannot be read.
        StoreError: the store cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = project_file(file)
    with file.reading() as path:
        captured_at = pq.read_table(path, columns=["captured_at"])["captured_at"]
    made = _thumbnails(corpus, places.video_ids[:thumbnails], on_problem)
    made += [None] * (len(places.video_ids) - len(made))
    texts = metadata_columns(corpus.latest_rows(), places.video_ids, ("title", "query", "description"))
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


def _thumbnails(corpus: Corpus, video_ids: Sequence[str], on_problem: OnProblem) -> list[bytes | None]:
    """A picture of each clip, or None where there is none; made once for each version of a clip."""
    folder = corpus.settings.home_files.thumbnails
    folder.mkdir(parents=True, exist_ok=True)
    listing = list_raw_objects(corpus.store, corpus.keys, Stage.VIDEO)
    etags = dict(zip(listing["key"].to_pylist(), listing["etag"].to_pylist(), strict=True))
    ids = {corpus.keys.raw(Stage.VIDEO, video_id): video_id for video_id in video_ids}
    files = {
        key: folder
        / f"{hashlib.sha256(f'{corpus.store.url} {key} {etags.get(key)}'.encode()).hexdigest()}.jpg"
        for key in ids
    }
    for key in ids.keys() - etags.keys():
        on_problem(ids[key], f"there is no object {key!r}")
    wanted = [key for key in ids if key in etags and not _holds_bytes(files[key])]
    for key, made in _make_thumbnails(corpus, wanted):
        if isinstance(made, ClipFarmError):
            on_problem(ids[key], str(made))
        else:
            with written_whole(files[key]) as part:
                part.write_bytes(made)
    return [file.read_bytes() if _holds_bytes(file) else None for file in files.values()]


def _holds_bytes(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _make_thumbnails(corpus: Corpus, keys: Sequence[str]) -> Iterator[tuple[str, bytes | ClipFarmError]]:
    """The thumbnail of each clip, or why there is none, as they are finished.

    A clip may be another than the one that was embedded, and each decode is a new one: so they are made as
    clips are prepared, by workers, and under the same limits.
    """
    settings = corpus.settings
    limits = Limits(settings.item_timeout_seconds, settings.max_prepare_bytes)
    preparer, workers = (
        ThumbnailPreparer(settings.max_pixels, settings.max_frames),
        settings.workers or cores(),
    )
    with preparation(preparer, limits, workers=workers) as prepare:
        making: dict[Future[PreparedItem], str] = {}

        def finished(at_most: int) -> Iterator[tuple[str, bytes | ClipFarmError]]:
            while len(making) > at_most:
                for future in wait(making, return_when=FIRST_COMPLETED).done:
                    key = making.pop(future)
                    try:
                        yield key, prepare.result(future).prepared.inputs
                    except (InvalidRawObjectError, PreparationError) as error:
                        yield key, error

        answers = corpus.store.get_each(
            keys,
            max_concurrency=4,  # clips are large
            max_bytes=settings.max_object_bytes,
            timeout_seconds=settings.fetch_timeout_seconds,
        )
        for answer in answers:
            if answer is None:
                continue
            key, stored = answer
            if isinstance(stored, StoreError):
                yield key, stored
            elif stored.info.size > settings.max_object_bytes:  # and so without its data
                limit = f"CLIPFARM_MAX_OBJECT_BYTES={settings.max_object_bytes}"
                yield key, InvalidRawObjectError(f"the clip has {stored.info.size} bytes, more than {limit}")
            else:
                making[prepare.submit(stored.data, {})] = key
                yield from finished(at_most=2 * workers)
        yield from finished(at_most=0)


@dataclass(frozen=True)
class ThumbnailPreparer:
    """Makes the middle frame of a clip, upright, a JPEG."""

    max_pixels: int
    max_frames: int

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        """The thumbnail of one clip."""
        from PIL import Image

        from clipfarm_dagster.modalities.video.frames import sample_each

        def small(frame: np.ndarray) -> Image.Image:
            picture = Image.fromarray(frame)
            picture.thumbnail(_THUMBNAIL)
            return picture

        sampled = sample_each(raw, small, count=3, max_pixels=self.max_pixels, max_frames=self.max_frames)
        picture = sampled.made[1]
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80)
        return Prepared(file.getvalue(), None)
