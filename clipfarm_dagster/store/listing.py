"""Lists the objects of a bucket or folder, past keys that ClipFarm cannot use.

obstore's listing ends at the first key that it cannot parse (`a//b`, a line break, bytes that are no UTF-8)
and at a link that leads back to its own folder. One such object, put there by whomever, would keep all
others from being seen; where obstore stops, the listing goes on without it, and the key is told as skipped.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

KEYS_AN_ANSWER = 1000
"""The most that S3 gives."""

EXAMPLES = 10
"""Skipped keys that are told by name."""

_BAD_IN_KEY = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f]")
_TEMPORARY = re.compile(r"#\d+$")
"""Names of a folder that obstore leaves out."""
_SKIPPED = b"clipfarm_skipped_keys"
ETAG_WRAPPING = r'^(?:W/)?"|"$'


@dataclass
class Skipped:
    """Keys that a listing left out, since no request can name them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """Some of them, as far as they can be shown."""

    def add(self, other: Skipped) -> None:
        """Count those of another part of the listing in."""
        self.count += other.count
        self.examples = (self.examples + other.examples)[:EXAMPLES]

    def note(self, key: str) -> None:
        """Count one key in."""
        self.add(Skipped(1, [key]))


def is_usable_key(key: str) -> bool:
    """Whether ClipFarm reads and writes objects under such a key."""
    try:
        return _BAD_IN_KEY.search(key) is None and len(key.encode()) <= 1024
    except UnicodeEncodeError:
        return False


def skipped_keys(listing: pa.Table) -> Skipped:
    """What the listing that `ObjectStore.list` gave has left out."""
    told = (listing.schema.metadata or {}).get(_SKIPPED)
    return Skipped() if told is None else Skipped(**json.loads(told))


def to_table(batches: Sequence[pa.RecordBatch], skipped: Skipped) -> pa.Table:
    """Batches of path, ETag and size as a table of `key`, `etag` and `size`, which knows what it lacks."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = pa.schema({"key": pa.string(), "etag": pa.string(), "size": pa.int64()})
    named = [batch.rename_columns(schema.names).cast(schema) for batch in batches]
    found = pa.Table.from_batches(named, schema)
    etags = pc.replace_substring_regex(found["etag"], pattern=ETAG_WRAPPING, replacement="")
    table = found.set_column(1, "etag", etags)
    if not skipped.count:
        return table
    told = {"count": skipped.count, "examples": skipped.examples}
    return table.replace_schema_metadata({_SKIPPED: json.dumps(told).encode()})


@dataclass(frozen=True)
class Page:
    """One answer of a server that lists a bucket."""

    keys: Sequence[str]
    etags: Sequence[str]
    sizes: Sequence[int]
    is_last: bool


def list_bucket(
    backend: Any,
    list_page: Callable[[str, str | None], Page],
    folder: str,
    after: str | None,
    last: str | None,
    skipped: Skipped,
) -> Iterator[pa.RecordBatch]:
    """The objects below `folder` with keys greater than `after`, up to `last`.

    `list_page` gives those whose keys begin with a prefix and are greater than a key, odd ones too.
    """
    import pyarrow as pa
    from obstore.exceptions import GenericError, InvalidPathError

    while True:
        try:
            for batch in _obstore_batches(backend, folder, after):
                kept, beyond = _up_to(batch, last)
                yield kept
                if beyond:
                    return
                if batch.num_rows:
                    after = batch["path"][-1].as_py()
            return
        except (InvalidPathError, GenericError) as error:
            broken = error  # the latter also where the answer as a whole is no UTF-8
        while True:  # pages with odd keys, up to one from whose end obstore can go on
            try:
                page = list_page(f"{folder}/" if folder else "", after)
            except Exception:  # the store's trouble, then, of which obstore has told
                raise broken from None
            usable = [_noted(key, last, skipped) for key in page.keys]
            columns = (page.keys, page.etags, page.sizes)
            arrays = [[value for value, use in zip(column, usable, strict=True) if use] for column in columns]
            kept, beyond = _up_to(pa.record_batch(arrays, names=["path", "e_tag", "size"]), last)
            yield kept
            if page.is_last or beyond or not page.keys:
                return
            after = page.keys[-1]
            if is_usable_key(after):
                break


def list_folder(backend: Any, root: Path, folder: str, skipped: Skipped) -> list[pa.RecordBatch]:
    """The objects below the folder `folder` of `root`."""
    import pyarrow as pa
    from obstore.exceptions import BaseError

    try:
        return list(_obstore_batches(backend, folder, None))
    except BaseError:
        found = list(walk(root, folder, skipped))
        columns = [list(column) for column in zip(*found, strict=True)]
        return [pa.record_batch(columns, names=["path", "e_tag", "size"])] if found else []


def _obstore_batches(backend: Any, folder: str, after: str | None) -> Iterator[pa.RecordBatch]:
    import obstore
    import pyarrow as pa

    for answer in obstore.list(backend, folder, offset=after, chunk_size=KEYS_AN_ANSWER, return_arrow=True):
        yield pa.record_batch(answer).select(["path", "e_tag", "size"])


def _up_to(batch: pa.RecordBatch, last: str | None) -> tuple[pa.RecordBatch, bool]:
    """The rows of a batch up to the key `last`, and whether there are others."""
    import pyarrow.compute as pc

    if last is None or not batch.num_rows or batch["path"][-1].as_py() <= last:
        return batch, False
    return batch.filter(pc.less_equal(batch["path"], last)), True


def _noted(key: str, last: str | None, skipped: Skipped) -> bool:
    """Whether a key of a bucket is an object's that can be used; one that cannot is noted."""
    usable = is_usable_key(key) and "\ufffd" not in key  # which stands for bytes that are no UTF-8
    empty_folder = key.endswith("/") and is_usable_key(key.removesuffix("/"))  # as consoles make it
    beyond = last is not None and key > last
    if not (usable or empty_folder or beyond):
        skipped.note(key)
    return usable


def walk(root: Path, folder: str, skipped: Skipped) -> Iterator[tuple[str, str, int]]:
    """Key, ETag and size of each file below a folder, as obstore tells them."""
    top = root / folder
    waiting = [(os.fsencode(top), frozenset({_identity(top.stat())}))] if top.is_dir() else []
    while waiting:
        path, ancestors = waiting.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                key = os.path.relpath(entry.path, os.fsencode(root))
                name = key.decode(errors="backslashreplace")
                try:
                    state = entry.stat()
                except FileNotFoundError:  # a link that leads nowhere, or just removed
                    continue
                except OSError as error:
                    if error.errno != errno.ELOOP:
                        raise
                    skipped.note(name)
                    continue
                if not is_usable_key(os.fsdecode(key)) or _identity(state) in ancestors:
                    skipped.note(name)
                elif entry.is_dir():
                    waiting.append((entry.path, ancestors | {_identity(state)}))
                elif entry.is_file() and not _TEMPORARY.search(name):
                    # obstore's own form: inode, microseconds and size
                    etag = f"{state.st_ino:x}-{state.st_mtime_ns // 1000:x}-{state.st_size:x}"
                    yield name, etag, state.st_size


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
