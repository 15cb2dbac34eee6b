"""What nodes have in common that are equally fast, and what each has done in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NodeWork:
    """What one node has done in a run."""

    kind: str
    """As `node_kind` names it; empty where it is not known."""
    computed: int
    """Items that went through its model."""
    seconds: float
    """How long it was there to compute."""


def node_kind(environment: Mapping[str, Any], cores: int, processes: int = 1) -> str:
    """How people call a node's kind, such as `8 × NVIDIA H100 80GB HBM3, 96 cores of AMD EPYC 9654, AVX512`.

    Args:
        environment: what its vectors are made in (see `canary.environment`).
        cores: processor cores of each of the processes that compute on it.
        processes: how many these are, one for each GPU.
    """
    processor = f"{cores * processes} cores of {environment['processor']}"
    device = str(environment["device"]).partition(",")[0]
    return processor if device == "cpu" else f"{processes} × {device}, {processor}"
