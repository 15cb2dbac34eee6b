"""Whose trouble it is when a request for one key fails: that key's own, or that of the store as a whole.

An object may be unreadable while all others are well: it lies in an archive storage class, its KMS key is
disabled, an ACL forbids it, a damaged disk cuts it. The answer is often the same as where credentials are
refused for everything, so others are tried right after.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

_OF_ONE_OBJECT = frozenset(
    {
        "InvalidObjectState",
        "KMS.DisabledException",
        "KMS.InvalidKeyUsageException",
        "KMS.KMSInvalidStateException",
        "KMS.NotFoundException",
    }
)
"""Codes by which S3 says that an object's storage class or key is at fault."""

_OF_WHO_ASKS = frozenset(
    {
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "NoSuchBucket",
        "NotSignedUp",
        "PermanentRedirect",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
"""Codes by which S3 says that credentials, clock or bucket are, whatever the key."""

OTHERS_TRIED = 64
_BYTES_TRIED = 64 * 1024
PROBE_NAME = ".clipfarm-probe"
"""Name of the object that is written, and removed, to see whether a folder of the store can be written."""


def is_own_trouble(code: str | None, others_work: bool | None) -> bool:
    """Whether a request failed because of its own key, so that the others need not mind.

    Args:
        code: S3's error code, where the answer had one.
        others_work: whether the same could be done with another key right after; None where there is no
            other, which leaves it open, and so counts as the store's trouble: nothing is said of an object
            that may be well.
    """
    if code in _OF_ONE_OBJECT:
        return True
    return code not in _OF_WHO_ASKS and others_work is True


def can_read_one_of(
    backend: S3Store | LocalStore, objects: Iterable[tuple[str, int]], *, seconds: float
) -> bool | None:
    """Whether one of some objects, keys with sizes in bytes, can be read now; None if there are none.

    No further one is tried after `seconds`: a refusal comes at once, so that many can be tried, while a
    store that is away lets each request wait.
    """
    deadline, objects = time.monotonic() + seconds, iter(objects)
    tried: bool | None = None
    while (tried is None or time.monotonic() < deadline) and (found := next(objects, None)) is not None:
        if _works(partial(_read_some, backend, *found)):
            return True
        tried = False
    return tried


def can_write_beside(backend: S3Store | LocalStore, key: str, data: bytes) -> bool:
    """Whether `data` can be written under another key of the same folder now."""
    import obstore

    probe = key.rpartition("/")[0] + "/" + PROBE_NAME
    if not _works(partial(obstore.put, backend, probe, data)):
        return False
    _works(partial(obstore.delete, backend, probe))  # where it may not, an object stays that nobody reads
    return True


def sample(objects: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Some of many objects, by chance: what is wrong with one may be wrong with its neighbours."""
    return random.sample(objects, min(len(objects), OTHERS_TRIED))


def _read_some(backend: S3Store | LocalStore, key: str, size: int) -> None:
    import obstore

    if size:
        obstore.get_range(backend, key, start=0, length=min(size, _BYTES_TRIED))
    else:
        obstore.get(backend, key).bytes()


def _works(request: Callable[[], object]) -> bool:
    from obstore.exceptions import BaseError

    try:
        request()
    except (BaseError, OSError, ValueError):
        return False
    return True
