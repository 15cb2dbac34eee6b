"""Copies of large store objects in the home folder, so that each version is downloaded once."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from clipfarm_dagster.errors import ObjectMissingError
from clipfarm_dagster.store import ObjectStore

_VERSIONS_KEPT = 2
"""Of each object; the one before the latest may still be read by another process."""


@dataclass(frozen=True)
class LocalCopy:
    """A file with the content of one version of an object."""

    path: Path
    etag: str


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
            return LocalCopy(path, info.etag)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            copy = Path(scratch) / "copy"
            try:
                etag = self.store.download(key, copy).etag
            except ObjectMissingError:
                return None
            return self._keep(key, copy, etag)

    def put(self, key: str, path: Path) -> LocalCopy:
        """Upload the file, which becomes the copy of that version. Readers of the store see the old object
        or the new one, each whole.

        Raises:
            StoreError: the store cannot be written.
        """
        return self._keep(key, path, self.store.put_file(key, path))

    def _keep(self, key: str, file: Path, etag: str) -> LocalCopy:
        path = self._path(key, etag)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)
        versions = sorted(self.folder.glob(f"{self._stem(key)}-*"), key=_modified, reverse=True)
        for old in versions[_VERSIONS_KEPT:]:
            old.unlink(missing_ok=True)
        return LocalCopy(path, etag)

    def _stem(self, key: str) -> str:
        return hashlib.sha256(f"{self.store.url} {key}".encode()).hexdigest()[:16]

    def _path(self, key: str, etag: str) -> Path:
        version = hashlib.sha256(etag.encode()).hexdigest()[:16]
        return self.folder / f"{self._stem(key)}-{version}"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it just now
        return 0.0
