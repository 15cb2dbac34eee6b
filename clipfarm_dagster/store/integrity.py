"""Whether the bytes that came are those of their ETag, where an ETag tells.

Most S3 servers make the ETag of an object that was written in one part the MD5 of its bytes, so that a
server or a cache in between that gives other bytes, or fewer, is found out. An ETag may look like an MD5
and be none: where the object is encrypted by KMS or by a customer's key, in S3 Express, and in some other
servers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

_OTHERS_COMPARED = 8
_LARGEST_COMPARED = 2**24


def contradicts(etag: str, data: bytes) -> bool:
    """Whether an ETag looks like an MD5 and is not that of `data`."""
    if re.fullmatch(r"[0-9a-f]{32}", etag) is None:
        return False
    return hashlib.md5(data, usedforsecurity=False).hexdigest() != etag


def md5_is_usual(backend: S3Store | LocalStore, objects: Iterable[tuple[str, int]]) -> bool | None:
    """Whether one of some objects, keys with sizes in bytes, has the MD5 of its bytes as its ETag; None if
    none of them looks like it."""
    import obstore
    from obstore.exceptions import BaseError

    found: bool | None = None
    small = ((key, size) for key, size in objects if size <= _LARGEST_COMPARED)
    for key, _ in islice(small, _OTHERS_COMPARED):
        try:
            answer = obstore.get(backend, key)
            etag, data = (answer.meta["e_tag"] or "").strip('"'), bytes(answer.bytes())
        except (BaseError, OSError):
            continue
        if re.fullmatch(r"[0-9a-f]{32}", etag):
            found = not contradicts(etag, data)
            if found:
                return True
    return found
