"""Many vectors with the ids of their videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.errors import VideoNotFoundError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True, eq=False, repr=False)
class VectorMatrix:
    """The vectors of some videos, one row a video."""

    video_ids: Sequence[str]
    vectors: np.ndarray[Any, Any]
    """float32 (videos, dimension), each row of unit L2 norm."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Videos whose vector is missing or wrong in the store, by `video_id`, with what is wrong."""

    def __len__(self) -> int:
        return len(self.video_ids)

    def __repr__(self) -> str:
        videos, dimension = self.vectors.shape
        left_out = f", {len(self.left_out)} left out" if self.left_out else ""
        return f"VectorMatrix({videos} videos, dimension {dimension}{left_out})"

    def vector(self, video_id: str) -> np.ndarray[Any, Any]:
        """The vector of one video, float32 (dimension,).

        Raises:
            VideoNotFoundError: there is none of it here.
        """
        try:
            number = list(self.video_ids).index(video_id)
        except ValueError:
            why = self.left_out.get(video_id, "`clipfarm status` tells what is done")
            raise VideoNotFoundError(f"there is no vector of the video {video_id!r} here: {why}") from None
        vector: np.ndarray[Any, Any] = self.vectors[number]
        return vector

    def to_arrow(self) -> pa.Table:
        """An Arrow table with the columns `video_id` and `vector`, a list of fixed size."""
        import pyarrow as pa

        values = pa.array(self.vectors.reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(values, self.vectors.shape[1])
        return pa.table({"video_id": pa.array(self.video_ids, pa.string()), "vector": vectors})
