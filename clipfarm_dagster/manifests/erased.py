"""Takes the rows of erased videos out of the manifests, fused or not, that lie in the store."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ManifestError, ObjectMissingError, PreconditionFailedError
from clipfarm_dagster.manifests.manifest import write_rows
from clipfarm_dagster.manifests.vector_table import CHUNK, FUSED_VECTOR_COLUMN, vectors_writer
from clipfarm_dagster.store import ObjectStore

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ATTEMPTS = 20
_PART_BYTES = 8 << 20
_ON_CONDITION_BYTES = 1 << 30
"""Most bytes of a file that is replaced on condition, which S3 takes in one request, from memory."""

_without: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}
"""By store and key, the ETag of a manifest that this process has found without some videos, and those: an
erasure looks several times, and fused manifests are large."""


def manifest_keys(corpus: Corpus) -> list[str]:
    """Keys of all manifests that are there, fused ones too.

    Raises:
        StoreError: the store cannot be read.
    """
    folders = (corpus.keys.manifests_folder(), corpus.keys.fused_folder())
    keys = [key for folder in folders for key in corpus.store.list(folder)["key"].to_pylist()]
    return sorted(key for key in keys if key.endswith(".parquet"))


def remove_rows(corpus: Corpus, video_ids: Collection[str], *, dry_run: bool = False) -> dict[str, int]:
    """Take the rows of some videos out of all manifests; returns how many there were, by key.

    All other rows stay as they are. A file that cannot be read is emptied, and made anew by whoever refreshes
    it next.

    Args:
        dry_run: whether only to count.

    Raises:
        ManifestError: a manifest is replaced by others each time that it was read.
        StoreError: the store cannot be read or written.
    """
    scratch = corpus.settings.home_files.manifests_cache
    scratch.mkdir(parents=True, exist_ok=True)
    counts = {}
    for key in manifest_keys(corpus):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            counts[key] = _remove_from(corpus.store, key, video_ids, Path(folder), dry_run)
    return {key: count for key, count in counts.items() if count}


def _remove_from(
    store: ObjectStore, key: str, video_ids: Collection[str], folder: Path, dry_run: bool
) -> int:
    before, after = folder / "before", folder / "after"
    place, wanted = (store.url, key), frozenset(video_ids)
    for _ in range(_ATTEMPTS):
        seen_etag, seen = _without.get(place, ("", frozenset()))
        if wanted <= seen and (info := store.head(key)) is not None and info.etag == seen_etag:
            return 0
        try:
            etag = store.download(key, before).etag
        except ObjectMissingError:
            return 0
        count = _write_without(before, after, video_ids)
        if count and dry_run:
            return count
        try:
            etag = _replace(store, key, after, etag) if count else etag
        except PreconditionFailedError:
            continue
        _without[place] = etag, wanted
        return count
    raise ManifestError(f"{store.url}: {key!r} was replaced {_ATTEMPTS} times meanwhile; try again")


def _write_without(before: Path, after: Path, video_ids: Collection[str]) -> int:
    """Write the file anew without some videos, if it has them; returns how many it has. One that cannot be
    read counts as one, and nothing of it is kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(before) as file:
            return _copy_rows(file, after, video_ids)
    except (pa.ArrowException, OSError):
        after.write_bytes(b"")
        return 1 if before.stat().st_size else 0


def _copy_rows(file: pq.ParquetFile, after: Path, video_ids: Collection[str]) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = file.schema_arrow
    if "video_id" not in schema.names:
        return 0
    erased = pa.array(list(video_ids), pa.string())
    ids = file.read(columns=["video_id"])["video_id"]
    count = int(pc.sum(pc.is_in(ids, value_set=erased)).as_py() or 0)
    if count and FUSED_VECTOR_COLUMN in schema.names:
        with vectors_writer(after, schema) as writer:
            for group in range(file.num_row_groups):  # all vectors at once may be more than memory has
                writer.write_table(_others(file.read_row_group(group), erased), row_group_size=CHUNK)
    elif count:
        write_rows(_others(file.read(), erased), after)
    return count


def _others(rows: pa.Table, erased: pa.Array) -> pa.Table:
    import pyarrow.compute as pc

    return rows.filter(pc.invert(pc.is_in(rows["video_id"], value_set=erased)))


def _replace(store: ObjectStore, key: str, path: Path, etag: str) -> str:
    """Write a file over the version of an object that was read; returns its ETag."""
    if path.stat().st_size <= _ON_CONDITION_BYTES:
        return store.put_file_if_unchanged(key, path, etag)
    # only fused vectors are so large: should rows be lost that were added in this moment, the next refresh
    # adds them again
    info = store.head(key)
    if info is None or info.etag != etag:
        raise PreconditionFailedError(f"{key!r} is new")
    with path.open("rb") as file:
        return store.put_stream(key, iter(partial(file.read, _PART_BYTES), b""))
