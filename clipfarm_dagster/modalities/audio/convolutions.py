"""wav2vec2's convolutions on the CPU, in time slices that stay in the processor's caches.

transformers runs each of the seven convolutions over the whole sound: for a minute of sound the first gives
400 MB, which the norm and the activation go through again. Here a slice of the sound goes through all of them
before the next one is begun. That is exact: beyond their own reach, convolutions do not look, and the one
norm among them, over each channel's whole time, is known beforehand. Its mean and deviation follow from the
means and covariances of the sound's windows, since the first convolution is linear; so it is folded into the
first convolution's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SLICE_FRAMES = 50
"""Output frames of one slice, one second of sound: long enough that what slices share at their edges is
nothing, short enough for the caches."""


def speed_up_convolutions(model: Any) -> None:
    """Make a float32 `Wav2Vec2Model` on the CPU use the convolutions below, in place.

    The weights stay under their names. Models that norm otherwise than wav2vec2-base keep their own.
    """
    if model.config.feat_extract_norm == "group" and not model.config.conv_bias:
        model.feature_extractor = _sliced_feature_encoder(model.feature_extractor)
    model.encoder.pos_conv_embed = _positional_convolution(model.encoder.pos_conv_embed)


def _sliced_feature_encoder(original: Any) -> torch.nn.Module:
    import torch

    class SlicedFeatureEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_layers = original.conv_layers
            for layer in self.conv_layers[1:]:
                layer.conv.weight.data = _channels_last(layer.conv.weight.data)

        def forward(self, input_values: torch.Tensor) -> torch.Tensor:
            """Features (sounds, channels, frames) of sounds (sounds, samples)."""
            return torch.stack([_features(self.conv_layers, sound).t() for sound in input_values])

    return SlicedFeatureEncoder()


def _features(layers: Sequence[Any], sound: torch.Tensor) -> torch.Tensor:
    """Features of one sound (samples,): (frames, channels)."""
    import torch

    first = layers[0]
    kernel, stride = first.conv.kernel_size[0], first.conv.stride[0]
    windows = sound.unfold(0, kernel, stride)
    weight, bias = _fold_norm(first, windows)
    frames, step, reach = _frames(layers, len(windows))
    features = sound.new_empty((frames, layers[-1].conv.out_channels))
    for stop in (*range(SLICE_FRAMES, frames, SLICE_FRAMES), frames):
        # the last slice reaches back, so that all are of one size: for each other, oneDNN makes new code
        start = max(0, stop - SLICE_FRAMES)
        part = windows[start * step : (stop - 1) * step + reach]
        state = first.activation(torch.nn.functional.linear(part, weight, bias)).t()[None, :, None]
        for layer in layers[1:]:
            state = torch.nn.functional.conv2d(
                state, layer.conv.weight[:, :, None], stride=(1, layer.conv.stride[0])
            )
            state = layer.activation(state)
        features[start:stop] = state[0, :, 0].t()
    return features


def _fold_norm(first: Any, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (channels, kernel) and bias (channels,) of the first convolution and the norm after it, as one.

    For y = w·x over windows x: mean(y) = w·mean(x), var(y) = w·cov(x)·w.
    """
    wide = windows.double()
    mean = wide.mean(dim=0)
    centred = wide - mean
    covariance = centred.t() @ centred / len(wide)
    weight, norm = first.conv.weight[:, 0].double(), first.layer_norm
    variance = ((weight @ covariance) * weight).sum(dim=1).clamp(min=0)
    scale = norm.weight.double() / (variance + norm.eps).sqrt()
    folded, bias = weight * scale[:, None], norm.bias.double() - scale * (weight @ mean)
    return folded.to(first.conv.weight.dtype), bias.to(first.conv.weight.dtype)


def _frames(layers: Sequence[Any], windows: int) -> tuple[int, int, int]:
    """How many frames come of `windows` outputs of the first layer, how many of those lie between two frames,
    and how many one frame is made of."""
    step, reach = 1, 1
    for layer in reversed(layers[1:]):
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        reach, step = (reach - 1) * stride + kernel, step * stride
    return (windows - reach) // step + 1, step, reach


def _positional_convolution(original: Any) -> torch.nn.Module:
    import torch

    class PositionalConvolution(torch.nn.Module):
        """The same, with its weight norm folded in once, and in the layout that oneDNN is quick with."""

        _weight: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.padding, self.activation = original.conv, original.padding, original.activation
            self.register_buffer(
                "_weight", _channels_last(original.conv.weight.detach())[:, :, None], persistent=False
            )

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            state = torch.nn.functional.conv2d(
                hidden_states.transpose(1, 2)[:, :, None],
                self._weight,
                self.conv.bias,
                padding=(0, self.conv.padding[0]),
                groups=self.conv.groups,
            )
            return self.activation(self.padding(state[:, :, 0])).transpose(1, 2)  # type: ignore[no-any-return]

    return PositionalConvolution()


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    """A weight (out, in, kernel) with the same numbers, laid out kernel before channel."""
    return weight.permute(0, 2, 1).contiguous().permute(0, 2, 1)
