"""Who computes which items, and which item is to blame for a process that ends. Decides; calls nothing.

Items are lent to actors, some at a time. If an actor is lost, what it had in hand goes out again. If its
node was lost with it, no item is at fault. If its process alone ended, one of the items may have ended it:
each goes out alone, and one with which a process ends twice is blamed. Once is not enough: a process can also
end a moment after it has computed an item, for another reason.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

ENDS_ALONE = 2
"""An item with which a process ends so often while it has nothing else in hand is to blame."""

LOST_NODES = 3
"""An item that was in hand on so many lost nodes goes out alone: it may be what brings nodes down."""

_SMALLEST = 4
"""Towards the end leases become smaller, so that all actors end together, but not smaller than this."""


@dataclass(eq=False)
class Lease:
    """Items lent to an actor."""

    actor: Hashable
    video_ids: tuple[str, ...]
    alone: bool
    """Whether the actor has nothing else in hand, since the item may be at fault."""


@dataclass
class _Actor:
    leases: list[Lease] = field(default_factory=list)


class LeaseBook:
    """Keeps account of the items of one run until each has its outcome."""

    def __init__(self, video_ids: Iterable[str], *, size: int, per_actor: int) -> None:
        """
        Args:
            size: most items in a lease.
            per_actor: most leases that an actor has at a time; with two, it never waits for the next one.
        """
        self._size, self._per_actor = size, per_actor
        self._queue = deque(video_ids)
        self._suspects: deque[str] = deque()
        self.open = set(self._queue)
        """Items without an outcome."""
        self._actors: dict[Hashable, _Actor] = {}
        self._ends_alone: Counter[str] = Counter()
        self._lost_nodes: Counter[str] = Counter()

    def add_actor(self, actor: Hashable) -> None:
        """An actor is ready to compute."""
        self._actors[actor] = _Actor()

    def next_leases(self) -> list[Lease]:
        """What is to be given to whom by now."""
        given: list[Lease] = []
        # in rounds, so that each has one lease before any has two
        for _ in range(self._per_actor):
            for actor, state in self._actors.items():
                lease = self._next_lease(actor, state)
                if lease is not None:
                    state.leases.append(lease)
                    given.append(lease)
        return given

    def settle(self, video_id: str) -> bool:
        """Whether this is the first outcome of an item. Another one counts for nothing."""
        if video_id not in self.open:
            return False
        self.open.remove(video_id)
        return True

    def end(self, lease: Lease) -> None:
        """An actor has given all that it has of a lease; what is without an outcome goes out again."""
        state = self._actors.get(lease.actor)
        if state is None or lease not in state.leases:
            return
        state.leases.remove(lease)
        self._queue.extendleft(reversed(self._in_hand(lease)))

    def lose_actor(self, actor: Hashable, *, with_node: bool) -> list[str]:
        """Take back what a lost actor had in hand; returns the items that are to blame for its end.

        Args:
            with_node: whether its node was lost, too, so that no item is at fault.
        """
        state = self._actors.pop(actor, None)
        if state is None:
            return []
        blamed = []
        again = []
        for lease in state.leases:
            for video_id in self._in_hand(lease):
                if with_node:
                    self._lost_nodes[video_id] += 1
                    if self._lost_nodes[video_id] < LOST_NODES and not lease.alone:
                        again.append(video_id)
                        continue
                elif lease.alone:
                    self._ends_alone[video_id] += 1
                    if self._ends_alone[video_id] >= ENDS_ALONE:
                        blamed.append(video_id)
                        self.open.remove(video_id)
                        continue
                self._suspects.append(video_id)
        self._queue.extendleft(reversed(again))
        return blamed

    def _next_lease(self, actor: Hashable, state: _Actor) -> Lease | None:
        if len(state.leases) >= self._per_actor or any(lease.alone for lease in state.leases):
            return None
        if self._suspects:
            # an actor that works on other items takes none that may end it, and no more others before that
            if state.leases:
                return None
            return Lease(actor, (self._suspects.popleft(),), alone=True)
        if not self._queue:
            return None
        share = -(-len(self._queue) // (2 * self._per_actor * len(self._actors)))
        size = min(self._size, max(share, _SMALLEST))
        taken = [self._queue.popleft() for _ in range(min(size, len(self._queue)))]
        return Lease(actor, tuple(taken), alone=False)

    def _in_hand(self, lease: Lease) -> list[str]:
        return [video_id for video_id in lease.video_ids if video_id in self.open]
