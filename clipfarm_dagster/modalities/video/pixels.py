"""From frames as decoded to pixel values as the model takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.errors import ModelUnavailableError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class FrameTransform:
    """The part of a checkpoint's image processor that works on whole pixels: resize, then centre crop.

    The same calls to Pillow that transformers' `VideoMAEImageProcessorPil` makes, without importing
    transformers, which worker processes have no other use for.
    """

    resize_to: Mapping[str, int] | None
    """`{"shortest_edge": n}` or `{"height": n, "width": n}`; `None` leaves the size as it is."""
    resample: int
    """Pillow's number of the filter."""
    crop_to: tuple[int, int] | None
    """(height, width) of the centre crop."""

    def __call__(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Transform one frame, uint8 (height, width, channels)."""
        import numpy as np
        from PIL import Image

        if self.resize_to is not None:
            size = _resized(frame.shape[0], frame.shape[1], self.resize_to)
            frame = np.asarray(Image.fromarray(frame).resize((size[1], size[0]), resample=self.resample))
        return frame if self.crop_to is None else _centre_crop(frame, *self.crop_to)


def _resized(height: int, width: int, to: Mapping[str, int]) -> tuple[int, int]:
    if "shortest_edge" not in to:
        return to["height"], to["width"]
    short, long = sorted((height, width))
    short, long = to["shortest_edge"], int(to["shortest_edge"] * long / short)
    return (short, long) if height <= width else (long, short)


def _centre_crop(frame: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    import numpy as np

    # a frame that is too small is padded with black, one more row or column in front where it is odd
    above, left = (
        max(0, -(-(want - have) // 2)) for want, have in zip((height, width), frame.shape, strict=False)
    )
    below, right = (max(0, want - have) for want, have in zip((height, width), frame.shape, strict=False))
    frame = np.pad(
        frame, ((above, below - above if below else 0), (left, right - left if right else 0), (0, 0))
    )
    top, side = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return frame[top : top + height, side : side + width]


def frame_transform(processor: Mapping[str, Any], model_name: str) -> FrameTransform:
    """The transform that an image processor's settings describe.

    Raises:
        ModelUnavailableError: the settings ask for something that is not supported.
    """
    size = {name: int(value) for name, value in (processor.get("size") or {}).items() if value is not None}
    if processor["do_resize"] and set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise ModelUnavailableError(
            f"the image processor of {model_name} resizes to {size}; supported are shortest_edge, or height"
            " and width"
        )
    crop = processor["crop_size"] if processor["do_center_crop"] else None
    return FrameTransform(
        resize_to=size if processor["do_resize"] else None,
        resample=int(processor["resample"]),
        crop_to=None if crop is None else (int(crop["height"]), int(crop["width"])),
    )


def pixel_values(processor: Mapping[str, Any], channels: int = 3) -> np.ndarray[Any, Any]:
    """What each channel's pixels 0–255 become under the processor's rescaling and normalisation.

    float32 (channels, 256), in the processor's own order of operations and roundings: a scaled double rounded
    to float32, then mean and deviation in float32.
    """
    import numpy as np

    values = np.tile(np.arange(256, dtype=np.float64), (channels, 1))
    if processor["do_rescale"]:
        values = values * processor["rescale_factor"]
    values = values.astype(np.float32)
    if processor["do_normalize"]:
        mean = np.asarray(processor["image_mean"], dtype=np.float32)[:, None]
        std = np.asarray(processor["image_std"], dtype=np.float32)[:, None]
        values = (values - mean) / std
    return values
