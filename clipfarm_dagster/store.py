"""The object store behind one URL, an S3 bucket or a local folder: the same calls and answers for both.

Reads, writes and listings go through obstore. Every object has an ETag, a string that changes whenever its
content is written anew; `list`, `head`, `get` and the writing calls all give the same ETag for the same
version. In S3 it is the server's. In a folder it is made of inode, modification time and size: a write always
differs from the version that it replaces, and could only equal an older one of the same size that was itself
written within the same tick (some milliseconds) of the file system's clock.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from clipfarm_dagster.errors import (
    ObjectMissingError,
    PreconditionFailedError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from clipfarm_dagster.s3 import S3Options, s3_connector

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore import ObjectMeta, PutMode
    from obstore.store import LocalStore, S3Store

CONCURRENCY = 32
"""Requests that `get_many` and `put_many` keep under way by default."""

_LISTED_AT_ONCE = 16
_KEYS_AN_ANSWER = 1000
"""The most that S3 gives."""

_ETAG_WRAPPING = r'^(?:W/)?"|"$'
_BAD_IN_KEY = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f]")
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


class ObjectStore:
    """A bucket or a folder. Threads may share one; pickling takes the address along and connects anew.

    A child process must be spawned, not forked: in a fork of a process that has used a store, calls hang.

    Every method that takes a key raises StoreError for one that is empty, absolute or over 1024 bytes,
    or has an empty, `.` or `..` segment or a control character. All raise StoreUnavailableError when the
    store as a whole cannot be used, and StoreError for other trouble with one key.
    """

    def __init__(self, url: str, s3: S3Options | None = None) -> None:
        bucket, root = _parse_url(url)
        self.url = f"s3://{bucket}" if bucket else str(root)
        """`s3://bucket` or the folder's absolute path; never holds credentials."""
        self._bucket, self._root, self._s3 = bucket, root, s3 or S3Options()
        self._bucket_seen = False

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
                return _info(obstore.head(self._backend, _checked(key)))
        except ObjectMissingError:
            return None

    def get(self, key: str, *, max_bytes: int | None = None) -> StoredObject:
        """Read an object whole; one that is larger than `max_bytes` comes without its data.

        Raises:
            ObjectMissingError: there is none.
        """
        import obstore

        with self._errors_named(key):
            result = obstore.get(self._backend, _checked(key))
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

    def put_if_unchanged(self, key: str, data: bytes, etag: str | None) -> str:
        """Write an object only if its current ETag is `etag` (None: only if there is no object).

        Returns the new ETag. In a folder this holds among programs that write by this class.

        Raises:
            PreconditionFailedError: somebody else has written, or removed, the object in between; or, rarely,
                S3's answer was lost and the repeated request met its own write.
        """
        return self._put_if_unchanged(key, data, len(data), etag)

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

        partial = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.partial")
        try:
            with self._errors_named(key):
                result = obstore.get(self._backend, _checked(key))
                chunks = iter(result.stream())
            with partial.open("wb") as file:
                while True:
                    with self._errors_named(key):
                        chunk = next(chunks, None)
                    if chunk is None:
                        break
                    file.write(chunk)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return _info(result.meta)

    def list(self, prefix: str = "", *, split_at: Iterable[str] = ()) -> pa.Table:
        """All objects below the folder `prefix` and its subfolders; `""` lists the whole store.

        Args:
            split_at: keys, wherever, between which S3 is listed at the same time. A server gives a thousand
                keys an answer, one answer after the other, so that a million takes minutes otherwise.

        Returns a table of `key` (string), `etag` (string) and `size` (int64, bytes), in no special order,
        with no rows if nothing is there.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        folder = prefix.removesuffix("/")
        if self._root is not None and not self._root.is_dir():
            raise StoreUnavailableError(f"{self.url}: the folder is gone; mount it, or set another store")
        # the objects of a folder do not come in the order of their keys
        bounds = [None, *(sorted(set(split_at)) if self._root is None else ()), None]
        with ThreadPoolExecutor(_LISTED_AT_ONCE, thread_name_prefix="clipfarm-list") as executor:
            parts = executor.map(partial(self._list_between, folder), bounds[:-1], bounds[1:])
            batches = [batch for part in parts for batch in part]
        schema = pa.schema({"key": pa.string(), "etag": pa.string(), "size": pa.int64()})
        found = pa.Table.from_batches(
            [batch.rename_columns(schema.names).cast(schema) for batch in batches], schema
        )
        etags = pc.replace_substring_regex(found["etag"], pattern=_ETAG_WRAPPING, replacement="")
        return found.set_column(1, "etag", etags)

    def _list_between(self, folder: str, after: str | None, last: str | None) -> Sequence[pa.RecordBatch]:
        """Path, ETag and size of the objects below `folder` with keys greater than `after`, up to `last`."""
        import obstore
        import pyarrow as pa
        import pyarrow.compute as pc

        batches = []
        with self._errors_named(folder):
            listed = obstore.list(
                self._backend,
                folder and _checked(folder),
                offset=after,
                chunk_size=_KEYS_AN_ANSWER,
                return_arrow=True,
            )
            for answer in listed:
                batch = pa.record_batch(answer).select(["path", "e_tag", "size"])
                beyond = last is not None and batch.num_rows > 0 and batch["path"][-1].as_py() > last
                batches.append(batch.filter(pc.less_equal(batch["path"], last)) if beyond else batch)
                if beyond:
                    break
        return batches

    def delete(self, key: str) -> None:
        """Remove an object; that there is none is no error."""
        import obstore

        try:
            with self._errors_named(key):
                obstore.delete(self._backend, _checked(key))
        except ObjectMissingError:
            return

    def _put(self, key: str, data: bytes | Path | Iterator[bytes]) -> str:
        import obstore

        with self._errors_named(key):
            return _etag(obstore.put(self._backend, _checked(key), data)["e_tag"])

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
            backend = self._backend if self._root is not None else self._connect_s3(upload_bytes=size)
            try:
                return _etag(obstore.put(backend, _checked(key), data, mode=mode)["e_tag"])
            except FileNotFoundError:
                self._check_bucket(key)
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

    def _lost(self, key: str) -> PreconditionFailedError:
        return PreconditionFailedError(
            f"{self.url}: {key!r} has been changed meanwhile; read it anew and retry"
        )

    @cached_property
    def _backend(self) -> S3Store | LocalStore:
        if self._root is None:
            return self._connect_s3()
        from obstore.store import LocalStore

        return LocalStore(self._root)

    @cached_property
    def _connect_s3(self) -> Callable[..., S3Store]:
        return s3_connector(self._bucket, self._s3)

    def _check_bucket(self, key: str) -> None:
        """After a 404, tell a missing object from a missing bucket, which HEAD does not."""
        import obstore

        if self._root is None and not self._bucket_seen:
            next(obstore.list(self._backend, key, chunk_size=1), None)
            self._bucket_seen = True

    @contextmanager
    def _errors_named(self, key: str) -> Iterator[None]:
        """Turn obstore's errors into ours.

        They are never chained: the body of an S3 error can hold a session token.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            try:
                yield
            except FileNotFoundError:
                self._check_bucket(key)
                raise ObjectMissingError(self.url, key) from None
        except (AlreadyExistsError, PreconditionError):
            raise self._lost(key) from None
        except (BaseError, OSError, ValueError) as error:
            problem = f"{self.url}: {key!r}: {_summary(error)}"
            if self._root is not None:
                raise StoreError(problem) from None
            raise StoreUnavailableError(
                f"{problem}; check that the bucket exists, that endpoint (AWS_ENDPOINT_URL) and region "
                "(AWS_REGION) are right and can be reached, and that the credentials (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role) are right and may do this"
            ) from None


