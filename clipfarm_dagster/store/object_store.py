"""The object store behind one URL, an S3 bucket or a local folder: the same calls and answers for both.

Reads, writes and listings go through obstore. Every object has an ETag, a string that changes whenever its
content is written anew; `list`, `head`, `get` and the writing calls all give the same ETag for the same
version. In S3 it is the server's. In a folder it is made of inode, modification time and size: a write always
differs from the version that it replaces, and could only equal an older one of the same size that was itself
written within the same tick (some milliseconds) of the file system's clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from clipfarm_dagster.errors import (
    ObjectMissingError,
    PreconditionFailedError,
    StoreError,
)
from clipfarm_dagster.store.backend import checked, folder_of, local_path
from clipfarm_dagster.store.fetching import as_they_come, by_threads
from clipfarm_dagster.store.integrity import contradicts
from clipfarm_dagster.store.s3 import SLOWEST_BYTES_PER_SECOND, S3Options
from clipfarm_dagster.store.single_objects import ObjectInfo, SingleObjects, StoredObject, info_of
from clipfarm_dagster.store.versions import PreviousVersions

__all__ = ["ObjectInfo", "ObjectStore", "S3Options", "StoredObject", "local_path"]

CONCURRENCY = 32
"""Requests that many reads or writes keep under way by default."""

FETCH_SECONDS = 120.0
"""Most that an object may take by default, besides what its size needs; more than a store that is away is
waited for."""

COPIES_AT_ONCE = 128
"""Copies that `copy_each` keeps under way by default: more are no faster."""

_HEADS_AT_ONCE = 16
_KEYS_A_DELETION = 1000
"""The most that S3 removes by one request."""
_BATCHES_AT_ONCE = 4


class Copy(Protocol):
    """What is copied where, as `ObjectStore.copy_each` is told."""

    @property
    def source_key(self) -> str:
        """The object that is copied."""

    @property
    def target_key(self) -> str:
        """Where to."""

    @property
    def target_etag(self) -> str | None:
        """The version that is replaced; None to copy only where there is no object."""


@dataclass(frozen=True)
class Copied:
    """An object has the bytes that were to be copied to it."""

    etag: str
    already_there: bool = False
    """Whether it had them before, so that nothing was written."""


C = TypeVar("C", bound=Copy)
P = TypeVar("P")


class ObjectStore(SingleObjects, PreviousVersions):
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
                info = info_of(result.meta)
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

    def copy_each(
        self,
        copies: Iterable[C],
        problem: Callable[[C, bytes], P | None],
        known: Callable[[C], bytes | None] = lambda copy: None,
        *,
        max_concurrency: int = COPIES_AT_ONCE,
    ) -> Generator[tuple[C, Copied | P | StoreError]]:
        """Copy many small objects within the store, each over the version of the target that was named, and
        give what became of each as soon as it is known.

        The bytes that are read are the bytes that are written, unless `problem` says what is wrong with
        them; that is given then, and nothing is written. Where `known` gives the bytes that the source has to
        have, these are written, and the source is not read. Also given, not raised: a source that is missing
        (ObjectMissingError), a target that somebody else has changed meanwhile (PreconditionFailedError),
        and trouble with one key alone. A target that holds the same bytes counts as copied, so a copy may be
        repeated, and it does not matter whether the answer to a request was lost.

        Copies are taken as it goes; at most `max_concurrency` are under way or wait to be taken, in a folder
        one. Closing the iterator waits for those under way.
        """
        # conditional writes into a folder wait for one lock
        at_once = max_concurrency if self._root is None else 1
        request = partial(self._copy, problem=problem, known=known)
        asked = map(_checked_copy, copies)
        with closing(by_threads(asked, request, max_concurrency=at_once)) as answers:
            for copy, (answer, written) in answers:
                if isinstance(answer, StoreError) and not isinstance(answer, PreconditionFailedError):
                    key = copy.source_key if written is None else copy.target_key
                    self._check_own_trouble(key, answer, written=written)
                yield copy, answer

    def _copy(
        self, copy: C, problem: Callable[[C, bytes], P | None], known: Callable[[C], bytes | None]
    ) -> tuple[Copied | P | StoreError, bytes | None]:
        """What became of a copy, and the bytes that were, or were to be, written."""
        data = known(copy)
        try:
            if data is None:
                source = self.get(copy.source_key)
                wrong = problem(copy, source.data)
                if wrong is not None:
                    return wrong, None
                data = source.data
            return Copied(self.put_if_unchanged(copy.target_key, data, copy.target_etag)), data
        except StoreError as error:
            # an earlier try, or another machine, may have written them, and so may a request that seems to
            # have failed
            found = None if data is None else self._etag_if_holding(copy.target_key, data)
            return error if found is None else Copied(found, already_there=True), data

    def _etag_if_holding(self, key: str, data: bytes) -> str | None:
        """The object's version if it can be read and has these very bytes."""
        try:
            found = self.get(key)
        except StoreError:
            return None  # the caller has the error that led here
        return found.info.etag if found.data == data else None

    def delete_each(self, keys: Iterable[str]) -> dict[str, StoreError]:
        """Remove many objects, a thousand a request; that one is not there is no error.

        Returns those that could not be removed, while the store as a whole can be used, each with its error.
        On an error that is raised, some have been removed.
        """
        batches = iter(partial(_taken, map(checked, keys)), [])
        refused: dict[str, StoreError] = {}
        with closing(as_they_come(batches, self._delete, max_concurrency=_BATCHES_AT_ONCE)) as answers:
            for done in answers:
                if done is not None:
                    refused |= self._delete_singly(*done)
        return refused

    async def _delete(self, keys: Sequence[str]) -> None:
        import obstore

        await obstore.delete_async(self._backend, keys)

    def _delete_singly(self, keys: Sequence[str], at_once: Future[None]) -> dict[str, StoreError]:
        """Remove the objects one by one where they could not be removed at once: the answer tells of one
        that failed, and the others may have gone or not."""
        try:
            with self._errors_named(keys[0]):
                at_once.result()
            return {}
        except ObjectMissingError:  # a folder's only
            pass
        except StoreError as error:
            self._check_own_trouble(keys[0], error)
        refused: dict[str, StoreError] = {}
        for key in keys:
            try:
                self.delete(key)
            except StoreError as error:
                self._check_own_trouble(key, error)
                refused[key] = error
        return refused


def _checked_copy(copy: C) -> C:
    checked(copy.source_key)
    checked(copy.target_key)
    return copy


def _taken(keys: Iterator[str]) -> list[str]:
    return list(islice(keys, _KEYS_A_DELETION))
