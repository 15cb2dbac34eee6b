"""The object store behind one URL, an S3 bucket or a local folder: the same calls and answers for both.

Reads, writes and listings go through obstore. Every object has an ETag, a string that changes whenever its
content is written anew; `list`, `head`, `get` and the writing calls all give the same ETag for the same
version. In S3 it is the server's. In a folder it is made of inode, modification time and size: a write always
differs from the version that it replaces, and could only equal an older one of the same size that was itself
written within the same tick (some milliseconds) of the file system's clock.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.errors import (
    ObjectMissingError,
    PreconditionFailedError,
    StoreError,
    StoreUnavailableError,
)
from clipfarm_dagster.store.backend import Backend, checked, folder_of, local_path
from clipfarm_dagster.store.fetching import as_they_come
from clipfarm_dagster.store.integrity import contradicts
from clipfarm_dagster.store.listing import ETAG_WRAPPING, Skipped, list_bucket, list_folder, to_table
from clipfarm_dagster.store.s3 import SLOWEST_BYTES_PER_SECOND, S3Options
from clipfarm_dagster.store.whole_files import written_whole

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore import ObjectMeta, PutMode

__all__ = ["ObjectInfo", "ObjectStore", "S3Options", "StoredObject", "local_path"]

CONCURRENCY = 32
"""Requests that many reads or writes keep under way by default."""

FETCH_SECONDS = 120.0
"""Most that an object may take by default, besides what its size needs; more than a store that is away is
waited for."""

_HEADS_AT_ONCE = 16
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


class ObjectStore(Backend):
    """A bucket or a folder. Threads may share one; pickling takes the address along and connects anew.

    A child process must be spawned, not forked: in a fork of a process that has used a store, calls hang.

    Every method that takes a key raises StoreError for one that is empty, absolute or over 1024 bytes,
    or has an empty, `.` or `..` segment or a control character. All raise StoreUnavailableError when the
    store as a whole cannot be used, and StoreError for other trouble with one key.
    """

    @classmethod
    def open(cls, url: str, *, s3: S3Options | None = None) -> ObjectStore:
        """Open the store at `url`: `s3://bucket`, a folder's path, or `file:///folder`.

        A folder is created. For S3 nothing is looked up or connected to before the first request.

        Raises:
            SettingsError: `url` is none of these.
            StoreError: the folder cannot be created.
        """
        store = cls(url, s3)
        if store._root is not None:
            try:
                store._root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{store.url}: cannot create the folder: {error.strerror}") from error
        return store

    def open_other(self, url: str) -> ObjectStore:
        """Open the store at `url`, as `open` does, with the S3 options of this one."""
        return ObjectStore.open(url, s3=self._s3)

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def __reduce__(self) -> tuple[Callable[..., ObjectStore], tuple[str, S3Options]]:
        return ObjectStore, (self.url, self._s3)

    def head(self, key: str) -> ObjectInfo | None:
        """The object's current version, or None if there is no object."""
        import obstore

        try:
            with self._errors_named(key):
                return _info(obstore.head(self._backend, checked(key)))
        except ObjectMissingError:
            return None

    def head_each(
        self, keys: Sequence[str], *, max_concurrency: int = _HEADS_AT_ONCE
    ) -> list[ObjectInfo | StoreError | None]:
        """What `head` says of many objects, in order; trouble with one key alone is given, not raised."""

        def ask(key: str) -> ObjectInfo | StoreError | None:
            try:
                return self.head(key)
            except StoreError as error:
                return error

        with ThreadPoolExecutor(max_concurrency, thread_name_prefix="clipfarm-head") as executor:
            answers = list(executor.map(ask, keys))
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, StoreError):
                self._check_own_trouble(key, answer)
        return answers

    def listed_etag(self, key: str) -> str | None:
        """The object's current version as a listing tells it, which takes no right to read the object."""
        if self._root is not None:
            info = self.head(key)
            return None if info is None else info.etag
        with self._errors_named(key):
            page = self._s3_connection.list_page(checked(key), None, keys=1)
        return _etag(page.etags[0]) if list(page.keys) == [key] else None

    def get(self, key: str, *, max_bytes: int | None = None) -> StoredObject:
        """Read an object whole; one that is larger than `max_bytes` comes without its data.

        Raises:
            ObjectMissingError: there is none.
        """
        import obstore

        with self._errors_named(key):
            result = obstore.get(self._reading_backend, checked(key))
            info = _info(result.meta)
            if max_bytes is not None and info.size > max_bytes:
                return StoredObject(b"", info)
            return StoredObject(bytes(result.bytes()), info)

    def get_many(
        self, keys: Iterable[str], *, max_concurrency: int = CONCURRENCY, max_bytes: int | None = None
    ) -> Iterator[tuple[str, StoredObject | ObjectMissingError]]:
        """Read many objects as `get` does, in the order of `keys`; missing ones are given as the error, not
        raised.

        The next ones are fetched while the caller works; at most `max_concurrency` are held at a time.
        """

        def get_or_missing(key: str) -> StoredObject | ObjectMissingError:
            try:
                return self.get(key, max_bytes=max_bytes)
            except ObjectMissingError as error:
                return error

        executor = ThreadPoolExecutor(max_concurrency, thread_name_prefix="clipfarm-get")
        waiting: deque[tuple[str, Future[StoredObject | ObjectMissingError]]] = deque()
        try:
            for key in keys:
                if len(waiting) == max_concurrency:
                    first, future = waiting.popleft()
                    yield first, future.result()
                waiting.append((key, executor.submit(get_or_missing, key)))
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def get_each(
        self,
        keys: Iterable[str],
        *,
        max_concurrency: int = CONCURRENCY,
        max_bytes: int | None = None,
        timeout_seconds: float = FETCH_SECONDS,
        wake_seconds: float | None = None,
    ) -> Generator[tuple[str, StoredObject | StoreError] | None]:
        """Read many objects as `get` does, and give each as soon as it is there.

        Trouble with one key alone is given, not raised: an object that is missing, that cannot be read while
        others can, whose bytes are not those of its ETag, or that takes longer than `timeout_seconds` and
        what its size needs at `SLOWEST_BYTES_PER_SECOND`. At most `max_concurrency` are under way or wait to
        be taken.
        With `wake_seconds`, None is given whenever nothing has come for so long.
        """
        request = partial(self._fetch, max_bytes=max_bytes, timeout_seconds=timeout_seconds)
        come = as_they_come(keys, request, max_concurrency=max_concurrency, wake_seconds=wake_seconds)
        with closing(come) as answers:
            for done in answers:
                if done is None:
                    yield None
                    continue
                key, future = done
                answer: StoredObject | StoreError
                try:
                    with self._errors_named(key):
                        answer, doubtful = future.result()
                    if doubtful:
                        self._check_bytes(key, answer.info.etag)
                    self._readable[folder_of(key)] = (key, answer.info.size)
                except StoreError as error:
                    self._check_own_trouble(key, error)
                    answer = error
                yield key, answer

    async def _fetch(
        self, key: str, *, max_bytes: int | None, timeout_seconds: float
    ) -> tuple[StoredObject, bool]:
        """The object, and whether its ETag seems to contradict its bytes."""
        import obstore

        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(began + timeout_seconds) as limit:
                result = await obstore.get_async(self._reading_backend, checked(key))
                info = _info(result.meta)
                if max_bytes is not None and info.size > max_bytes:
                    return StoredObject(b"", info), False
                limit.reschedule(began + timeout_seconds + info.size / SLOWEST_BYTES_PER_SECOND)
                data = bytes(await result.bytes_async())
            doubtful = await asyncio.to_thread(contradicts, info.etag, data)
            return StoredObject(data, info), doubtful
        except TimeoutError:
            raise StoreError(
                f"{self.url}: {key!r}: fetching it took longer than CLIPFARM_FETCH_TIMEOUT_SECONDS="
                f"{timeout_seconds:g}, plus one second for each {SLOWEST_BYTES_PER_SECOND // 1024} KiB"
            ) from None

    def put(self, key: str, data: bytes) -> str:
        """Write an object and return its ETag. Readers see the old or the new content, each whole."""
        return self._put(key, data)

    def put_many(
        self, items: Sequence[tuple[str, bytes]], *, max_concurrency: int = CONCURRENCY
    ) -> list[str]:
        """Write many objects at once and return their ETags in order.

        On an error, which is raised, some of the others have been written and some have not.
        """
        executor = ThreadPoolExecutor(max_concurrency, thread_name_prefix="clipfarm-put")
        try:
            return list(executor.map(lambda item: self.put(*item), items))
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def put_each(
        self, items: Sequence[tuple[str, bytes, str | None]], *, max_concurrency: int = CONCURRENCY
    ) -> list[str | StoreError]:
        """Write many objects as `put_if_unchanged` does, each with its ETag, and return their new ETags in
        order. That one has been changed meanwhile, and trouble with one key alone, is given, not raised."""

        def put(item: tuple[str, bytes, str | None]) -> str | StoreError:
            try:
                return self.put_if_unchanged(*item)
            except StoreError as error:
                return error

        # conditional writes into a folder wait for one lock
        threads = max_concurrency if self._root is None else 1
        with ThreadPoolExecutor(threads, thread_name_prefix="clipfarm-put") as executor:
            answers = list(executor.map(put, items))
        for (key, data, _), answer in zip(items, answers, strict=True):
            if isinstance(answer, StoreError) and not isinstance(answer, PreconditionFailedError):
                self._check_own_trouble(key, answer, written=data)
        return answers

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
        return _info(result.meta)

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
            return _etag(obstore.put(self._backend, checked(key), data)["e_tag"])

    def _put_if_unchanged(self, key: str, data: bytes | Path, size: int, etag: str | None) -> str:
        import obstore

        if self._root is not None and etag is not None:
            with self._locked(self._root):
                current = self.head(key)
                if current is None or current.etag != etag:
                    raise self._lost(key)
                return self._put(key, data)
        mode: PutMode = "create" if etag is None else {"e_tag": f'"{etag}"'}
        with self._errors_named(key):
            # A conditional upload is one request, so its time limit grows with its size.
            large = self._root is None and size > _SMALL_BYTES
            backend = self._s3_connection.connect(size) if large else self._backend
            try:
                return _etag(obstore.put(backend, checked(key), data, mode=mode)["e_tag"])
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


def _etag(raw: str | None) -> str:
    """The one form of an ETag: without quotes and weak mark. Listings do the same in bulk."""
    if raw is None:
        raise StoreError("the store gives no ETags, which ClipFarm needs")
    return re.sub(ETAG_WRAPPING, "", raw)


def _info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], _etag(meta["e_tag"]), meta["size"], meta["last_modified"])
