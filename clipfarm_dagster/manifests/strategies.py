"""How the vectors of a video's modalities become one.

To add a way, write a `Strategy` and list it in `STRATEGIES`.

`concat` keeps the modalities apart: the cosine of two fused vectors is the mean of the modalities' cosines.
`weighted` is `concat` with each modality's vector times its weight, so that a modality counts in the cosine
by the square of its weight. `mean` adds the vectors up, which needs equal dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from clipfarm_dagster.errors import FusionError, SettingsError
from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    import numpy as np

    Vectors = np.ndarray[Any, Any]


class Strategy(Protocol):
    """One way to fuse. Its `name` and `parameters` together say which fused vectors may be kept."""

    @property
    def name(self) -> str:
        """Its partition, and its folder in the store."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The modalities that a video must have."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What decides the fused vectors besides the name; JSON-serialisable."""

    def dimension(self, dimensions: Mapping[Stage, int]) -> int:
        """Numbers of a fused vector, from those of each modality's.

        Raises:
            FusionError: vectors of these dimensions cannot be fused.
        """

    def fuse(self, vectors: Mapping[Stage, Vectors]) -> Vectors:
        """Fused vectors (videos, dimension), of any norm, from unit vectors float32 (videos, dimension) of
        each modality."""


@dataclass(frozen=True)
class Concat:
    """The vectors one behind the other, each times its weight; a modality of weight 0 is left out."""

    name: str
    weights: Mapping[Stage, float] = field(default_factory=lambda: dict.fromkeys(Stage, 1.0))

    @property
    def stages(self) -> Sequence[Stage]:
        return [stage for stage in Stage if self.weights[stage] > 0]

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"weights": {str(stage): self.weights[stage] for stage in self.stages}}

    def dimension(self, dimensions: Mapping[Stage, int]) -> int:
        return sum(dimensions[stage] for stage in self.stages)

    def fuse(self, vectors: Mapping[Stage, Vectors]) -> Vectors:
        import numpy as np

        return np.concatenate(
            [np.float32(self.weights[stage]) * vectors[stage] for stage in self.stages], axis=1
        )


@dataclass(frozen=True)
class Mean:
    """The mean of the vectors; only where all have the same dimension."""

    name: str = "mean"
    stages: Sequence[Stage] = tuple(Stage)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {}

    def dimension(self, dimensions: Mapping[Stage, int]) -> int:
        if len({dimensions[stage] for stage in self.stages}) > 1:
            found = ", ".join(f"{stage} {dimensions[stage]}" for stage in self.stages)
            raise FusionError(
                f"the strategy {self.name!r} needs vectors of equal dimension, and these have {found};"
                " use `concat` or `weighted`"
            )
        return dimensions[self.stages[0]]

    def fuse(self, vectors: Mapping[Stage, Vectors]) -> Vectors:
        import numpy as np

        total: Vectors = np.sum([vectors[stage] for stage in self.stages], axis=0)
        return total / len(self.stages)


@dataclass(frozen=True)
class Single:
    """One modality's vectors as they are."""

    stage: Stage

    @property
    def name(self) -> str:
        return str(self.stage)

    @property
    def stages(self) -> Sequence[Stage]:
        return [self.stage]

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {}

    def dimension(self, dimensions: Mapping[Stage, int]) -> int:
        return dimensions[self.stage]

    def fuse(self, vectors: Mapping[Stage, Vectors]) -> Vectors:
        return vectors[self.stage]


def parse_weights(text: str) -> dict[Stage, float]:
    """Weights from `video=1,audio=0.5,text=2`; a modality that is not named has weight 1.

    Raises:
        SettingsError: the text is none, a weight is negative or not finite, or all are 0.
    """
    weights = dict.fromkeys(Stage, 1.0)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            weights[Stage(name.strip())] = float(value)
        except ValueError:
            raise SettingsError(
                f"CLIPFARM_FUSION_WEIGHTS: {part!r} is not a weight; write video=1,audio=0.5,text=2"
            ) from None
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()) or not any(
        weights.values()
    ):
        raise SettingsError("CLIPFARM_FUSION_WEIGHTS: weights must be 0 or more, finite, and not all 0")
    return weights


STRATEGIES: Mapping[str, Callable[[Mapping[Stage, float]], Strategy]] = {
    "concat": lambda _weights: Concat("concat"),
    "mean": lambda _weights: Mean(),
    "weighted": lambda weights: Concat("weighted", weights),
}
"""Every strategy by name, made from the weights that the settings give."""


def make_strategy(name: str, weights: str) -> Strategy:
    """The strategy of a name, with weights as `CLIPFARM_FUSION_WEIGHTS` has them.

    Raises:
        FusionError: there is no such strategy.
        SettingsError: the weights are unusable.
    """
    if name not in STRATEGIES:
        raise FusionError(f"there is no fusion strategy {name!r}; there are {', '.join(STRATEGIES)}")
    return STRATEGIES[name](parse_weights(weights))
