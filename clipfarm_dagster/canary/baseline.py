"""What the canary was when its contract was first used, and how far it has moved since."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.canary.environment import Environment
from clipfarm_dagster.modalities.encoder import Encoder, Trace
from clipfarm_dagster.modalities.registry import MODALITIES
from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    import numpy as np


class Step(StrEnum):
    """The steps on the way to a vector, in order; each value names who took it."""

    DECODED = "decoder"
    PREPARED = "preprocessing"
    WEIGHTS = "model"
    VECTOR = "hardware"
    """The weights are those of the baseline, bit by bit, and yet the vector moved: the kernels did it."""


# Vectors: other threads or kernels in float32 leave 1e-6 after 12 layers, float16 1e-3, bfloat16 1e-2; each
# tolerance lies above what its own precision leaves and below the next lower one's.
_VECTOR_TOLERANCE = {"float32": 1e-4, "float16": 3e-3, "bfloat16": 5e-2}


@dataclass(frozen=True)
class StepDeviation:
    """How far one step lies from the baseline's."""

    step: Step
    deviation: float | None
    """Relative to the baseline; `None` where shape or type differ, so that there is no distance."""
    tolerance: float

    @property
    def moved(self) -> bool:
        """Whether the step lies beyond its tolerance."""
        return self.deviation is None or not self.deviation <= self.tolerance


@dataclass(frozen=True)
class Baseline:
    """What the canary gave when the baseline was stored."""

    contract_id: str
    made_at: str
    environment: Environment
    weights_sha256: str
    trace: Trace

    def to_npz(self) -> bytes:
        """The bytes of an `.npz` file: the steps as arrays, and the rest as JSON in a text array."""
        import numpy as np

        about = {
            "contract_id": self.contract_id,
            "made_at": self.made_at,
            "environment": json.loads(self.environment.to_json()),
            "weights_sha256": self.weights_sha256,
        }
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            about=np.array(json.dumps(about, sort_keys=True)),
            decoded=self.trace.decoded,
            prepared=self.trace.prepared,
            vector=self.trace.vector,
        )
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> Baseline:
        """The baseline that `to_npz` wrote."""
        import numpy as np

        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            trace = Trace(arrays["decoded"], arrays["prepared"], arrays["vector"])
        environment = Environment.from_fields(about.pop("environment"))
        return cls(**about, environment=environment, trace=trace)


def weights_sha256(encoder: Encoder) -> str:
    """SHA-256 over type, shape and bytes of all weights as they are loaded."""
    import torch

    digest = hashlib.sha256()
    for tensor in encoder.parameters():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compare(stage: Stage, dtype: str, baseline: Baseline, now: Baseline) -> tuple[StepDeviation, ...]:
    """How far each step of `now` lies from the baseline's. Pure."""
    canary, before, after = MODALITIES[stage].canary, baseline.trace, now.trace
    steps = [
        StepDeviation(Step.DECODED, _deviation(before.decoded, after.decoded), canary.decoded_tolerance),
        StepDeviation(Step.PREPARED, _deviation(before.prepared, after.prepared), canary.prepared_tolerance),
    ]
    same_weights = baseline.weights_sha256 == now.weights_sha256
    steps.append(StepDeviation(Step.WEIGHTS, 0.0 if same_weights else None, 0.0))
    vector = _deviation(before.vector, after.vector)
    steps.append(StepDeviation(Step.VECTOR, vector, _VECTOR_TOLERANCE[dtype]))
    return tuple(steps)


def _deviation(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> float | None:
    """The L2 norm of the difference over that of the baseline."""
    import numpy as np

    if before.shape != after.shape or before.dtype != after.dtype:
        return None
    wide = before.astype(np.float64)
    return float(np.linalg.norm(after - wide) / np.linalg.norm(wide))
