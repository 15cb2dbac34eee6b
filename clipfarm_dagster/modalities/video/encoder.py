"""The video stage: sampled frames through VideoMAE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.weights import load_model
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.modalities.encoder import Prepared, Trace, inference, to_device
from clipfarm_dagster.modalities.video.pixels import FrameTransform, frame_transform, pixel_values
from clipfarm_dagster.settings import VideoSettings
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


@dataclass(frozen=True)
class VideoPreparer:
    """Samples frames, and resizes and crops them as the checkpoint's image processor does."""

    transform: FrameTransform
    frames: int
    unknown_count: Literal["first", "count"]
    max_pixels: int
    max_frames: int

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
        contract: Contract,
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

        self.contract, self.device = contract, device
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
