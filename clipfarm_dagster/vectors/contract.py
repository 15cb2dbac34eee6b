"""The contract: all that decides a vector besides its input, with a short id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from clipfarm_dagster.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Everything besides the input that decides a vector. Equal contracts have equal ids, and only they."""

    stage: Stage
    model_name: str
    """Hub id, or a local folder's name; a folder's `model_revision` tells its content."""
    model_revision: str
    """Full commit SHA on the hub, or `sha256:…` over a local folder's weight and config files."""
    preprocess_name: str
    preprocess_version: str
    preprocess_params: Mapping[str, Any] = field(default_factory=dict)
    pooling: str
    dtype: str

    def to_json(self) -> str:
        """Canonical serialisation: sorted keys, no spaces, ASCII."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical serialisation."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def differences(self, other: Contract) -> list[str]:
        """Names of the fields in which the two differ."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != theirs[name]]

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """The contract that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "stage": Stage(fields["stage"])})
