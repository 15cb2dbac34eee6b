"""Ctrl-C: noted when it comes, since libraries turn it into errors of their own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from clipfarm_dagster.ledger.patience import hurry

EXIT_CODE = 130
"""Of a command that was interrupted: 128 and the number of SIGINT, as shells have it."""

_AGAIN_SECONDS = 0.05


@contextmanager
def first_interrupt_noted() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT has come. The first raises KeyboardInterrupt, once no module
    is being imported: native ones abort the process over it, and others swallow it. The next one ends the
    process at once. Where SIGINT is ignored, or handled by somebody, it stays so."""
    noted = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def interrupt(_number: int, frame: FrameType | None) -> None:
        noted.set()
        hurry.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            raise KeyboardInterrupt

    if before is not signal.default_int_handler:
        yield noted.is_set
        return
    alarm = signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield noted.is_set
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        # what the interpreter still does at its end is not interrupted with a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL if noted.is_set() else before)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Have programs that are started in the block never get SIGINT: they inherit this thread's mask. An
    interrupt that comes meanwhile is handled when the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
