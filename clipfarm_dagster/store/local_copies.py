"""Files of vectors and manifests on this machine: copies of store objects, each version downloaded once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clipfarm_dagster.errors import ManifestError, ObjectMissingError
from clipfarm_dagster.store import ObjectStore

_VERSIONS_KEPT = 2
"""Of each object; the one before the latest may still be read by another process."""

_T = TypeVar("_T")
_PART_BYTES = 8 << 20
_LOOKED_EVERY_SECONDS = 0.02


@dataclass(frozen=True)
class LocalFile:
    """A Parquet file on this machine."""

    path: Path
    name: str
    """What a person is told that it is, such as the object that it is a copy of."""
    remedy: str
    """What a person is told to do where it is damaged."""

    @property
    def stem(self) -> str:
        """What the names of all versions of the file in its folder begin with."""
        return self.path.name

    @contextlib.contextmanager
    def reading(self) -> Iterator[Path]:
        """Its path, to be read within the context.

        Raises:
            ManifestError: reading failed, since the file is damaged or gone.
        """
        import pyarrow as pa

        try:
            yield self.path
        except (pa.ArrowException, OSError) as error:
            problem = " ".join(str(error).split())  # Arrow's may have several lines
            raise ManifestError(f"{self.name} cannot be read ({problem}); {self.remedy}") from None


@dataclass(frozen=True)
class LocalCopy(LocalFile):
    """A file with the content of one version of an object."""

    etag: str

    @property
    def stem(self) -> str:
        """What the names of all versions of the file in its folder begin with."""
        return self.path.name.rpartition("-")[0]


@dataclass(frozen=True)
class LocalCopies:
    """Copies of a store's objects in `folder`, one file a version, named by key and ETag."""

    store: ObjectStore
    folder: Path

    def get(self, key: str) -> LocalCopy | None:
        """The object's current version, downloaded where it is not there yet; None if there is
        no object.

        Raises:
            StoreError: the store cannot be read.
        """
        info = self.store.head(key)
        if info is None:
            return None
        path = self._path(key, info.etag)
        if path.exists():
            return self._copy(key, info.etag)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            copy = Path(scratch) / "copy"
            try:
                etag = self.store.download(key, copy).etag
            except ObjectMissingError:
                return None
            return self._keep(key, copy, etag)

    def put(self, key: str, write: Callable[[Path], _T]) -> tuple[_T, LocalCopy]:
        """Upload a file while `write` writes it from beginning to end; gives also what `write` gave. Readers
        of the store see the old object or the new one, each whole; if `write` raises, the old one stays.

        Raises:
            StoreError: the store cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            path, written = Path(scratch) / "copy", Future[_T]()
            path.touch()
            with ThreadPoolExecutor(1, thread_name_prefix="clipfarm-upload") as executor:
                upload = executor.submit(self.store.put_stream, key, _follow(path, written))
                try:
                    written.set_result(write(path))
                except BaseException as error:
                    written.set_exception(error)
                    raise
            return written.result(), self._keep(key, path, upload.result())

    def _keep(self, key: str, file: Path, etag: str) -> LocalCopy:
        path = self._path(key, etag)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)
        versions = sorted(self.folder.glob(f"{self._stem(key)}-*"), key=_modified, reverse=True)
        for old in versions[_VERSIONS_KEPT:]:
            old.unlink(missing_ok=True)
        return self._copy(key, etag)

    def _copy(self, key: str, etag: str) -> LocalCopy:
        remedy = "delete it there and materialize it anew"
        return LocalCopy(self._path(key, etag), f"{self.store.url}: {key!r}", remedy, etag)

    def _stem(self, key: str) -> str:
        return hashlib.sha256(f"{self.store.url} {key}".encode()).hexdigest()[:16]

    def _path(self, key: str, etag: str) -> Path:
        version = hashlib.sha256(etag.encode()).hexdigest()[:16]
        return self.folder / f"{self._stem(key)}-{version}"


def _follow(path: Path, written: Future[Any]) -> Iterator[bytes]:
    """What is in a file, and what another thread goes on to write to it until `written` is done.

    Raises:
        Exception: the one that `written` ends in.
    """
    with path.open("rb") as file:
        while True:
            done = written.done()
            while part := file.read(_PART_BYTES):
                yield part
            if done:
                written.result()
                return
            concurrent.futures.wait([written], timeout=_LOOKED_EVERY_SECONDS)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it just now
        return 0.0
