"""Ends what runs before one of its steps, as a killed process would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


class Killed(BaseException):
    """The process ends here."""


def killing(patch: pytest.MonkeyPatch, at: int, *steps: tuple[Any, str]) -> Callable[[], int]:
    """Let the process end before the `at`-th call of one of these functions; tells how many there were.

    Args:
        steps: each function as its owner and its name.
    """
    count = 0

    def before(change: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            return change(*args, **kwargs)

        return step

    for owner, name in steps:
        patch.setattr(owner, name, before(getattr(owner, name)))
    return lambda: count
