"""The video stage: sampled frames through VideoMAE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint, load_model
from clipfarm_dagster.errors import ModelUnavailableError, SettingsError
from clipfarm_dagster.modalities.encoder import Prepared, Trace, inference, to_device
from clipfarm_dagster.settings import VideoSettings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.npy import l2_normalise

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from clipfarm_dagster.modalities.video.frames import SampledFrames

PREPROCESS_VERSION = "2"
"""Raised by hand whenever the code below would give another tensor for the same bytes and settings."""

# The published checkpoint is a VideoMAEForPreTraining; VideoMAEModel has no decoder and masks nothing.
_PRETRAINING_HEAD = ("decoder.", "encoder_to_decoder.", "mask_token", "position_embeddings")


def video_contract(settings: VideoSettings, checkpoint: Checkpoint) -> Contract:
    """The contract of the video stage under `settings`."""
    return Contract(
        stage=Stage.VIDEO,
        model_name=checkpoint.model_name,
        model_revision=checkpoint.revision,
        preprocess_name="videomae-pil",
        preprocess_version=PREPROCESS_VERSION,
        preprocess_params={"frames": settings.frames, "unknown_count": settings.unknown_count},
        pooling=settings.pooling,
        dtype=settings.dtype,
    )


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


@dataclass(frozen=True)
class VideoPreparer:
    """Samples frames, and resizes and crops them as the checkpoint's image processor does."""

    transform: FrameTransform
    frames: int
    unknown_count: Literal["first", "count"]
    max_pixels: int
    max_frames: int
    isolated: bool = True

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        """Prepare one clip: uint8 (frames, height, width, channels)."""
        import numpy as np

        from clipfarm_dagster.modalities.previews import data_uri_markdown, sheet_of_tiles, tile
        from clipfarm_dagster.modalities.video.frames import sample_each

        def small(frame: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
            # contiguous, so that no crop keeps its whole frame
            return np.ascontiguousarray(self.transform(frame)), tile(frame) if preview else None

        sampled = sample_each(raw, small, **self._limits())
        pixels = np.stack([pixels for pixels, _ in sampled.made])
        picture = None
        if preview:
            tiles = [seen for _, seen in sampled.made if seen is not None]
            picture = data_uri_markdown(sheet_of_tiles(tiles), f"{self.frames} sampled frames")
        return Prepared(pixels, pixels.shape, sampled.note, picture)

    def decode(self, raw: bytes) -> SampledFrames:
        """The frames that the clip is judged by, at full size."""
        from clipfarm_dagster.modalities.video.frames import sample_frames

        return sample_frames(raw, **self._limits())

    def _limits(self) -> dict[str, Any]:
        return {
            "count": self.frames,
            "unknown_count": self.unknown_count,
            "max_pixels": self.max_pixels,
            "max_frames": self.max_frames,
        }


class VideoEncoder:
    """`VideoMAEModel` with a fixed pooling.

    `first_token` is `last_hidden_state[:, 0]`, as many pipelines take it. VideoMAE has no class token, so
    that is the first patch's state; `mean` over all patches may serve better, and is another contract.
    """

    def __init__(
        self,
        settings: VideoSettings,
        checkpoint: Checkpoint,
        folder: Path,
        device: str,
        *,
        max_pixels: int,
        max_frames: int,
    ) -> None:
        from transformers import VideoMAEModel
        from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

        self.contract, self.device = video_contract(settings, checkpoint), device
        self._model = load_model(
            VideoMAEModel,
            checkpoint,
            folder,
            device,
            dtype=settings.dtype,
            unused=_PRETRAINING_HEAD,
            num_frames=settings.frames,
        )
        if settings.pooling == "first_token" and settings.dtype == "float32":
            from clipfarm_dagster.modalities.video.first_token import keep_first_token

            keep_first_token(self._model)
        if device == "cpu" and settings.dtype == "float32":
            from clipfarm_dagster.modalities.onednn import use_onednn

            use_onednn(self._model)
        tubelet = int(self._model.config.tubelet_size)
        if settings.frames % tubelet:
            raise SettingsError(
                f"CLIPFARM_VIDEO_FRAMES is {settings.frames}; {checkpoint.model_name} needs a multiple of"
                f" {tubelet}"
            )
        self.dimension = int(self._model.config.hidden_size)
        self.batch_size = settings.batch_size or (1 if device == "cpu" else 16)
        self.finds_batch_size = settings.batch_size is None and device != "cpu"
        processor = VideoMAEImageProcessorPil.from_pretrained(folder, local_files_only=True).to_dict()
        self._pixel_values = pixel_values(processor)
        self.preparer = VideoPreparer(
            transform=frame_transform(processor, checkpoint.model_name),
            frames=settings.frames,
            unknown_count=settings.unknown_count,
            max_pixels=max_pixels,
            max_frames=max_frames,
        )

    def tensor(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """One clip's pixels, uint8 (frames, height, width, channels), as the model takes them.

        float32 (frames, channels, height, width), rescaled and normalised.
        """
        import numpy as np

        channels = [values[pixels[..., channel]] for channel, values in enumerate(self._pixel_values)]
        return np.stack(channels, axis=1)

    def encode(self, batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
        """Vectors of clips of equal shape: float32 (clips, hidden size), of unit L2 norm."""
        import numpy as np

        pixels = to_device(np.stack([self.tensor(item.inputs) for item in batch]), self._model)
        with inference(self.device):
            states = self._model(pixels).last_hidden_state.float()
            pooled = states[:, 0] if self.contract.pooling == "first_token" else states.mean(dim=1)
        return l2_normalise(pooled.cpu().numpy())

    def trace(self, raw: bytes, metadata: Mapping[str, str]) -> Trace:
        """One clip after each step: decoded frames, the model's input tensor, the vector."""
        item = self.preparer(raw, metadata)
        return Trace(self.preparer.decode(raw).frames, self.tensor(item.inputs), self.encode([item])[0])

    def parameters(self) -> Iterator[torch.Tensor]:
        """The model's weights as loaded, in the order of its layers."""
        yield from self._model.parameters()
