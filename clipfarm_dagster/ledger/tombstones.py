"""Which videos were erased: one small object in the store, changed by conditional puts alone.

    {"key": "…", "erased": {"erased-0123456789abcdef": {"since": "…", "finished": null, "raw": false}, …}}

It names no video: an id is known again by its tombstone, a keyed hash, and nobody can tell the id from that.
The key is made with the first tombstone and stays. A tombstone is never taken away: what it stands for is not
read from the CSV, not embedded, not imported and not taken in from other machines any more.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property

from clipfarm_dagster.errors import LedgerError, ObjectMissingError, PreconditionFailedError
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.timestamps import timestamp

_ATTEMPTS = 20
_KEY_BYTES = 32
_DIGITS = 16


@dataclass(frozen=True)
class Erasure:
    """How far the erasure of one video is."""

    since: str
    """When it was asked for; from then on nothing of the video is written."""
    finished: str | None = None
    """When all was removed; null while something may be left."""
    raw: bool = False
    """Whether its raw objects are removed too."""


@dataclass(frozen=True)
class Erased:
    """The erased videos at one moment: `video_id in erased`."""

    erasures: Mapping[str, Erasure] = field(default_factory=dict)
    """By tombstone."""
    key: bytes = field(default=b"", repr=False)
    """Of the hash; empty until a first video is erased."""

    def __bool__(self) -> bool:
        return bool(self.erasures)

    def __contains__(self, video_id: str) -> bool:
        return bool(self.erasures) and self.tombstone(video_id) in self.erasures

    def tombstone(self, video_id: str) -> str:
        """The short text that takes the place of a video's id, erased or not: `erased-0123456789abcdef`.

        Raises:
            ValueError: no video was ever erased, so that there is no key.
        """
        if not self.key:
            raise ValueError("there is no tombstone before a first video is erased")
        hashed = self._hash.copy()
        hashed.update(video_id.encode())
        return f"erased-{hashed.hexdigest()[:_DIGITS]}"

    def among(self, video_ids: Iterable[str]) -> set[str]:
        """Those of some ids that are erased. A million take some seconds, or no time if nothing is erased."""
        return {video_id for video_id in video_ids if video_id in self} if self.erasures else set()

    @property
    def unfinished(self) -> dict[str, Erasure]:
        """Of which something may be left, by tombstone."""
        return {name: erasure for name, erasure in self.erasures.items() if erasure.finished is None}

    @property
    def version(self) -> str:
        """A short text that every further tombstone changes; empty without any."""
        names = " ".join(sorted(self.erasures))
        return hashlib.sha256(names.encode()).hexdigest()[:16] if names else ""

    @cached_property
    def _hash(self) -> hmac.HMAC:
        return hmac.new(self.key, digestmod=hashlib.sha256)


class Tombstones:
    """The object that says which videos are erased. Threads may share it."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key = store, key
        self._known: tuple[str | None, Erased] = None, Erased()

    @property
    def place(self) -> str:
        """Where the object lies: fit for messages."""
        return f"{self._store.url}: {self._key!r}"

    @property
    def last(self) -> Erased:
        """The erased videos as they were last read or written by this object."""
        return self._known[1]

    def read(self) -> Erased:
        """The erased videos now: one small request, and another where they are others than last time.

        Raises:
            LedgerError: the object is damaged.
            StoreError: the store cannot be read.
        """
        return self._read()[0]

    def add(self, video_ids: Collection[str], *, raw: bool = False) -> Erased:
        """Let some videos be erased, their erasure not finished; returns all that are then. Those that were
        erased before are taken up again.

        Raises:
            LedgerError: the object is damaged, or others keep changing it.
            StoreError: the store cannot be read or written.
        """
        since = timestamp(datetime.now(UTC))

        def added(now: Erased) -> Erased:
            erased = replace(now, key=now.key or secrets.token_bytes(_KEY_BYTES))
            erasures = dict(now.erasures)
            for name in map(erased.tombstone, video_ids):
                before = erasures.get(name, Erasure(since))
                erasures[name] = replace(before, finished=None, raw=before.raw or raw)
            return replace(erased, erasures=erasures)

        return self._change(added) if video_ids else self.read()

    def take_up(self, tombstones: Collection[str]) -> Erased:
        """Let the erasure of some videos, given by tombstone, be not finished; returns all that are erased.

        Raises:
            LedgerError: the object is damaged, or others keep changing it.
            StoreError: the store cannot be read or written.
        """

        def changed(now: Erased) -> Erased:
            again = {
                name: replace(now.erasures[name], finished=None)
                for name in tombstones
                if name in now.erasures
            }
            return replace(now, erasures={**now.erasures, **again})

        return self._change(changed)

    def finish(self, done: Mapping[str, Erasure]) -> Erased:
        """Say that nothing is left of some videos, given by tombstone as they were read before all was looked
        through; what was taken up again since stays unfinished. Returns all that are erased then.

        Raises:
            LedgerError: the object is damaged, or others keep changing it.
            StoreError: the store cannot be read or written.
        """
        finished = timestamp(datetime.now(UTC))

        def changed(now: Erased) -> Erased:
            seen = {name: erasure for name, erasure in done.items() if now.erasures.get(name) == erasure}
            ended = {name: replace(erasure, finished=finished) for name, erasure in seen.items()}
            return replace(now, erasures={**now.erasures, **ended})

        return self._change(changed)

    def _change(self, change: Callable[[Erased], Erased]) -> Erased:
        for _ in range(_ATTEMPTS):
            now, etag = self._read()
            then = change(now)
            if then == now:
                return now
            erased = {name: asdict(erasure) for name, erasure in then.erasures.items()}
            data = json.dumps({"key": then.key.hex(), "erased": erased}, sort_keys=True).encode()
            try:
                self._known = self._store.put_if_unchanged(self._key, data, etag), then
            except PreconditionFailedError:
                continue
            return then
        raise LedgerError(f"{self.place} changed {_ATTEMPTS} times meanwhile; try again")

    def _read(self) -> tuple[Erased, str | None]:
        info = self._store.head(self._key)
        known_etag, known = self._known
        if info is None or info.etag == known_etag:
            return (known, known_etag) if info is not None else (Erased(), None)
        try:
            stored = self._store.get(self._key)
        except ObjectMissingError:
            return Erased(), None
        erased = self._parsed(stored.data)
        self._known = stored.info.etag, erased
        return erased, stored.info.etag

    def _parsed(self, data: bytes) -> Erased:
        known = {one.name for one in fields(Erasure)}
        try:
            told = json.loads(data)
            key = bytes.fromhex(told["key"])
            erasures = {
                str(tombstone): Erasure(**{name: value for name, value in entry.items() if name in known})
                for tombstone, entry in told["erased"].items()
            }
            if len(key) != _KEY_BYTES:
                raise ValueError("its key is cut off")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LedgerError(
                f"{self.place} does not say which videos are erased"
                f" ({type(error).__name__}: {error}); restore it from a backup: without its key no erased"
                " video can be told from others"
            ) from None
        return Erased(erasures, key)
