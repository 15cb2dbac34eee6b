"""The running account of one run of the engine: what is done, how fast, and what holds it up."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from clipfarm_dagster.engine.node_kind import NodeWork
from clipfarm_dagster.ledger.schema import FAILED_STATUSES


@dataclass(eq=False)
class Progress:
    """Running account of one run; read it at any time."""

    total: int
    started: float = field(default_factory=time.monotonic)
    outcomes: dict[str, int] = field(default_factory=dict)
    """Finished items by ledger status."""
    model_calls: int = 0
    """Items that went through the model."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by step. Steps overlap, and those of several processes or threads add up."""
    widths: dict[str, int] = field(default_factory=dict)
    """How many processes or threads work on a step, where not one."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Items that each node of a cluster has computed; empty if this machine computes."""
    work: dict[str, NodeWork] = field(default_factory=dict)
    """How long each node has computed, by its name; this machine has none. Known at the end."""
    loading: bool = False
    """Whether the model is being loaded, so that nothing is computed yet."""
    worker_peak_bytes: int = 0
    """Most memory that a worker process has held."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def done(self) -> int:
        """Items that have their outcome recorded."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Items that are recorded as failed."""
        return sum(count for status, count in self.outcomes.items() if status in FAILED_STATUSES)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of a block to a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(step, time.monotonic() - start)

    def add(self, step: str, seconds: float) -> None:
        """Add seconds to a step. Threads may call it."""
        with self._lock:
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def busy(self) -> dict[str, float]:
        """Share of the time, 0 to 1, that each step's processes or threads were at work."""
        elapsed = max(self.elapsed, 1e-9)
        with self._lock:
            return {
                step: min(1.0, seconds / elapsed / self.widths.get(step, 1))
                for step, seconds in self.seconds.items()
            }

    @property
    def bottleneck(self) -> str | None:
        """The step that was at work for the largest share of the time; the others wait for it."""
        busy = self.busy()
        return max(busy, key=busy.__getitem__) if busy else None

    def line(self) -> str:
        """One line for a person: done, failed, rate, time left, the steps' shares of the time."""
        done, elapsed = self.done, self.elapsed
        text = f"{done}/{self.total} done, {self.failed} failed"
        if done and elapsed > 0:
            left = (self.total - done) * elapsed / done
            text += f", {rate_told(done / elapsed)}, {left:.0f} s left"
        if busy := self.busy():
            shares = ", ".join(f"{step} {share:.0%}" for step, share in busy.items())
            text += f"; bottleneck {self.bottleneck} (busy: {shares})"
        if self.nodes:
            text += "; " + ", ".join(f"{node}: {count}" for node, count in sorted(self.nodes.items()))
        return text

    def summary(self) -> dict[str, float | int | str]:
        """The run in numbers, fit to become a run's metadata."""
        elapsed = self.elapsed
        numbers: dict[str, float | int | str] = {
            "items": self.done,
            "items_per_second": round(self.done / elapsed, 3) if elapsed else 0.0,
            "through_the_model": self.model_calls,
            "seconds": round(elapsed, 3),
            "computing_seconds": round(max((one.seconds for one in self.work.values()), default=0.0), 3),
            "model_busy_share": round(self.busy().get("infer", 0.0), 3),
            "bottleneck": self.bottleneck or "nothing to do",
            "peak_memory_mb": round(_own_peak_bytes() / 1e6),
            "peak_memory_of_a_worker_mb": round(self.worker_peak_bytes / 1e6),
        }
        if self.nodes:
            numbers["nodes"] = len(self.nodes)
            numbers |= {f"items_of_{node}": count for node, count in sorted(self.nodes.items())}
        return numbers | {f"seconds_{step}": round(spent, 3) for step, spent in self.seconds.items()}


def rate_told(per_second: float) -> str:
    """A rate above 0 as a person reads it, in the unit in which it is 1 or more."""
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f}/{unit}"
    return f"{per_second * 3600:.2g}/h"


def _own_peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
