"""Which packets to decode for the wanted frames: the fewest, forwards only. Pure."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from clipfarm_dagster.modalities.video.bitstream import PacketRole

WORTHWHILE = 0.95
"""Above this share of all packets a plan saves nothing over decoding them in order."""


@dataclass(frozen=True)
class DecodePlan:
    """Runs of packets, each to be fed to a fresh or flushed decoder, which is then drained."""

    runs: tuple[tuple[int, ...], ...]
    """Positions in the file, increasing within a run and from run to run."""
    wanted: tuple[int, ...]
    """Presentation indices of the wanted frames, increasing."""
    wanted_pts: tuple[int, ...]
    """Their timestamps."""


def plan_decode(
    times: Sequence[int | None],
    shown: Sequence[bool],
    roles: Sequence[PacketRole],
    *,
    total: int,
    wanted: Sequence[int],
    reorder_depth: int,
) -> DecodePlan | None:
    """The cheapest way to the wanted frames, or None if only decoding all packets in order is certain.

    A wanted frame needs, from the last restart before it, the packets that others may depend on. Where
    two such stretches overlap they are one run. Certain means that timestamps are complete and unique,
    that every packet gives the one frame that they announce, and that no frame crosses a restart
    unless it is known as leading.

    Args:
        times: presentation timestamp of each packet of the stream, in file order.
        shown: False where an edit list hides the packet's frame.
        roles: what the other packets need it for.
        total: how many frames the stream is taken to have.
        wanted: presentation indices, strictly increasing and below `total`.
        reorder_depth: how many frames the decoder holds back to put them in order. If the timestamps
            need more, it may drop frames, and only a full decode tells which.
    """
    if presentation_times(times, shown, total) is None:
        return None
    known = cast("Sequence[int]", times)
    restarts = [i for i, role in enumerate(roles) if role.restart]
    if not restarts or restarts[0] != 0:
        return None

    by_time = sorted((i for i, is_shown in enumerate(shown) if is_shown), key=known.__getitem__)
    targets = {by_time[index] for index in wanted}
    stretches: list[tuple[int, int]] = []
    for start, end in sorted((_start(roles, restarts, target), target) for target in targets):
        if stretches and start <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], max(end, stretches[-1][1]))
        else:
            stretches.append((start, end))
    runs = tuple(tuple(_needed(roles, start, end, targets)) for start, end in stretches)
    if sum(map(len, runs)) > WORTHWHILE * len(roles):
        return None
    if _reordering(known) > reorder_depth or not _restarts_part_the_timeline(known, roles):
        return None
    return DecodePlan(runs, tuple(wanted), tuple(known[by_time[index]] for index in wanted))


def presentation_times(times: Sequence[int | None], shown: Sequence[bool], total: int) -> list[int] | None:
    """The timestamps of the shown frames in order; None unless each of `total` has one of its own."""
    if None in times or len(set(times)) < len(times) or sum(shown) != total:
        return None
    known = cast("Sequence[int]", times)
    return sorted(time for time, is_shown in zip(known, shown, strict=True) if is_shown)


def _reordering(times: Sequence[int]) -> int:
    """The most packets that stand before one in the file but after it on the timeline."""
    before: list[int] = []
    most = 0
    for time in times:
        most = max(most, len(before) - bisect_right(before, time))
        insort(before, time)
    return most


def _restarts_part_the_timeline(times: Sequence[int], roles: Sequence[PacketRole]) -> bool:
    """Whether all before a restart is shown before it, and all after it, leading packets apart, after it.

    Leading packets of the first restart have lost what they depend on, so there may be none.
    """
    latest = restart = times[0]
    restarts = 1
    for time, role in zip(times[1:], roles[1:], strict=True):
        if role.restart:
            if time < latest:
                return False
            restart, restarts = time, restarts + 1
        elif restarts == 1 if role.leading else time < restart:
            return False
        latest = max(latest, time)
    return True


def _start(roles: Sequence[PacketRole], restarts: Sequence[int], target: int) -> int:
    """The last restart from which the target can be decoded."""
    nearest = bisect_right(restarts, target) - 1
    return restarts[max(nearest - 1, 0) if roles[target].leading else nearest]


def _needed(roles: Sequence[PacketRole], start: int, end: int, targets: set[int]) -> list[int]:
    """Positions to decode between a restart and a target; the restart's own leading packets cannot be."""
    needed = [start]
    own = True
    for i in range(start + 1, end + 1):
        role = roles[i]
        own = own and not role.restart
        if (role.reference or i in targets) and not (role.leading and own):
            needed.append(i)
    return needed
