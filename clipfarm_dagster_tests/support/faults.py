"""Raw objects that do to a worker what a broken codec does, and the preparer that falls for them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipfarm_dagster.modalities.encoder import Prepared, Preparer

HANGS = b"clipfarm test: hangs"
KILLS_ITS_PROCESS = b"clipfarm test: kills its process"
RAISES = b"clipfarm test: raises"
EATS_MEMORY = b"clipfarm test: eats memory"


@dataclass(frozen=True)
class FaultyPreparer:
    """A preparer that breaks on the objects above, and does its work on all others."""

    inner: Preparer

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        if raw.startswith(HANGS):
            while True:
                time.sleep(1)
        if raw.startswith(KILLS_ITS_PROCESS):
            os.kill(os.getpid(), signal.SIGSEGV)
        if raw.startswith(RAISES):
            raise RuntimeError("the codec broke")
        if raw.startswith(EATS_MEMORY):
            eaten = []
            while True:
                eaten.append(bytearray(2**26))
        return self.inner(raw, metadata, preview=preview)

    def decode(self, raw: bytes) -> Any:
        """As the preparer itself does."""
        return self.inner.decode(raw)  # type: ignore[attr-defined]
