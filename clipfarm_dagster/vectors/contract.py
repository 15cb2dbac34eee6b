"""The contract: all that decides a vector besides its input, with a short id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from clipfarm_dagster.stages import Stage

LOCAL_REVISION = "sha256:"
"""How the revision of a local folder begins: it is a hash over what the folder holds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contract:
    """Everything besides the input that decides a vector. Equal contracts have equal ids, and only they.

    A model of the hub counts by name and revision. A local folder counts by the hash of its content alone;
    its name is a label, kept for people to read.
    """

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

    @property
    def is_local(self) -> bool:
        """Whether the model is that of a local folder, so that `model_name` is but a label."""
        return self.model_revision.startswith(LOCAL_REVISION)

    def to_json(self) -> str:
        """Canonical serialisation with the label: sorted keys, no spaces, ASCII."""
        return _canonical(asdict(self))

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical serialisation of what decides a vector."""
        return _short_hash(_canonical(self._deciding()))

    @cached_property
    def former_id(self) -> str:
        """The id that earlier versions gave, with the label in it; that of a hub model is `id`."""
        return _short_hash(self.to_json())

    def differences(self, other: Contract) -> list[str]:
        """Names of the fields in which the two differ; none if they are equal."""
        mine, theirs = asdict(self), asdict(other)
        if self.is_local and other.is_local:
            del mine["model_name"]
        return [name for name in mine if _canonical(mine[name]) != _canonical(theirs[name])]

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """The contract that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "stage": Stage(fields["stage"])})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contract) and _canonical(self._deciding()) == _canonical(other._deciding())

    def __hash__(self) -> int:
        return hash(self.id)

    def _deciding(self) -> dict[str, Any]:
        """The fields that decide a vector, by name."""
        fields = asdict(self)
        if self.is_local:
            del fields["model_name"]
        return fields


def canonical_ids(contracts: Mapping[str, str]) -> dict[str, str]:
    """The present id of each contract that is recorded under the one that earlier versions gave it.

    Args:
        contracts: canonical serialisations by recorded id.

    Returns:
        Present ids by recorded id. Contracts whose id is the same, or is not of their making, are left out.
    """
    read = {recorded: Contract.from_json(text) for recorded, text in contracts.items()}
    return {
        recorded: contract.id
        for recorded, contract in read.items()
        if recorded == contract.former_id != contract.id
    }


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
