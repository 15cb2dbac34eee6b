"""Reaches a bucket or a folder: its connections, its errors in our words, and whose trouble an error is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from clipfarm_dagster.errors import (
    ObjectMissingError,
    PreconditionFailedError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from clipfarm_dagster.store.blame import can_read_one_of, can_write_beside, is_own_trouble, sample
from clipfarm_dagster.store.integrity import md5_is_usual
from clipfarm_dagster.store.listing import KEYS_AN_ANSWER, Skipped, is_usable_key, walk
from clipfarm_dagster.store.s3 import S3Connection, S3Options

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store


class Backend:
    """Where a store lies and how it is reached. Pickling takes the address along and connects anew."""

    def __init__(self, url: str, s3: S3Options | None = None) -> None:
        bucket, root = _parse_url(url)
        self.url = f"s3://{bucket}" if bucket else str(root)
        """`s3://bucket` or the folder's absolute path; never holds credentials."""
        self._bucket, self._root, self._s3 = bucket, root, s3 or S3Options()
        self._bucket_seen = False
        self._readable: dict[str, tuple[str, int]] = {}
        """By folder, the key and the size of an object that could be read."""
        self._etags_are_md5: bool | None = None
        """As soon as it is known."""

    @cached_property
    def _backend(self) -> S3Store | LocalStore:
        return self._connect()

    @cached_property
    def _reading_backend(self) -> S3Store | LocalStore:
        return self._connect(reads=True)

    def _connect(self, **options: Any) -> S3Store | LocalStore:
        if self._root is None:
            return self._s3_connection.connect(**options)
        from obstore.store import LocalStore

        return LocalStore(self._root)

    @property
    def endpoint(self) -> str | None:
        """Where the bucket is asked for; None for a folder. Nothing is connected to.

        Raises:
            StoreUnavailableError: the AWS settings are unusable.
            SettingsError: the endpoint's URL holds credentials.
        """
        return None if self._root is not None else self._s3_connection.endpoint

    @cached_property
    def _s3_connection(self) -> S3Connection:
        return S3Connection(self._bucket, self._s3)

    def _check_there(self, key: str) -> None:
        """After a 404, tell a missing object from a missing bucket, which HEAD does not, or folder."""
        import obstore

        if self._root is not None:
            if not self._root.is_dir():
                raise StoreUnavailableError(f"{self.url}: the folder is gone; mount it, or set another store")
        elif not self._bucket_seen:
            next(obstore.list(self._backend, key, chunk_size=1), None)
            self._bucket_seen = True

    def _check_own_trouble(self, key: str, error: StoreError, *, written: bytes | None = None) -> None:
        """Raise unless an error is its key's own trouble, and the store can be used for others.

        Args:
            written: what was to be written; None if the object was to be read.
        """
        if isinstance(error, ObjectMissingError):
            return
        seconds = self._s3.give_up_seconds / 3
        backend = self._connect(seconds=seconds) if self._root is None else self._backend
        if written is not None:
            others_work: bool | None = can_write_beside(backend, key, written)
        else:
            others_work = can_read_one_of(backend, self._others(key), seconds=seconds)
        if is_own_trouble(error.code, others_work):
            return
        if isinstance(error, StoreUnavailableError):
            raise error
        others = "there are no others to compare with" if others_work is None else "others fail as well"
        raise StoreUnavailableError(f"{error.problem}; {others}", code=error.code)

    def _check_bytes(self, key: str, etag: str) -> None:
        """Raise if bytes that contradict their ETag are not the object's: the store's ETags are MD5s, and
        this object is not encrypted so that its own is none."""
        if self._root is not None:
            return
        if self._etags_are_md5 is None:
            self._etags_are_md5 = md5_is_usual(self._backend, self._others(key))
        if self._etags_are_md5 and self._s3_connection.tells_md5(key):
            raise StoreError(
                f"{self.url}: {key!r}: the bytes received are not those of its ETag {etag!r}, an MD5"
            )

    def _others(self, key: str) -> Iterator[tuple[str, int]]:
        """Objects of the same folder, with their sizes: first one that was read before, then any."""
        folder = folder_of(key)
        if (known := self._readable.get(folder)) is not None and known[0] != key:
            yield known
        with self._errors_named(folder):
            if self._root is None:
                pages = [self._s3_connection.list_page(f"{folder}/", after) for after in (key, None)]
                found = dict(pair for page in pages for pair in zip(page.keys, page.sizes, strict=True))
            else:
                walked = islice(walk(self._root, folder, Skipped()), KEYS_AN_ANSWER)
                found = {name: size for name, _, size in walked}
        yield from sample([(name, size) for name, size in found.items() if name != key])

    @contextmanager
    def _errors_named(self, key: str) -> Iterator[None]:
        """Turn obstore's and botocore's errors into ours.

        They are never chained: the body of an S3 error can hold a session token.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            try:
                yield
            except FileNotFoundError:
                self._check_there(key)
                raise ObjectMissingError(self.url, key) from None
        except (AlreadyExistsError, PreconditionError):
            raise self._lost(key) from None
        except (BaseError, OSError, ValueError) as error:
            raise self._named(key, error) from None
        except Exception as error:
            if not isinstance(error, _boto_errors(self._bucket)):
                raise
            raise self._named(key, error) from None

    def _named(self, key: str, error: Exception) -> StoreError:
        line, code = _summary(error)
        problem = f"{self.url}: {key!r}: {line}"
        if self._root is not None:
            return StoreError(problem)
        return StoreUnavailableError(
            f"{problem}; check that the bucket exists, that endpoint (AWS_ENDPOINT_URL) and region "
            "(AWS_REGION) are right and can be reached, and that the credentials (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role) are right and may do this",
            problem=problem,
            code=code,
        )

    def _lost(self, key: str) -> PreconditionFailedError:
        return PreconditionFailedError(
            f"{self.url}: {key!r} was changed in the meantime; read it again and retry"
        )


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
        "is set by CLIPFARM_PREFIX, and credentials come from the usual AWS settings"
    )


def folder_of(key: str) -> str:
    """The folder that a key lies in, without a slash at its end."""
    return key.rpartition("/")[0]


def checked(key: str) -> str:
    """The key itself.

    Raises:
        StoreError: no object may have it.
    """
    if not is_usable_key(key):
        raise StoreError(
            f"the key {key!r} is refused: empty, absolute, too long, or with a forbidden segment"
        )
    return key


def _boto_errors(bucket: str) -> tuple[type[Exception], ...]:
    if not bucket:
        return ()
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError


def _summary(error: Exception) -> tuple[str, str | None]:
    """What an error says in one line, without its debug part, and of S3's answer the code."""
    text, _, body = str(error).partition("\n\nDebug source")[0].partition("<?xml")
    found = re.search(r"<Code>([\w.]+)</Code>", body)
    code = found[1] if found else getattr(error, "response", {}).get("Error", {}).get("Code")
    line = " ".join(text.split()).rstrip(": ")
    return f"{line} ({code})" if found else line, code
