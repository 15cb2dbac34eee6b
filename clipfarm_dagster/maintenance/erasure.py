"""Removes erased videos from the store and the ledgers in steps that can be repeated.

From the moment that there is a tombstone, nothing of its video is written any more (see `ledger.tombstones`).
What was written before goes in this order: vectors of all generations; raw objects, if that was asked for;
rows of manifests; what broken-off writes have left in a folder; and previous versions, if a bucket keeps
some. Rows of ledgers, and the store's log of them, go beside these, before the previous versions. Only then
is the erasure said to be finished. Until then any machine can take it up: it knows the videos again by the
names of what is left.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import StoreError
from clipfarm_dagster.ledger.schema import UNNAMED
from clipfarm_dagster.ledger.tombstones import Erased
from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.maintenance.scanning import bytes_hold
from clipfarm_dagster.manifests.erased import remove_rows
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore, local_path
from clipfarm_dagster.store.versions import PreviousVersion

_ASKED_FOR = 300
"""Objects of a folder that are asked for one by one; for more, the folder is listed."""
_FORBIDDEN = ("AccessDenied", "AllAccessDisabled", "AccessForbidden")
_UNFINISHED = re.compile(r".+#\d+")
"""Names of the files that obstore writes in a folder, until they are whole."""


@dataclass(frozen=True)
class Found:
    """How much there is of some videos in the store and the ledgers."""

    vectors: int = 0
    """Of all generations."""
    raw_objects: int = 0
    """Of the videos whose raw objects go too."""
    raw_objects_kept: int = 0
    """Of the others; nothing that has to go."""
    manifest_rows: int = 0
    """In manifests, fused or not."""
    ledger_rows: int = 0
    """Of all stages and generations."""
    previous_versions: int = 0
    """Of the objects that have, or may have, something of the videos."""
    unfinished_files: int = 0
    """What broken-off writes have left in a folder."""

    def __bool__(self) -> bool:
        counted = (field.name for field in fields(self) if field.name != "raw_objects_kept")
        return any(getattr(self, name) for name in counted)


@dataclass(frozen=True)
class Kind:
    """Objects that are named after videos."""

    folder: str
    suffix: str

    def keys(self, video_ids: Iterable[str]) -> set[str]:
        """Those of some videos."""
        return {f"{self.folder}{video_id}{self.suffix}" for video_id in video_ids}

    def video_id(self, key: str) -> str | None:
        """The video whose object a key is; None of another key."""
        name = key.removeprefix(self.folder)
        if name == key or "/" in name or not name.endswith(self.suffix):
            return None
        return name.removesuffix(self.suffix)


def vector_kinds(corpus: Corpus, *, previous: bool = False) -> list[Kind]:
    """Where vectors lie, of all stages and generations; with `previous`, also those of which a bucket keeps
    nothing but previous versions.

    Raises:
        StoreError: the store cannot be read.
    """
    keys, kinds = corpus.keys, []
    for stage in Stage:
        folders = corpus.store.folders(keys.generations_folder(stage), previous=previous)
        kinds += [Kind(folder, ".npy") for folder in (keys.embedding_folder(stage), *folders)]
    return kinds


def raw_kinds(corpus: Corpus) -> list[Kind]:
    """Where raw objects lie."""
    return [Kind(corpus.keys.raw_folder(stage), stage.raw_suffix) for stage in Stage]


def look(corpus: Corpus, video_ids: Collection[str], *, raw: Collection[str] = ()) -> Found:
    """How much there is of some videos; changes nothing.

    Args:
        raw: those whose raw objects go too.

    Raises:
        ManifestError: a manifest is replaced each time that it was read.
        LedgerError: a ledger cannot be read.
        StoreError: the store cannot be read.
    """
    store, versions = corpus.store, list[PreviousVersion]()
    with if_allowed([]):
        versions = previous_versions(corpus, video_ids, raw=raw)
    kept = set(video_ids).difference(raw)
    return Found(
        vectors=sum(len(_present(store, kind, video_ids)) for kind in vector_kinds(corpus)),
        raw_objects=sum(len(_present(store, kind, raw)) for kind in raw_kinds(corpus)),
        raw_objects_kept=sum(len(_present(store, kind, kept)) for kind in raw_kinds(corpus)),
        manifest_rows=sum(remove_rows(corpus, video_ids, dry_run=True).values()),
        ledger_rows=sum(_ledger_rows(corpus, stage, video_ids) for stage in Stage),
        previous_versions=len(versions),
        unfinished_files=len(_unfinished_files(corpus, video_ids)),
    )


def finish(corpus: Corpus, video_ids: Collection[str] = (), *, raw: Collection[str] = ()) -> list[str]:
    """Remove all that there is of some erased videos, and of all others whose erasure is not finished. Then
    these are finished. Returns what may not be removed.

    Args:
        raw: those whose raw objects go too, besides those whose tombstones say so.

    Raises:
        ErasureError: another process uses a ledger's database; repeating finishes it.
        ManifestError: a manifest is replaced each time that it was read.
        LedgerError: a ledger cannot be used.
        StoreError: the store cannot be used.
    """
    erased, ids = corpus.tombstones.read(), set(video_ids)
    unfinished = erased.unfinished
    if unfinished.keys() - set(map(erased.tombstone, ids)):  # begun by others, who have not come to an end
        ids |= {
            video_id
            for video_id in named_in_store(corpus, erased)
            if erased.tombstone(video_id) in unfinished
        }
    raw_ids = {video_id for video_id in ids if erased.erasures[erased.tombstone(video_id)].raw}
    # manifests are written while ledgers are: any order will do, since tombstones keep both from coming back
    with ThreadPoolExecutor(len(Stage), thread_name_prefix="erase") as beside:
        clearing = [beside.submit(_clear_ledger, corpus, stage, bool(unfinished)) for stage in Stage]
        refused = _remove_objects(corpus, ids, raw_ids.union(raw)) if ids else []
        for one in clearing:
            one.result()
    if ids:
        refused += _remove_versions(corpus, ids, raw_ids.union(raw))
    corpus.tombstones.finish(unfinished)
    return refused


def _clear_ledger(corpus: Corpus, stage: Stage, everything: bool) -> None:
    with corpus.ledger(stage) as ledger:
        ledger.clear_erased(everything=everything)


def _remove_objects(corpus: Corpus, video_ids: Collection[str], raw: Collection[str]) -> list[str]:
    kinds = [(kind, video_ids) for kind in vector_kinds(corpus)] + [(kind, raw) for kind in raw_kinds(corpus)]
    refused: list[StoreError] = []
    for kind, ids in kinds:
        refused += corpus.store.delete_each(_present(corpus.store, kind, ids)).values()
    remove_rows(corpus, video_ids)
    for path in _unfinished_files(corpus, video_ids):
        path.unlink(missing_ok=True)
    return _told(refused, "objects that may not be removed")


def _remove_versions(corpus: Corpus, video_ids: Collection[str], raw: Collection[str]) -> list[str]:
    refused: list[str] = []
    with if_allowed(refused):
        versions = [*previous_versions(corpus, video_ids, raw=raw), *derived_versions(corpus)]
        kept = corpus.store.delete_versions(versions).values()
        refused += _told(kept, "previous versions that may not be removed")
    return refused


def named_in_store(corpus: Corpus, erased: Erased) -> set[str]:
    """The erased videos after which anything in the store is named, or was, if a bucket keeps that.

    Raises:
        StoreError: the store cannot be read.
    """
    found: set[str] = set()
    for kind in [*vector_kinds(corpus), *raw_kinds(corpus)]:
        keys = corpus.store.list(kind.folder)["key"].to_pylist()
        found |= erased.among(filter(None, map(kind.video_id, keys)))
    with if_allowed([]):
        for kind in _kinds_with_versions(corpus):
            versions = corpus.store.previous_versions(kind.folder)
            found |= erased.among(filter(None, (kind.video_id(version.key) for version in versions)))
    return found


def previous_versions(
    corpus: Corpus, video_ids: Collection[str], *, raw: Collection[str]
) -> list[PreviousVersion]:
    """The previous versions of objects that are named after some videos.

    Args:
        raw: the videos of whose raw objects they count too.

    Raises:
        StoreError: the store cannot be read, or previous versions may not be listed.
    """
    found, raw_folders = [], {kind.folder for kind in raw_kinds(corpus)}
    for kind in _kinds_with_versions(corpus):
        keys = kind.keys(raw if kind.folder in raw_folders else video_ids)
        for prefix in keys if len(keys) <= _ASKED_FOR else [kind.folder]:
            versions = corpus.store.previous_versions(prefix)
            found += [version for version in versions if version.key in keys]
    return found


def derived_versions(corpus: Corpus) -> list[PreviousVersion]:
    """The previous versions of manifests, and of snapshots and logs of ledgers. Raises what
    `previous_versions` raises."""
    keys, store = corpus.keys, corpus.store
    prefixes = [keys.manifests_folder(), keys.fused_folder()]
    for stage in Stage:
        prefixes += [keys.ledger_snapshot(stage), keys.ledger_journal_folder(stage)]
    if not store.keeps_versions():
        return []
    return [version for prefix in prefixes for version in store.previous_versions(prefix)]


def _kinds_with_versions(corpus: Corpus) -> list[Kind]:
    if not corpus.store.keeps_versions():
        return []
    return [*vector_kinds(corpus, previous=True), *raw_kinds(corpus)]


def _present(store: ObjectStore, kind: Kind, video_ids: Collection[str]) -> list[str]:
    """The objects of some videos that are there; one that cannot be asked for may be."""
    keys = sorted(kind.keys(video_ids))
    if len(keys) > _ASKED_FOR:
        return [key for key in store.list(kind.folder)["key"].to_pylist() if key in set(keys)]
    answers = zip(keys, store.head_each(keys), strict=True)
    return [key for key, answer in answers if answer is not None]


def _ledger_rows(corpus: Corpus, stage: Stage, video_ids: Collection[str]) -> int:
    with corpus.ledger(stage) as ledger:
        unnamed = [ledger] if ledger.serving() == UNNAMED else []
        every = [*unnamed, *map(ledger.of, ledger.generations())]
        return sum(len(one.rows(video_ids)) for one in every)


def _unfinished_files(corpus: Corpus, video_ids: Collection[str]) -> list[Path]:
    """What broken-off writes to a folder have left that is named after a video, or names one."""
    root = local_path(corpus.store.url)
    if root is None or not video_ids:
        return []
    ids, found = IdText(dict.fromkeys(video_ids, "")), []
    for folder, _, names in os.walk(root / corpus.keys.prefix):
        for name in filter(_UNFINISHED.fullmatch, names):
            path = Path(folder, name)
            if any(ids.spans(name.rpartition("#")[0])) or bytes_hold(path, ids):
                found.append(path)
    return found


@contextlib.contextmanager
def if_allowed(refused: list[str]) -> Iterator[None]:
    """Note where previous versions may not be listed, and go on."""
    try:
        yield
    except StoreError as error:
        if error.code not in _FORBIDDEN:
            raise
        refused.append(f"previous versions of the bucket, which may not be listed ({error.code})")


def _told(errors: Iterable[StoreError], what: str) -> list[str]:
    """What may not be done, by S3's code, and how often; the errors themselves name videos."""
    counts = Counter(error.code or "refused" for error in errors)
    return [f"{count} {what} ({code})" for code, count in sorted(counts.items())]
