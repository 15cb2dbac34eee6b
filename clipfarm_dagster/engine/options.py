"""Limits and sizes of the engine, and where they come from."""

from __future__ import annotations

import os
from dataclasses import dataclass

from clipfarm_dagster.ledger.rows import RetryPolicy
from clipfarm_dagster.modalities.registry import MODALITIES
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.object_store import FETCH_SECONDS


@dataclass(frozen=True)
class EngineOptions:
    """Limits and sizes of one run of the engine."""

    workers: int
    item_timeout_seconds: float
    max_object_bytes: int
    retry: RetryPolicy
    max_prepare_bytes: int = 2**32
    max_text_bytes: int = 2**26
    fetch_timeout_seconds: float = FETCH_SECONDS
    previews: bool = False
    force: bool = False
    """Whether to compute also what is up to date."""

    @classmethod
    def from_settings(
        cls, settings: Settings, *, previews: bool = False, force: bool = False
    ) -> EngineOptions:
        """The options that the settings ask for."""
        return cls(
            workers=settings.workers or cores(),
            item_timeout_seconds=settings.item_timeout_seconds,
            max_object_bytes=settings.max_object_bytes,
            retry=RetryPolicy(settings.max_attempts, settings.retry_seconds),
            max_prepare_bytes=settings.max_prepare_bytes,
            max_text_bytes=settings.max_text_bytes,
            fetch_timeout_seconds=settings.fetch_timeout_seconds,
            previews=previews,
            force=force,
        )

    def object_limit(self, stage: Stage) -> tuple[int, str]:
        """Most bytes that a raw object of a stage may have, and the setting that says so."""
        return min(
            (getattr(self, name), f"CLIPFARM_{name.upper()}") for name in MODALITIES[stage].size_limits
        )


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0))
