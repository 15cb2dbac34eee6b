"""Nearest neighbours and near duplicates among the vectors of a file (`fusion.iter_vectors`), by cosine.

Exact up to `INDEX_FROM` vectors. Beyond that by a USearch index (HNSW), which finds nearly all; it lies
beside the file and is built anew when the file's vectors change, or where the index is damaged.
"""

from __future__ import annotations

import glob
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ManifestError, VideoNotFoundError
from clipfarm_dagster.explore.pairs import Found, near_pairs
from clipfarm_dagster.manifests.manifest import REPLACE_WRONG
from clipfarm_dagster.manifests.vector_table import (
    FUSED_VECTOR_COLUMN,
    content_id,
    count_vectors,
    iter_vectors,
)
from clipfarm_dagster.manifests.vectors import modality_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import cache_files
from clipfarm_dagster.store.local_copies import LocalFile

if TYPE_CHECKING:
    import numpy as np
    from usearch.index import Index

    from clipfarm_dagster.modalities.encoder import Encoder

INDEX_FROM = 200_000
"""From so many vectors on, an index is used: an exact search through fewer takes a second or two."""

DUPLICATE_COSINE = 0.98
"""From this cosine on two videos count as near duplicates by default."""

_INDEXED_SHARE = 0.1
_NEIGHBOURS = 32
"""How many neighbours of each vector are looked at for duplicates, where an index is used."""
_SUFFIX = ".usearch"


@dataclass(frozen=True)
class Match:
    """A video near to what was asked for; `score` is the cosine."""

    video_id: str
    score: float


@dataclass(frozen=True)
class Pair:
    """Two videos that are near to each other, in the order of their ids; `score` is the cosine."""

    first: str
    second: str
    score: float


def search(
    corpus: Corpus,
    words: str | None = None,
    *,
    like: str | None = None,
    stage: Stage = Stage.TEXT,
    generation: str | None = None,
    top: int = 10,
    exact: bool = False,
) -> list[Match]:
    """The `top` videos nearest to some words, or to another video, best first.

    Args:
        words: looked up among text vectors.
        like: a `video_id`, in place of words; it is not among the answers.
        stage: with `like`: in which modality.
        generation: contract id of another generation than the one that serves, which may lack some videos.
        exact: whether to look at every vector, whatever their number.

    Raises:
        ValueError: both words and a video are given, or neither; or words in a stage other than text.
        VideoNotFoundError: there is no vector of `like`.
        ManifestError: there are no vectors, some are being written or lost, or this machine's file of them is
            damaged.
        ModelUnavailableError: the text model cannot be loaded.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    if words is not None and stage != Stage.TEXT:
        raise ValueError(f"words are looked up among text vectors, not among those of {stage}; use like=")
    file = modality_vectors(corpus, stage, generation=generation, allow_partial=True).file
    if words is not None and like is None:
        query = words_vector(corpus.encoder(Stage.TEXT, generation), words)
    elif like is not None and words is None:
        query = vector_of(file, like)
    else:
        raise ValueError("give either words or like=VIDEO_ID")
    return nearest(file, query, top, without=like, exact=exact)


def words_vector(encoder: Encoder, words: str) -> np.ndarray[Any, Any]:
    """The unit vector that stands for `words` among text vectors, float32 (dimension,).

    A text vector is that of the metadata and that of the transcript, one behind the other. The words' vector
    stands in both places, so that the cosine is the mean of those to metadata and transcript.
    """
    from clipfarm_dagster.modalities.encoder import Prepared

    vector: np.ndarray[Any, Any] = encoder.encode([Prepared((words, words), None)])[0]
    return vector


def vector_of(file: LocalFile, video_id: str) -> np.ndarray[Any, Any]:
    """The vector of one video.

    Raises:
        VideoNotFoundError: the file has none of it.
        ManifestError: the file cannot be read.
    """
    import numpy as np
    import pyarrow.parquet as pq

    with file.reading() as path:
        rows = pq.read_table(path, columns=[FUSED_VECTOR_COLUMN], filters=[("video_id", "=", video_id)])
    if not rows.num_rows:
        raise VideoNotFoundError(
            f"there is no vector for the video {video_id!r} here; `clipfarm status` shows what is done"
        )
    return np.asarray(rows[FUSED_VECTOR_COLUMN][0].as_py(), dtype=np.float32)


def nearest(
    file: LocalFile, query: np.ndarray[Any, Any], top: int, *, without: str | None = None, exact: bool = False
) -> list[Match]:
    """The `top` videos whose vectors have the largest cosine with the unit vector `query`, best first.

    Args:
        without: a video that is left out, such as the one whose vector is asked with.
        exact: whether to look at every vector, whatever their number.

    Raises:
        ManifestError: the file cannot be read, or its vectors have another dimension than the query.
    """
    count, dimension = count_vectors(file)
    if not count:
        return []
    if query.shape != (dimension,):
        raise ManifestError(
            f"the query has {query.size} numbers, and the vectors of {file.name} {dimension}: they are of"
            f" another model. {REPLACE_WRONG}"
        )
    wanted = top + (without is not None)
    # an index finds few among many; asked for a good part of them it may miss some, and saves nothing
    by_index = count > INDEX_FROM and wanted <= count * _INDEXED_SHARE and not exact
    search = _nearest_by_index if by_index else _nearest_exactly
    return [match for match in search(file, query, wanted) if match.video_id != without][:top]


def near_duplicates(
    file: LocalFile, threshold: float, *, limit: int, exact: bool = False
) -> tuple[list[Pair], int]:
    """Pairs of videos whose cosine is at least `threshold`: the best `limit` of them, best first, and the
    number of all.

    Raises:
        ManifestError: the file cannot be read.
    """
    count, _ = count_vectors(file)
    find = _pairs_by_index if count > INDEX_FROM and not exact else near_pairs
    best, found = _Best(limit), 0
    ids: list[str] = []
    for firsts, seconds, scores in find(file, threshold, ids):
        found += len(scores)
        best.add(firsts, seconds, scores)
    return [Pair(ids[i], ids[j], score) for i, j, score in best.sorted()], found


def _nearest_exactly(file: LocalFile, query: np.ndarray[Any, Any], top: int) -> list[Match]:
    best = _Best(top)
    ids: list[str] = []
    for some, vectors in iter_vectors(file):
        rows = _numbers(len(ids), len(some))
        best.add(rows, rows, vectors @ query)
        ids += some
    return [Match(ids[i], score) for i, _, score in best.sorted()]


def _nearest_by_index(file: LocalFile, query: np.ndarray[Any, Any], top: int) -> list[Match]:
    index, ids = _index(file)
    found = index.search(query, top)
    return [
        Match(ids[int(key)], 1 - float(distance))
        for key, distance in zip(found.keys, found.distances, strict=True)
    ]


def _pairs_by_index(file: LocalFile, threshold: float, ids: list[str]) -> Found:
    """As `near_pairs`, among the nearest of each vector."""
    import numpy as np

    index, all_ids = _index(file)
    ids += all_ids
    numbers, scores, done = [], [], 0
    for some, vectors in iter_vectors(file):
        found = index.search(vectors, _NEIGHBOURS)
        rows = np.repeat(_numbers(done, len(some)), found.keys.shape[1])
        others, cosines = found.keys.ravel().astype(np.int64), 1 - found.distances.ravel()
        near = (cosines >= threshold) & (others != rows)
        lower, upper = np.minimum(rows, others)[near], np.maximum(rows, others)[near]
        numbers.append(lower * len(ids) + upper)
        scores.append(cosines[near])
        done += len(some)
    pairs, first = np.unique(np.concatenate(numbers), return_index=True)  # most are found from both sides
    yield pairs // len(ids), pairs % len(ids), np.concatenate(scores)[first]


def _index(file: LocalFile) -> tuple[Index, list[str]]:
    """The file's index, whose keys are the numbers of its rows, and the ids in their order."""
    import pyarrow.parquet as pq

    with file.reading() as path:
        ids: list[str] = pq.read_table(path, columns=["video_id"])["video_id"].to_pylist()
        status, content = path.stat(), content_id(file)
    folder = path.parent / "indexes"
    version = f"{file.stem}.{content or f'{status.st_size}-{status.st_mtime_ns}'}"
    place = cache_files.find(folder, version, _SUFFIX)
    if place is None:
        return _build_index(file, folder, version), ids
    index = _empty_index(file)
    index.view(place)
    return index, ids


