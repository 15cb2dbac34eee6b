"""The video stage's preparation against transformers' own image processor."""

from __future__ import annotations

import numpy as np
import pytest
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from clipfarm_dagster.errors import ModelUnavailableError
from clipfarm_dagster.modalities.video.pixels import frame_transform, pixel_values

SETTINGS = [
    {},
    {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
    {"size": {"height": 225, "width": 300}, "crop_size": {"height": 224, "width": 224}},
    {"size": {"shortest_edge": 100}, "crop_size": {"height": 225, "width": 224}},
    {"do_resize": False},
    {"do_center_crop": False, "size": {"height": 224, "width": 224}},
    {"do_normalize": False},
    {"do_rescale": False, "image_mean": [1.0, 2.0, 3.0]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(720, 1280), (1280, 720), (121, 161), (60, 100), (224, 224), (223, 225)])
def test_frames_become_bit_for_bit_what_the_image_processor_makes(settings, shape):
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = VideoMAEImageProcessorPil(**settings)
    expected = processor([frame], return_tensors="np")["pixel_values"][0, 0]
    config = processor.to_dict()

    pixels = frame_transform(config, "x")(frame)
    values = pixel_values(config)
    actual = np.stack([values[c][pixels[..., c]] for c in range(3)])

    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


def test_an_unsupported_size_is_refused_by_name():
    config = VideoMAEImageProcessorPil(size={"max_height": 3, "max_width": 4}).to_dict()
    with pytest.raises(ModelUnavailableError, match="owner/model"):
        frame_transform(config, "owner/model")
