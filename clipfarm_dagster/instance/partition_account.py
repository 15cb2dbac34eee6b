"""What a database says of partitions, kept in memory and brought up to date by what was added since."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SETTLED_SECONDS = 10
"""A writer takes a number of PostgreSQL's sequence just before it is seen to write; this is far longer."""


@dataclass(frozen=True)
class Horizon:
    """Which of PostgreSQL's transactions have ended."""

    oldest: int
    """All with smaller numbers have ended."""
    following: int
    """The number of the next transaction to begin."""


class ReadUpTo:
    """From which id on a table is to be read again.

    SQLite has one writer, so ids become visible in their order. In PostgreSQL a smaller id may become visible
    after a larger one, as long as a transaction runs that began before the larger one was seen.
    """

    def __init__(self, top: int, horizon: Horizon | None) -> None:
        self._settled = top
        self._seen: deque[tuple[int, int, float]] = deque()
        self._first = None
        if horizon is not None and horizon.oldest != horizon.following:
            self._first = horizon.following, time.monotonic()

    def to_be_repeated(self, horizon: Horizon | None) -> bool:
        """Whether all is to be read once more: transactions ran while it was read first, and have ended."""
        return self._first is not None and horizon is not None and _has_settled(*self._first, horizon)

    def advance(self, top: int, horizon: Horizon | None) -> int:
        """Note the largest id that is there now; what is larger than the id returned may be new."""
        settled = self._settled
        if horizon is None:
            self._settled = top
            return settled
        if not self._seen or self._seen[-1][0] != top:
            self._seen.append((top, horizon.following, time.monotonic()))
        while self._seen and _has_settled(*self._seen[0][1:], horizon):
            self._settled = self._seen.popleft()[0]
        return settled

    def is_settled(self, top: int) -> bool:
        """Whether nothing can have come that was not read, if this is the largest id."""
        return top == self._settled


def _has_settled(following: int, seen: float, horizon: Horizon) -> bool:
    return horizon.oldest >= following and time.monotonic() - seen >= SETTLED_SECONDS


@dataclass(frozen=True)
class PartitionEvent:
    """That a partition was planned to be, or was, materialized."""

    id: int
    partition: str
    run_id: str | None
    """Of the run that planned it; None where it was materialized."""


@dataclass
class AssetAccount:
    """Which partitions of an asset were ever materialized, and which were planned since and were not."""

    materialized: set[str] = field(default_factory=set)
    attempts: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By partition the run that planned it last and the event's id, where no materialization followed."""

    def take_in(self, events: Iterable[PartitionEvent], names: Mapping[str, str]) -> None:
        """Add events in the order of their ids. To repeat the latest ones changes nothing.

        Args:
            names: the keys that are known, so that a key is held in memory once.
        """
        for event in events:
            if event.run_id is not None:
                self.attempts[event.partition] = event.run_id, event.id
                continue
            self.materialized.add(names.get(event.partition, event.partition))
            planned = self.attempts.get(event.partition)
            if planned is not None and planned[1] < event.id:
                del self.attempts[event.partition]
