"""What a bucket keeps of objects that were written over or removed: their previous versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipfarm_dagster.errors import StoreError
from clipfarm_dagster.store.backend import Backend

_UNKNOWN_REQUEST = ("NotImplemented", "MethodNotAllowed")
"""What servers answer that keep no versions at all."""
_A_REQUEST = 1000
"""The most that S3 removes by one."""


@dataclass(frozen=True)
class PreviousVersion:
    """A version of an object that is not its present one, or the mark that an object was removed."""

    key: str
    version_id: str
    size: int | None
    """Bytes; None of a mark, which has only a key."""


class PreviousVersions(Backend):
    """What a store does with previous versions. A folder has none, nor has a bucket that never kept any."""

    def keeps_versions(self) -> bool:
        """Whether there may be previous versions.

        Raises:
            StoreError: the store cannot be read.
        """
        if self._root is not None:
            return False
        try:
            with self._errors_named(""):
                return self._s3_connection.keeps_versions()
        except StoreError as error:
            if error.code in _UNKNOWN_REQUEST:
                return False
            if error.code == "AccessDenied":  # another right than that to list them
                return True
            raise

    def previous_versions(self, prefix: str) -> Iterator[PreviousVersion]:
        """The previous versions of all objects whose keys begin with `prefix`, of removed ones too.

        Raises:
            StoreError: they may not be listed, or the store cannot be read.
        """
        if self._root is not None:
            return
        pages = self._s3_connection.version_pages(prefix)
        while True:
            try:
                with self._errors_named(prefix):
                    page = next(pages, None)
            except StoreError as error:
                if error.code in _UNKNOWN_REQUEST:
                    return
                raise
            if page is None:
                return
            for entry in page.get("Versions", []):
                if not entry["IsLatest"]:
                    yield PreviousVersion(entry["Key"], entry["VersionId"], entry["Size"])
            for entry in page.get("DeleteMarkers", []):
                yield PreviousVersion(entry["Key"], entry["VersionId"], None)

    def download_version(self, version: PreviousVersion, path: Path) -> None:
        """Write the bytes of a previous version into a file.

        Raises:
            StoreError: it may not be read, or is gone.
        """
        with self._errors_named(version.key):
            self._s3_connection.download_version(version.key, version.version_id, path)

    def delete_versions(self, versions: Sequence[PreviousVersion]) -> dict[PreviousVersion, StoreError]:
        """Remove previous versions for good; that one is gone is no error. Returns those that may not be
        removed, each with its error.

        Raises:
            StoreError: none may be, or the store cannot be written.
        """
        refused: dict[PreviousVersion, StoreError] = {}
        for start in range(0, len(versions), _A_REQUEST):
            some = versions[start : start + _A_REQUEST]
            by_id = {(version.key, version.version_id): version for version in some}
            with self._errors_named(some[0].key):
                errors = self._s3_connection.delete_versions(list(by_id))
            for error in errors:
                problem = f"{self.url}: {error['Key']!r}: {error.get('Message')} ({error.get('Code')})"
                version = by_id[error["Key"], error["VersionId"]]
                refused[version] = StoreError(problem, code=error.get("Code"))
        return refused

    def folders(self, prefix: str, *, previous: bool = False) -> list[str]:
        """The folders right in the folder `prefix`, both with a slash at the end.

        Args:
            previous: also those that only previous versions lie in.

        Raises:
            StoreError: the store cannot be read; or with `previous`, versions may not be listed.
        """
        if self._root is not None:
            root = self._root / prefix
            found = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
            return sorted(f"{prefix}{name}/" for name in found)
        with self._errors_named(prefix):
            found = list(self._s3_connection.folders(prefix))
        if previous:
            try:
                with self._errors_named(prefix):
                    found += self._s3_connection.folders_of_versions(prefix)
            except StoreError as error:
                if error.code not in _UNKNOWN_REQUEST:
                    raise
        return sorted(set(found))
