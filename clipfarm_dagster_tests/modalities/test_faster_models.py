"""The quicker ways through the models give what transformers' own give."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEModel, Wav2Vec2Config, Wav2Vec2Model

from clipfarm_dagster.modalities.audio.convolutions import SLICE_FRAMES, speed_up_convolutions
from clipfarm_dagster.modalities.onednn import use_onednn
from clipfarm_dagster.modalities.video.first_token import keep_first_token

SAMPLES_PER_FRAME = 320


@pytest.fixture(scope="module")
def wav2vec2() -> Wav2Vec2Model:
    """wav2vec2-base's own convolutions before a small transformer, with random weights and norms."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, conv_dim=(48,) * 7
    )
    model = Wav2Vec2Model(config)
    randomise(model.eval())
    return model


@pytest.fixture(scope="module")
def videomae() -> VideoMAEModel:
    """A small VideoMAE with random weights, norms and biases."""
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=48,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_frames=4,
    )
    model = VideoMAEModel(config)
    randomise(model.eval())
    return model


def randomise(model: torch.nn.Module) -> None:
    with torch.inference_mode():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def one_minus_cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    a, b = one.double().flatten(), other.double().flatten()
    return 1 - float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize(
    "samples",
    [
        400,
        401,
        719,
        720,
        SAMPLES_PER_FRAME * SLICE_FRAMES + 79,
        SAMPLES_PER_FRAME * SLICE_FRAMES + 80,
        SAMPLES_PER_FRAME * (SLICE_FRAMES + 1) + 80,
        80_000,
    ],
)
@torch.inference_mode()
def test_sliced_convolutions_are_the_whole_ones(wav2vec2: Wav2Vec2Model, samples: int):
    quick = copy.deepcopy(wav2vec2)
    speed_up_convolutions(quick)
    use_onednn(quick)
    sounds = torch.randn(2, samples).cumsum(1) + 5
    sounds = (sounds - sounds.mean(1, keepdim=True)) / sounds.std(1, keepdim=True)

    expected, found = wav2vec2(sounds).last_hidden_state, quick(sounds).last_hidden_state

    assert found.shape == expected.shape
    assert one_minus_cosine(found, expected) < 1e-9


@torch.inference_mode()
def test_a_silent_sound_is_no_division_by_zero(wav2vec2: Wav2Vec2Model):
    quick = copy.deepcopy(wav2vec2)
    speed_up_convolutions(quick)
    silence = torch.zeros(1, 16_000)

    expected, found = wav2vec2(silence).last_hidden_state, quick(silence).last_hidden_state

    assert one_minus_cosine(found, expected) < 1e-9


@torch.inference_mode()
def test_the_first_token_is_that_of_the_whole_model(videomae: VideoMAEModel):
    quick = copy.deepcopy(videomae)
    keep_first_token(quick)
    use_onednn(quick)
    clips = torch.randn(3, 4, 3, 48, 48)

    expected, found = videomae(clips).last_hidden_state, quick(clips).last_hidden_state

    assert found.shape == (3, 1, 64)
    assert one_minus_cosine(found[:, 0], expected[:, 0]) < 1e-9


def test_weights_stay_what_they_were(wav2vec2: Wav2Vec2Model, videomae: VideoMAEModel):
    for model, changes in ((wav2vec2, speed_up_convolutions), (videomae, keep_first_token)):
        quick = copy.deepcopy(model)
        changes(quick)
        use_onednn(quick)
        before, after = dict(model.named_parameters()), dict(quick.named_parameters())
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)


@torch.inference_mode()
def test_threads_that_share_a_model_give_the_same_bytes(wav2vec2: Wav2Vec2Model):
    quick = copy.deepcopy(wav2vec2)
    speed_up_convolutions(quick)
    use_onednn(quick)
    sounds = [torch.randn(1, 8_000 + 320 * n) for n in range(12)]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = [quick(sound).last_hidden_state.numpy() for sound in sounds]
        found: dict[int, np.ndarray] = {}

        def work(numbers: range) -> None:
            with torch.inference_mode():
                for n in numbers:
                    found[n] = quick(sounds[n]).last_hidden_state.numpy()

        threads = [threading.Thread(target=work, args=(range(k, 12, 3),)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(threads_before)
    assert all(np.array_equal(found[n], expected[n]) for n in range(12))
