"""Previews are small pictures that show what they should."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from clipfarm_dagster.modalities.previews import (
    MAX_SHEET_BYTES,
    contact_sheet,
    data_uri_markdown,
    waveform_picture,
)


def _pixels(picture: bytes) -> np.ndarray:
    pixels: np.ndarray = np.asarray(Image.open(io.BytesIO(picture)).convert("RGBA")).astype(int)
    return pixels


def _wave_columns(picture: bytes) -> np.ndarray:
    """Height of the drawn wave in each column, without the centre line and the axis."""
    wave = _pixels(picture)[:114]
    strong = wave[..., 3] > 118  # the centre line is fainter
    heights: np.ndarray = strong.sum(axis=0)
    return heights


@pytest.mark.parametrize(("height", "width"), [(240, 320), (426, 240), (1920, 1080), (121, 161)])
def test_contact_sheet_shows_frames_in_reading_order_with_their_shape(height: int, width: int) -> None:
    frames = np.stack([np.full((height, width, 3), 15 * n, np.uint8) for n in range(16)])
    sheet = _pixels(contact_sheet(frames))
    tile_height, tile_width = (sheet.shape[0] - 4) / 2, (sheet.shape[1] - 28) / 8
    assert tile_width / tile_height == pytest.approx(width / height, rel=0.03)
    assert tile_height <= 180
    for number in range(16):
        row, column = divmod(number, 8)
        y, x = int((row + 0.5) * (tile_height + 4)), int((column + 0.5) * (tile_width + 4))
        assert sheet[y, x, :3] == pytest.approx(15 * number, abs=3)
        assert sheet[y, x, 3] == 255
    assert (sheet[:, int(tile_width) + 2, 3] == 0).all()  # the gaps take the page's colour


def test_contact_sheet_of_few_frames_is_narrower() -> None:
    frame = np.zeros((90, 160, 3), np.uint8)
    assert _pixels(contact_sheet([frame])).shape[:2] == (54, 96)
    assert _pixels(contact_sheet([frame] * 3, columns=2)).shape[:2] == (
        364,
        644,
    )  # no tile is higher than 180


@pytest.mark.parametrize("side", [64, 400])
def test_contact_sheet_stays_small_for_the_hardest_frames(side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, side, side, 3), dtype=np.uint8)
    assert 1000 < len(contact_sheet(noise)) <= MAX_SHEET_BYTES


def test_contact_sheet_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet([])


def test_waveform_follows_the_loudness() -> None:
    time = np.arange(4 * 16_000) / 16_000
    sound = (np.sin(440 * 2 * np.pi * time) * np.where(time < 2, 0.9, 0.3)).astype(np.float32)
    columns = _wave_columns(waveform_picture(sound, 16_000))
    assert len(columns) == 800
    loud, soft = np.median(columns[20:380]), np.median(columns[420:780])
    assert loud / soft == pytest.approx(3, rel=0.15)
    assert loud == pytest.approx(0.9 * 2 * 54, rel=0.05)


def test_waveform_loses_no_click() -> None:
    sound = np.zeros(90 * 16_000, np.float32)
    sound[45 * 16_000] = 1.0
    columns = _wave_columns(waveform_picture(sound, 16_000))
    assert columns[398:402].max() > 40
    assert columns[:390].max() <= 2


def test_soft_sound_is_magnified() -> None:
    sound = np.sin(np.arange(16_000) / 5).astype(np.float32)
    soft = _wave_columns(waveform_picture(0.05 * sound, 16_000))
    assert np.median(soft) == pytest.approx(
        np.median(_wave_columns(waveform_picture(0.5 * sound, 16_000))), abs=2
    )


def test_silence_is_told_apart_from_soft_sound() -> None:
    silent = waveform_picture(np.zeros(16_000, np.float32), 16_000)
    assert _wave_columns(silent).max() <= 2
    # the word stands right of the ticks
    constant = waveform_picture(np.full(16_000, 1e-9, np.float32), 16_000)
    assert (_pixels(silent)[118:, 600:] != _pixels(constant)[118:, 600:]).any()


@pytest.mark.parametrize("count", [0, 1, 7, 50, 90 * 16_000])
def test_waveform_of_any_length_has_the_same_size_and_is_small(count: int) -> None:
    sound = np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)
    picture = waveform_picture(sound, 16_000)
    assert _pixels(picture).shape == (140, 800, 4)
    assert len(picture) < 20_000


def test_waveform_reads_on_white_and_on_dark() -> None:
    pixels = _pixels(waveform_picture(np.sin(np.arange(16_000)).astype(np.float32), 16_000))
    assert pixels[0, 0, 3] == 0
    solid = pixels[pixels[..., 3] > 200][:, :3].mean(axis=1)
    assert solid.min() > 70
    assert solid.max() < 190


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_data_uri_carries_the_picture(form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, form)
    text = data_uri_markdown(file.getvalue(), "a [strange]\nname")
    head, _, data = text.removesuffix(")").partition(";base64,")
    assert head == f"![a  strange  name](data:image/{form.lower()}"
    assert base64.b64decode(data, validate=True) == file.getvalue()


def test_data_uri_of_anything_else_is_an_error() -> None:
    with pytest.raises(ValueError, match="PNG, JPEG or WebP"):
        data_uri_markdown(b"<svg/>", "drawing")