def _build_index(file: LocalFile, folder: Path, version: str) -> Index:
    """Make the index, keep it in `folder`, and remove those that it replaces."""
    index = _empty_index(file)
    done = 0
    for some, vectors in iter_vectors(file):
        index.add(_numbers(done, len(some)), vectors)
        done += len(some)
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        part = Path(scratch) / "index"
        index.save(part)
        place = cache_files.keep(part, folder, version, _SUFFIX)
    for old in folder.glob(f"*{_SUFFIX}"):
        stem = cache_files.stem_of(old, _SUFFIX).rpartition(".")[0]
        gone = not any(folder.parent.glob(f"{glob.escape(stem)}*"))
        if old != place and (stem == file.stem or gone):
            old.unlink(missing_ok=True)
    return index


def _empty_index(file: LocalFile) -> Index:
    from usearch.index import Index

    return Index(ndim=count_vectors(file)[1], metric="cos", dtype="f16")


def _numbers(start: int, count: int) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.arange(start, start + count)


class _Best:
    """The best `limit` of all pairs of numbers that were added, whatever their number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[tuple[np.ndarray[Any, Any], ...]] = []
        self._held = 0

    def add(
        self, firsts: np.ndarray[Any, Any], seconds: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]
    ) -> None:
        self._parts.append((firsts, seconds, scores))
        self._held += len(scores)
        if self._held > 4 * self._limit + 100_000:
            self._parts = [self._merged()]
            self._held = len(self._parts[0][2])

    def sorted(self) -> list[tuple[int, int, float]]:
        """Best first; of equal ones the one with the lower numbers."""
        if not self._parts:
            return []
        columns = (column.tolist() for column in self._merged())
        return list(zip(*columns, strict=True))

    def _merged(self) -> tuple[np.ndarray[Any, Any], ...]:
        import numpy as np

        firsts, seconds, scores = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        order = np.lexsort((seconds, firsts, -scores))[: self._limit]
        return firsts[order], seconds[order], scores[order]