def local_path(url: str) -> Path | None:
    """The absolute path that a path or `file:///…` URL names; None for a URL of anything else."""
    if "://" not in url:
        return Path(url).expanduser().absolute()
    parts = urlsplit(url)
    local = parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path
    return Path(unquote(parts.path)).absolute() if local else None


def _parse_url(url: str) -> tuple[str, Path | None]:
    """A bucket's name and None, or "" and a folder."""
    if not url:
        raise SettingsError("the store's URL is empty; set CLIPFARM_STORE_URL to s3://bucket or a folder")
    if path := local_path(url):
        return "", path
    parts = urlsplit(url)
    plain = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme == "s3" and plain and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", parts.netloc):
        return parts.netloc, None
    raise SettingsError(
        f"the store's URL ({parts.scheme}://…) is neither s3://bucket nor a folder; a path below the bucket "
        "is set by CLIPFARM_PREFIX, and credentials come the AWS way"
    )


def _checked(key: str) -> str:
    if _BAD_IN_KEY.search(key) or len(key.encode()) > 1024:
        raise StoreError(
            f"the key {key!r} is refused: empty, absolute, too long, or with a forbidden segment"
        )
    return key


def _etag(raw: str | None) -> str:
    """The one form of an ETag: without quotes and weak mark. `ObjectStore.list` does the same in bulk."""
    if raw is None:
        raise StoreError("the store gives no ETags, and ClipFarm cannot work without")
    return re.sub(_ETAG_WRAPPING, "", raw)


def _info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], _etag(meta["e_tag"]), meta["size"], meta["last_modified"])


def _summary(error: Exception) -> str:
    """What an obstore error says in one line: without its debug part, and of S3's answer only the code."""
    text, _, body = str(error).partition("\n\nDebug source")[0].partition("<?xml")
    code = re.search(r"<Code>(\w+)</Code>", body)
    line = " ".join(text.split()).rstrip(": ")
    return f"{line} ({code[1]})" if code else line
