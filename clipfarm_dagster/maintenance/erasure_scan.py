"""Looks for what is left of erased videos in the home folder, the store and the ledgers' database.

Of vectors the names are looked at, not the numbers; raw objects and the metadata CSV are their owner's.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.catalog.metadata import read_latest_rows
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import LedgerError, MetadataError, ObjectMissingError
from clipfarm_dagster.maintenance.erasure import if_allowed, raw_kinds
from clipfarm_dagster.maintenance.id_text import IdText
from clipfarm_dagster.maintenance.scanning import Trace, scan_file, scan_folder, scan_postgres
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import local_path
from clipfarm_dagster.store.versions import PreviousVersion

if TYPE_CHECKING:
    import pyarrow as pa


def scan_home(corpus: Corpus, ids: IdText, *, besides: Collection[Path] = ()) -> list[Trace]:
    """What is left in the home folder, less the store that may lie there.

    Args:
        besides: folders that others look through.

    Raises:
        OSError: a file cannot be read.
    """
    store = local_path(corpus.store.url)
    return scan_folder(corpus.settings.home, ids, besides=[*besides, *([store] if store else [])])


def scan_store(corpus: Corpus, ids: IdText) -> tuple[list[Trace], list[str]]:
    """What is left in the store, previous versions included; and what may not be looked at. Not looked at are
    raw objects and the metadata CSV.

    Raises:
        StoreError: the store cannot be read.
        OSError: a temporary file cannot be written.
    """
    traces, refused = list[Trace](), list[str]()
    with tempfile.TemporaryDirectory(prefix="clipfarm-") as folder:
        scan = _StoreScan(corpus, ids, Path(folder))
        for key in scan.worth_a_look(corpus.store.list(corpus.keys.prefix)["key"]):
            traces += scan.object(key)
        with if_allowed(refused):
            # a bucket that keeps none would list all objects once more
            versions = corpus.store.previous_versions(f"{corpus.keys.prefix}/")
            for version in versions if corpus.store.keeps_versions() else ():
                traces += scan.version(version)
    return traces, refused


def scan_csv(corpus: Corpus, video_ids: Collection[str]) -> list[str]:
    """What the metadata CSV, which is its owner's, still has of some videos, in words.

    Raises:
        StoreError: the store cannot be read.
    """
    source = corpus.metadata
    told = []
    with tempfile.TemporaryDirectory(prefix="clipfarm-") as folder:
        try:
            copy = Path(folder) / "metadata.csv"
            source.store.download(source.key, copy)
            latest = read_latest_rows(
                copy, url=source.url, source_columns={}, cache_dir=Path(folder), etag=None
            )
            held = len(set(latest.video_ids()).intersection(video_ids))
            if held:
                told.append(f"{source.url}, which still has {held} of the videos: take their rows out")
        except ObjectMissingError:
            pass
        except MetadataError as error:
            told.append(f"{source.url}, which cannot be read: {error.problem}")
    with if_allowed([]):
        if any(version.key == source.key for version in source.store.previous_versions(source.key)):
            told.append(f"previous versions of {source.url}")
    return told


class _StoreScan:
    """Looks through one object after the other."""

    def __init__(self, corpus: Corpus, ids: IdText, folder: Path) -> None:
        self._store, self._ids, self._copy = corpus.store, ids, folder / "copy"
        self._root = local_path(corpus.store.url)
        self._csv = corpus.keys.metadata()
        self._raw = tuple(kind.folder for kind in raw_kinds(corpus))
        self._vectors = tuple(f"{corpus.keys.prefix}/{name}/" for name in ("embeddings", "generations"))

    def worth_a_look(self, keys: pa.ChunkedArray) -> list[str]:
        """Of all keys those that may have an id in their name, or whose objects have more than numbers."""
        import pyarrow.compute as pc

        numbers = pc.match_substring_regex(
            keys, f"^(?:{'|'.join(map(re.escape, self._vectors + self._raw))})"
        )
        named = self._ids.mask(keys.combine_chunks())
        found: list[str] = keys.filter(pc.or_(pc.invert(numbers), named)).to_pylist()
        return found

    def object(self, key: str) -> list[Trace]:
        """What is left in an object and its name."""
        if key == self._csv or key.startswith(self._raw):
            return []
        traces = self._named(key, "its name")
        if key.startswith(self._vectors):
            return traces
        if self._root is not None:
            return traces + self._inside(key, self._root / key)
        with contextlib.suppress(ObjectMissingError):  # gone meanwhile
            self._store.download(key, self._copy)
            traces += self._inside(key, self._copy)
        return traces

    def version(self, version: PreviousVersion) -> list[Trace]:
        """What is left in a previous version of an object and its name."""
        if version.key == self._csv or version.key.startswith(self._raw):
            return []
        traces = self._named(version.key, "a previous version's name")
        if version.size is not None and not version.key.startswith(self._vectors):
            self._store.download_version(version, self._copy)
            traces += self._inside(f"{version.key}, a previous version", self._copy)
        return traces

    def _named(self, key: str, what: str) -> list[Trace]:
        count = len(list(self._ids.spans(key)))
        return [Trace(self._place(f"{key}: {what}"), count)] if count else []

    def _inside(self, key: str, path: Path) -> list[Trace]:
        return [
            Trace(self._place(trace.place.replace(str(path), key, 1)), trace.count)
            for trace in scan_file(path, self._ids)
        ]

    def _place(self, key: str) -> str:
        return self._ids.masked(f"{self._store.url}: {key}")


def scan_ledgers(corpus: Corpus, ids: IdText) -> list[Trace]:
    """What is left in the ledgers' database, where that is a server; files lie in the home folder.

    Raises:
        LedgerError: it cannot be read.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from clipfarm_dagster.ledger.postgres import postgres_engine

    if not corpus.settings.state_url:
        return []
    url = make_url(corpus.settings.state_url).set(drivername="postgresql+psycopg2")
    # a look through everything may take longer than a statement may
    options = [*url.normalized_query.get("options", ()), "-c statement_timeout=0"]
    engine = postgres_engine(url.update_query_dict({"options": " ".join(options)}))
    schemas = [f"clipfarm_{stage}" for stage in Stage]
    try:
        with engine.connect() as connection:
            return scan_postgres(connection, ids, schemas=schemas)
    except SQLAlchemyError as error:
        problem = " ".join(str(getattr(error, "orig", None) or type(error).__name__).split())
        raise LedgerError(f"the ledgers' database cannot be looked through: {problem}") from None
    finally:
        engine.dispose()
