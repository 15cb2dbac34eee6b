"""The hashes that the delta compares, in Python and in SQL alike.

A stage's source columns are serialised as one netstring each (byte length, colon, value, comma;
https://cr.yp.to/proto/netstrings.txt), so that no two different rows give the same text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def metadata_hash(values: Sequence[str | None]) -> str:
    """SHA-256, in hex, of the values of a stage's source columns; a null counts as empty."""
    digest = hashlib.sha256()
    for value in values:
        data = (value or "").encode()
        digest.update(b"%d:%b," % (len(data), data))
    return digest.hexdigest()


def metadata_hash_sql(columns: Sequence[str]) -> str:
    """SQL expression of `metadata_hash` over columns, given as quoted identifiers."""
    if not columns:
        return f"'{metadata_hash(())}'"
    parts = ", ".join(f"strlen(coalesce({c}, '')), ':', {c}, ','" for c in columns)
    return f"sha256(concat({parts}))"


def source_hash(metadata_hash: str, raw_etag: str) -> str:
    """SHA-256, in hex, of all that a stage reads for one video."""
    return hashlib.sha256(f"{metadata_hash}:{raw_etag}".encode()).hexdigest()


def source_hash_sql(metadata_hash: str, raw_etag: str) -> str:
    """SQL expression of `source_hash` over two expressions; null where either is null."""
    return f"sha256({metadata_hash} || ':' || {raw_etag})"


def data_version(source_hash: str, contract_id: str) -> str:
    """Dagster's data version of one embedding: its input and its contract."""
    return f"{source_hash}.{contract_id}"
