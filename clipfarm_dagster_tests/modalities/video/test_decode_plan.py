from __future__ import annotations

from collections.abc import Sequence

import pytest

from clipfarm_dagster.modalities.video.bitstream import NEEDED, RESTART, UNNEEDED, PacketRole
from clipfarm_dagster.modalities.video.decode_plan import DecodePlan, plan_decode

LEADING = PacketRole(restart=False, reference=True, leading=True)
ROLES = {"I": RESTART, "P": NEEDED, "b": UNNEEDED, "L": LEADING}


def plan(
    kinds: str,
    times: Sequence[int | None],
    wanted: Sequence[int],
    *,
    hidden: Sequence[int] = (),
    total: int | None = None,
    reorder_depth: int = 2,
) -> DecodePlan | None:
    return plan_decode(
        times,
        [i not in hidden for i in range(len(times))],
        [ROLES[kind] for kind in kinds],
        total=len(times) - len(hidden) if total is None else total,
        wanted=wanted,
        reorder_depth=reorder_depth,
    )


def runs(*arguments: object, **options: object) -> tuple[tuple[int, ...], ...] | None:
    planned = plan(*arguments, **options)  # type: ignore[arg-type]
    return planned.runs if planned else None


def test_decodes_from_the_last_restart_and_without_what_nobody_needs() -> None:
    #        0  1  2  3  4  5  6  7  8  9
    kinds = "I  P  b  P  b  I  P  b  P  b".replace(" ", "")
    times = [0, 2, 1, 4, 3, 5, 7, 6, 9, 8]
    assert runs(kinds, times, [0, 8]) == ((0,), (5, 6, 8, 9))
    assert runs(kinds, times, [1, 4]) == ((0, 1, 2, 3),)
    planned = plan(kinds, times, [1, 6])
    assert planned == DecodePlan(runs=((0, 1, 2), (5, 6, 7)), wanted=(1, 6), wanted_pts=(1, 6))


def test_leading_frames_need_the_restart_before_the_last() -> None:
    #        0  1  2  3  4  5  6  7  8
    kinds = "I  P  P  I  L  L  P  P  I".replace(" ", "")
    times = [0, 1, 2, 5, 3, 4, 6, 7, 8]
    assert runs(kinds, times, [3]) == ((0, 1, 2, 3, 4),)
    assert runs(kinds, times, [6]) == ((3, 6),)
    assert runs(kinds, times, [3, 5]) == ((0, 1, 2, 3, 4),)


def test_hidden_frames_have_no_index_but_are_needed() -> None:
    assert runs("IPPPIPPP", range(8), [0], hidden=[0, 1]) == ((0, 1, 2),)


def test_a_plan_that_saves_nothing_is_none() -> None:
    assert runs("IPPPPPPP", range(8), [0, 7]) is None
    assert runs("IPPPPPPP", range(8), [0, 6]) == ((0, 1, 2, 3, 4, 5, 6),)


@pytest.mark.parametrize(
    ("kinds", "times", "options"),
    [
        ("IPIP", [0, None, 2, 3], {}),
        ("IPIP", [0, 1, 1, 3], {}),
        ("IPIP", [0, 1, 2, 3], {"total": 5}),
        ("PPIP", [0, 1, 2, 3], {}),
        ("ILIP", [1, 0, 2, 3], {}),
        ("IPIP", [0, 3, 2, 4], {}),
        ("IPIP", [0, 1, 3, 2], {}),
        ("IPPPbI", [0, 4, 3, 2, 1, 5], {"reorder_depth": 1}),
        ("", [], {}),
    ],
    ids=[
        "a timestamp is missing",
        "two frames at one time",
        "another frame count is declared",
        "does not begin with a restart",
        "leading packets have lost what they depend on",
        "shown after a restart, though before it in the file",
        "shown before a restart, though after it in the file",
        "reordered deeper than the decoder expects",
        "no packets",
    ],
)
def test_what_is_uncertain_is_none(kinds: str, times: list[int | None], options: dict[str, int]) -> None:
    assert runs(kinds, times, [0], **options) is None
