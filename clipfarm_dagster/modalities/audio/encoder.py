"""The audio stage: a waveform through wav2vec2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.weights import load_model
from clipfarm_dagster.errors import InvalidRawObjectError, SettingsError
from clipfarm_dagster.modalities.encoder import Prepared, Trace, inference, to_device
from clipfarm_dagster.settings import AudioSettings
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.npy import l2_normalise

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from clipfarm_dagster.modalities.audio.sound_file import Sound

PREPROCESS_VERSION = "1"
"""Raised by hand whenever the code below would give another tensor for the same bytes and settings."""

RESAMPLER = "soxr_hq"

# The published checkpoint is a Wav2Vec2ForCTC; its head is not used, and masking happens in training alone.
_UNUSED_WEIGHTS = ("lm_head.", "masked_spec_embed")


@dataclass(frozen=True)
class AudioPreparer:
    """Decodes, mixes to mono, resamples and scales.

    The same numbers, bit for bit, as `librosa.load` and then transformers' `Wav2Vec2FeatureExtractor`, by the
    same calls to soundfile, FFmpeg, numpy and soxr, without importing librosa and transformers: those take
    seconds and hundreds of megabytes in each worker process.
    """

    normalise: bool
    """Whether each sound is scaled to zero mean and unit variance."""
    sample_rate: int
    max_seconds: float
    min_samples: int
    """The shortest sound of which the model makes one frame, in samples."""

    def __call__(self, raw: bytes, metadata: Mapping[str, str], *, preview: bool = False) -> Prepared:
        """Prepare one sound: float32 (samples,)."""
        import numpy as np

        sound = self.decode(raw)
        samples = _resample(sound.samples, sound.rate, self.sample_rate)
        if len(samples) < self.min_samples:
            raise InvalidRawObjectError(
                f"the sound has {len(samples)} samples at {self.sample_rate} Hz; the model needs at least"
                f" {self.min_samples}"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            mean, variance = samples.mean(), samples.var()
        if not np.isfinite([mean, variance]).all():
            raise InvalidRawObjectError(
                "the sound's samples are too large to compute with (full scale is 1): their mean or variance"
                " is beyond float32"
            )
        values = (samples - mean) / np.sqrt(variance + 1e-7) if self.normalise else samples
        picture = None
        if preview:
            from clipfarm_dagster.modalities.previews import data_uri_markdown, waveform_picture

            picture = data_uri_markdown(waveform_picture(samples, self.sample_rate), "waveform")
        return Prepared(values, values.shape, sound.note, picture)

    def decode(self, raw: bytes) -> Sound:
        """The sound as it was recorded, mixed to mono; raises what `read_sound` raises."""
        from clipfarm_dagster.modalities.audio.sound_file import read_sound

        return read_sound(raw, self.max_seconds)


def _resample(samples: np.ndarray[Any, Any], rate: float, target: int) -> np.ndarray[Any, Any]:
    import math

    import numpy as np
    import soxr

    if rate == target or not len(samples):
        return samples
    wanted = math.ceil(len(samples) * (target / rate))
    resampled = soxr.resample(samples, rate, target, quality=RESAMPLER)[:wanted]
    return np.pad(resampled, (0, wanted - len(resampled)))


def minimum_samples(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Length of the shortest input of which stacked unpadded convolutions make one output.

    The inverse of `(length - kernel) // stride + 1`, applied from the last layer to the first.
    """
    length = 1
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        length = (length - 1) * stride + kernel
    return length


class AudioEncoder:
    """`Wav2Vec2Model`, the mean of its states over time.

    The feature extractor is the part of `Wav2Vec2Processor` that hears; its tokenizer is for transcripts and
    is not loaded. The base model norms each channel over time without a mask, so a batch holds equal lengths
    only: padding would change every shorter sound's vector.
    """

    def __init__(
        self, contract: Contract, settings: AudioSettings, checkpoint: Checkpoint, folder: Path, device: str
    ) -> None:
        from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

        self.contract, self.device = contract, device
        self._model = load_model(
            Wav2Vec2Model, checkpoint, folder, device, dtype=settings.dtype, unused=_UNUSED_WEIGHTS
        )
        if device == "cpu" and settings.dtype == "float32":
            from clipfarm_dagster.modalities.audio.convolutions import speed_up_convolutions
            from clipfarm_dagster.modalities.onednn import use_onednn

            speed_up_convolutions(self._model)
            use_onednn(self._model)
        config = self._model.config
        self.dimension = int(config.hidden_size)
        self.batch_size = settings.batch_size or (1 if device == "cpu" else 8)
        self.finds_batch_size = settings.batch_size is None and device != "cpu"
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
        if extractor.sampling_rate != settings.sample_rate:
            raise SettingsError(
                f"CLIPFARM_AUDIO_SAMPLE_RATE is {settings.sample_rate}, but {checkpoint.model_name} expects"
                f" {extractor.sampling_rate} samples per second"
            )
        self.preparer = AudioPreparer(
            normalise=bool(extractor.do_normalize),
            sample_rate=settings.sample_rate,
            max_seconds=settings.max_seconds,
            min_samples=minimum_samples(config.conv_kernel, config.conv_stride),
        )

    def encode(self, batch: Sequence[Prepared]) -> np.ndarray[Any, Any]:
        """Vectors of sounds of equal length: float32 (sounds, hidden size), of unit L2 norm."""
        import numpy as np

        values = to_device(np.stack([item.inputs for item in batch]), self._model)
        with inference(self.device):
            states = self._model(values).last_hidden_state.float()
            pooled = states.mean(dim=1)
        return l2_normalise(pooled.cpu().numpy())

    def trace(self, raw: bytes, metadata: Mapping[str, str]) -> Trace:
        """One sound after each step: samples at their own rate, the model's input, the vector."""
        item = self.preparer(raw, metadata)
        return Trace(self.preparer.decode(raw).samples, item.inputs, self.encode([item])[0])

    def parameters(self) -> Iterator[torch.Tensor]:
        """The model's weights as loaded, in the order of its layers."""
        yield from self._model.parameters()
