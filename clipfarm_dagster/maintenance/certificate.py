"""What is given to a person who asked for an erasure: what was removed, what is left, what is out of reach.

It names tombstones, never ids: who keeps it must not keep what was to be erased. `clipfarm erase --check
VIDEO_ID` tells the tombstone of an id, and so which certificate is that of a video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clipfarm_dagster.maintenance.erasure import Found
from clipfarm_dagster.maintenance.scanning import Trace

ALWAYS_OUT_OF_REACH = (
    "files that `clipfarm export` wrote, and other copies of what is in store, home folder and databases",
    "backups",
    "home folders of other machines, and Dagster instances that this machine does not use, until their next"
    " tick of the sensor or `clipfarm sync`",
    "programs that were at work meanwhile, such as `clipfarm atlas` or a notebook, until they end",
)


@dataclass(frozen=True)
class Holdings:
    """What there is of some videos, in numbers."""

    found: Found
    """In the store and the ledgers."""
    dagster: Mapping[str, Any]
    """In Dagster; empty for nothing."""

    def __bool__(self) -> bool:
        return bool(self.found or self.dagster)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self.found), "dagster": dict(self.dagster)}


@dataclass(frozen=True)
class Left:
    """What a look through everything has found of erased videos."""

    holdings: Holdings
    traces: Sequence[Trace]
    """Places where ids are, in bytes, names or tables."""
    words: int
    """How many of the ids look like words. Bytes are full of words, so these were looked for only where ids
    are kept as such."""
    refused: Sequence[str]
    """What may not be removed, or cannot be looked at."""
    out_of_reach: Sequence[str]
    """What belongs to others, or is elsewhere."""

    @property
    def nothing(self) -> bool:
        """Whether nothing is left, as far as can be seen."""
        return not (self.holdings or self.traces or self.refused)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "left": self.holdings.to_dict(),
            "traces": [asdict(trace) for trace in self.traces],
            "words": self.words,
            "refused": list(self.refused),
            "out_of_reach": list(self.out_of_reach),
        }


@dataclass(frozen=True)
class Certificate:
    """What became of an erasure."""

    tombstones: Sequence[str]
    """One for each video."""
    asked: str
    """When, as a timestamp."""
    ended: str
    """When all had been looked through."""
    removed: Holdings
    """What there was when the erasure began."""
    left: Left

    @property
    def complete(self) -> bool:
        """Whether the videos are erased, as far as can be seen."""
        return self.left.nothing

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "tombstones": list(self.tombstones),
            "asked": self.asked,
            "ended": self.ended,
            "complete": self.complete,
            "removed": self.removed.to_dict(),
            **self.left.to_dict(),
        }
