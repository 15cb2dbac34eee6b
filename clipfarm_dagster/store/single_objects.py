"""One object at a time: read, written on condition or not, listed, removed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.errors import ObjectMissingError, StoreError, StoreUnavailableError
from clipfarm_dagster.store.backend import Backend, checked
from clipfarm_dagster.store.listing import ETAG_WRAPPING, Skipped, list_bucket, list_folder, to_table
from clipfarm_dagster.store.whole_files import written_whole

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore import ObjectMeta, PutMode

_SMALL_BYTES = 1 << 20
"""An upload of so many bytes takes no time to speak of."""

_LISTED_AT_ONCE = 16
_LOCK_NAME = ".lock#0"
"""Lock file of a folder. obstore never lists a name that ends in `#` and digits."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows of one version of an object; `size` in bytes."""

    key: str
    etag: str
    size: int
    last_modified: datetime


@dataclass(frozen=True)
class StoredObject:
    """An object's bytes and the version that they are."""

    data: bytes
    info: ObjectInfo


class SingleObjects(Backend):
    """What a store does with one object, and its listing."""

    def head(self, key: str) -> ObjectInfo | None:
        """The object's current version, or None if there is no object."""
        import obstore

        try:
            with self._errors_named(key):
                return info_of(obstore.head(self._backend, checked(key)))
        except ObjectMissingError:
            return None

    def listed_etag(self, key: str) -> str | None:
        """The object's current version as a listing tells it, which takes no right to read the object."""
        if self._root is not None:
            info = self.head(key)
            return None if info is None else info.etag
        with self._errors_named(key):
            page = self._s3_connection.list_page(checked(key), None, keys=1)
        return etag_of(page.etags[0]) if list(page.keys) == [key] else None

    def get(self, key: str, *, max_bytes: int | None = None) -> StoredObject:
        """Read an object whole; one that is larger than `max_bytes` comes without its data.

        Raises:
            ObjectMissingError: there is none.
        """
        import obstore

        with self._errors_named(key):
            result = obstore.get(self._reading_backend, checked(key))
            info = info_of(result.meta)
            if max_bytes is not None and info.size > max_bytes:
                return StoredObject(b"", info)
            return StoredObject(bytes(result.bytes()), info)

    def put(self, key: str, data: bytes) -> str:
        """Write an object and return its ETag. Readers see the old or the new content, each whole."""
        return self._put(key, data)

    def put_if_unchanged(self, key: str, data: bytes, etag: str | None) -> str:
        """Write an object only if its current ETag is `etag` (None: only if there is no object).

        Returns the new ETag. In a folder this holds among programs that write by this class.

        Raises:
            PreconditionFailedError: somebody else has written, or removed, the object in between; or, rarely,
                S3's answer was lost and the repeated request met its own write.
        """
        return self._put_if_unchanged(key, data, len(data), etag)

    def copy(self, key: str, to: str) -> None:
        """Copy an object within the store, whatever lies at `to`.

        Raises:
            ObjectMissingError: there is none.
        """
        import obstore

        with self._errors_named(key):
            obstore.copy(self._backend, checked(key), checked(to), overwrite=True)

    def put_stream(self, key: str, parts: Iterator[bytes]) -> str:
        """Write an object, as `put` does, of parts that may be yet to come; nothing is written if they end in
        an error, which is raised."""
        return self._put(key, parts)

    def put_file_if_unchanged(self, key: str, path: Path, etag: str | None) -> str:
        """Upload a file as `put_if_unchanged` does. For S3 the file is held in memory meanwhile."""
        return self._put_if_unchanged(key, path, path.stat().st_size, etag)

    def download(self, key: str, path: Path) -> ObjectInfo:
        """Stream an object into the file `path`, which appears, or is replaced, only once it is whole.

        Raises:
            ObjectMissingError: there is none.
        """
        import obstore

        with self._errors_named(key):
            result = obstore.get(self._reading_backend, checked(key))
            chunks = iter(result.stream())
        with written_whole(path) as part, part.open("wb") as file:
            while True:
                with self._errors_named(key):
                    chunk = next(chunks, None)
                if chunk is None:
                    break
                file.write(chunk)
        return info_of(result.meta)

    def list(self, prefix: str = "", *, split_at: Iterable[str] = ()) -> pa.Table:
        """All objects below the folder `prefix` and its subfolders; `""` lists the whole store.

        Args:
            split_at: keys, wherever, between which S3 is listed at the same time. A server gives a thousand
                keys an answer, one answer after the other, so that a million takes minutes otherwise.

        Returns a table of `key` (string), `etag` (string) and `size` (int64, bytes), in no special order,
        with no rows if nothing is there.
        """
        folder = prefix.removesuffix("/")
        if folder:
            checked(folder)
        if self._root is not None:
            self._check_there(folder)
            skipped = Skipped()
            with self._errors_named(folder):
                return to_table(list_folder(self._backend, self._root, folder, skipped), skipped)
        bounds = [None, *sorted(set(split_at)), None]
        with ThreadPoolExecutor(_LISTED_AT_ONCE, thread_name_prefix="clipfarm-list") as executor:
            parts = list(executor.map(partial(self._list_between, folder), bounds[:-1], bounds[1:]))
        skipped = Skipped()
        for _, left_out in parts:
            skipped.add(left_out)
        return to_table([batch for batches, _ in parts for batch in batches], skipped)

    def _list_between(
        self, folder: str, after: str | None, last: str | None
    ) -> tuple[Sequence[pa.RecordBatch], Skipped]:
        skipped = Skipped()
        with self._errors_named(folder):
            list_page = self._s3_connection.list_page
            return list(list_bucket(self._backend, list_page, folder, after, last, skipped)), skipped

    def delete(self, key: str) -> None:
        """Remove an object; that there is none is no error."""
        import obstore

        try:
            with self._errors_named(key):
                obstore.delete(self._backend, checked(key))
        except ObjectMissingError:
            return

    def _put(self, key: str, data: bytes | Path | Iterator[bytes]) -> str:
        import obstore

        with self._errors_named(key):
            return etag_of(obstore.put(self._backend, checked(key), data)["e_tag"])

    def _put_if_unchanged(self, key: str, data: bytes | Path, size: int, etag: str | None) -> str:
        import obstore

        if self._root is not None and etag is not None:
            with self._locked(self._root):
                current = self.head(key)
                if current is None or current.etag != etag:
                    raise self._lost(key)
                return self._put(key, data)
        with self._errors_named(key):
            # A conditional upload is one request, so its time limit grows with its size.
            large = self._root is None and size > _SMALL_BYTES
            backend = self._s3_connection.connect(size) if large else self._backend
            try:
                return etag_of(obstore.put(backend, checked(key), data, mode=_mode(etag))["e_tag"])
            except FileNotFoundError:
                self._check_there(key)
                raise self._lost(key) from None

    @contextmanager
    def _locked(self, root: Path) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(root / _LOCK_NAME, timeout=self._s3.give_up_seconds)
        try:
            lock.acquire()
        except Timeout:
            raise StoreUnavailableError(
                f"{self.url}: another program has held {lock.lock_file} for {self._s3.give_up_seconds:g} s"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.url}: cannot lock the folder: {error}") from error
        try:
            yield
        finally:
            lock.release()


def _mode(etag: str | None) -> PutMode:
    return "create" if etag is None else {"e_tag": f'"{etag}"'}


def etag_of(raw: str | None) -> str:
    """An ETag in its one form: without quotes and weak mark. Listings do the same in bulk."""
    if raw is None:
        raise StoreError("the store gives no ETags, which ClipFarm needs")
    return re.sub(ETAG_WRAPPING, "", raw)


def info_of(meta: ObjectMeta) -> ObjectInfo:
    """What obstore tells of an object."""
    return ObjectInfo(meta["path"], etag_of(meta["e_tag"]), meta["size"], meta["last_modified"])
