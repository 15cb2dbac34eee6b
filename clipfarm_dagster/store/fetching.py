"""Runs many requests at a time, and gives each answer as soon as it is there.

Requests that may be given up at once are coroutines, in an event loop with a thread of its own: a thread that
waits for a server cannot be given up. Threads take less processor time for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

K = TypeVar("K")
T = TypeVar("T")


def as_they_come(
    asked: Iterable[K],
    request: Callable[[K], Coroutine[Any, Any, T]],
    *,
    max_concurrency: int,
    wake_seconds: float | None = None,
) -> Generator[tuple[K, Future[T]] | None]:
    """Request many things, such as keys; gives each with its done future, the fastest first.

    They are taken as it goes: at most `max_concurrency` are under way or wait to be taken. Closing the
    iterator ends what is under way. With `wake_seconds`, None is given whenever nothing has come for so long.
    """
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="clipfarm-fetch", daemon=True)
    thread.start()
    done: SimpleQueue[Future[T]] = SimpleQueue()
    under_way: dict[Future[T], K] = {}

    def take(most_left: int) -> Generator[tuple[K, Future[T]] | None]:
        while len(under_way) > most_left:
            try:
                future = done.get(timeout=wake_seconds)
            except Empty:
                yield None
            else:
                yield under_way.pop(future), future

    try:
        for one in asked:
            yield from take(max_concurrency - 1)
            future = asyncio.run_coroutine_threadsafe(request(one), loop)
            under_way[future] = one
            future.add_done_callback(done.put)
        yield from take(0)
    finally:
        asyncio.run_coroutine_threadsafe(_give_up_the_rest(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _give_up_the_rest() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def by_threads(
    asked: Iterable[K], request: Callable[[K], T], *, max_concurrency: int
) -> Generator[tuple[K, T]]:
    """Request many things by threads; gives each with its answer, the fastest first.

    They are taken as it goes: at most `max_concurrency` are under way or wait to be taken. Closing the
    iterator waits for those under way. What `request` raises is raised.
    """
    todo: SimpleQueue[tuple[K] | None] = SimpleQueue()
    done: SimpleQueue[tuple[K, T] | BaseException] = SimpleQueue()

    def work() -> None:
        while (one := todo.get()) is not None:
            try:
                done.put((*one, request(*one)))
            except BaseException as error:
                done.put(error)

    def take() -> tuple[K, T]:
        answer = done.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    threads: list[Thread] = []
    under_way = 0
    try:
        for one in asked:
            if under_way == max_concurrency:
                yield take()
                under_way -= 1
            if len(threads) == under_way:
                threads.append(Thread(target=work, name="clipfarm-request"))
                threads[-1].start()
            todo.put((one,))
            under_way += 1
        for _ in range(under_way):
            yield take()
    finally:
        with suppress(Empty):
            while True:
                todo.get_nowait()
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join()
