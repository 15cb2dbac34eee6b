"""How long an answer is waited for; less once somebody wants the process to end."""

from __future__ import annotations

import select
import threading
import time

hurry = threading.Event()
"""Set when the process is to end: what still answers is heard, what does not is no longer waited for."""

_HURRIED_SECONDS = 2.0
_LOOK_SECONDS = 0.25


def wait_for(fd: int, events: int, deadline: float) -> bool:
    """Wait until a file descriptor is ready for `events` of `select.poll`; False if it is not at `deadline`
    (by `time.monotonic`), or within two seconds once `hurry` is set. Signals are handled meanwhile."""
    poller = select.poll()
    poller.register(fd, events)
    while True:
        if hurry.is_set():
            deadline = min(deadline, time.monotonic() + _HURRIED_SECONDS)
        left = deadline - time.monotonic()
        if poller.poll(max(0.0, min(left, _LOOK_SECONDS)) * 1000):
            return True
        if left <= _LOOK_SECONDS and time.monotonic() >= deadline:
            return False
        if hurry.is_set():
            return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
