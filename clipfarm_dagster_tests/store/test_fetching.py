"""Many requests at a time, by threads: how many, in which order, and how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from clipfarm_dagster.store.fetching import by_threads


def test_each_answer_comes_with_what_was_asked_the_fastest_first() -> None:
    def request(number: int) -> int:
        time.sleep(0.3 if number == 0 else 0)
        return number * number

    answers = list(by_threads(range(50), request, max_concurrency=4))

    assert sorted(answers) == [(number, number * number) for number in range(50)]
    assert answers[-1] == (0, 0)


def test_no_more_are_taken_and_under_way_than_was_said() -> None:
    taken, under_way, most = 0, 0, 0
    lock = threading.Lock()

    def asked() -> Iterator[int]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield number

    def request(number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.002)
        with lock:
            under_way -= 1

    for given, _ in enumerate(by_threads(asked(), request, max_concurrency=5), 1):
        assert taken <= given + 5

    assert taken == 40
    assert most == 5


def test_closing_begins_nothing_more_and_waits_for_what_is_under_way() -> None:
    begun, ended = [], []

    def request(number: int) -> None:
        begun.append(number)
        time.sleep(0.05)
        ended.append(number)

    answers = by_threads(range(100), request, max_concurrency=3)
    next(answers)
    answers.close()

    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 6
    assert not [thread for thread in threading.enumerate() if thread.name == "clipfarm-request"]


@pytest.mark.parametrize("where", ["request", "asked"])
def test_an_error_is_raised_and_ends_it(where: str) -> None:
    def asked() -> Iterator[int]:
        yield from range(10)
        if where == "asked":
            raise ZeroDivisionError

    def request(number: int) -> float:
        return 1 / (number - 5) if where == "request" else 1.0

    with pytest.raises(ZeroDivisionError):
        list(by_threads(asked(), request, max_concurrency=2))

    assert not [thread for thread in threading.enumerate() if thread.name == "clipfarm-request"]


def test_nothing_asked_for_starts_nothing() -> None:
    assert list(by_threads([], str, max_concurrency=3)) == []
