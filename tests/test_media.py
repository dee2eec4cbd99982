"""Media as pictures: exact pixels, and PNG files written whole with their text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import UserError
from sfumato.media import grid, save_png, to_image

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_bytes_are_shown_as_they_are(channels: int, mode: str) -> None:
    array = RNG.integers(0, 256, (channels, 5, 7), np.uint8)
    for given in (array, torch.from_numpy(array)):
        image = to_image(given)
        assert image.mode == mode and image.size == (7, 5)
        assert np.array_equal(np.asarray(image).reshape(5, 7, channels), array.transpose(1, 2, 0))


def test_many_channels_and_slices_stand_side_by_side() -> None:
    array = RNG.integers(0, 256, (6, 5, 7), np.uint8)
    shown = np.asarray(to_image(array))
    assert shown.shape == (5, 6 * 8 - 1)
    assert all(np.array_equal(shown[:, 8 * k : 8 * k + 7], array[k]) for k in range(6))
    volume = RNG.integers(0, 256, (3, 4, 5, 7), np.uint8)
    shown = np.asarray(to_image(volume))
    assert all(np.array_equal(shown[:, 8 * d : 8 * d + 7], volume[:, d].transpose(1, 2, 0)) for d in range(4))


def test_floats_are_stretched_over_their_range() -> None:
    array = np.asarray([[[-1.0, 0.0, 3.0]]])
    assert np.asarray(to_image(array)).tolist() == [[0, 64, 255]]
    assert np.asarray(to_image(torch.tensor([[[-1.0, 0.0, 3.0]]], dtype=torch.bfloat16))).tolist() == [[0, 64, 255]]
    assert np.asarray(to_image(np.full((1, 2, 2), 5.0))).tolist() == [[0, 0], [0, 0]]
    assert np.asarray(to_image(np.asarray([[[np.nan, 0.0, 1.0, np.inf]]]))).tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("length", [50, 5000])
def test_a_wave_is_drawn_from_bottom_to_top(length: int) -> None:
    rising = np.linspace(-1, 1, length)[None]
    drawn = np.asarray(to_image(rising).convert("L")) < 128
    columns = np.flatnonzero(drawn.any(0))
    heights = np.asarray([np.flatnonzero(drawn[:, c]).mean() for c in columns])
    assert len(columns) > 180 and (np.diff(heights) <= 0.5).all()
    assert heights[0] > 90 and heights[-1] < 5


def test_a_grid_places_pictures_row_by_row() -> None:
    images = [to_image(RNG.integers(0, 256, (3, 4, 6), np.uint8)) for _ in range(5)]
    sheet = np.asarray(grid(images, columns=2, pad=3, scale=2))
    assert sheet.shape == (3 * (8 + 3) + 3, 2 * (12 + 3) + 3, 3)
    for i, image in enumerate(images):
        top, left = 3 + i // 2 * 11, 3 + i % 2 * 15
        assert np.array_equal(sheet[top : top + 8, left : left + 12], np.asarray(image).repeat(2, 0).repeat(2, 1))
    assert (sheet[25:33, 18:30] == 255).all()  # the sixth place is empty


def test_captions_take_room_under_every_picture() -> None:
    images = [Image.new("L", (96, 96))] * 2
    plain, captioned = (
        grid(images, columns=1),
        grid(images, columns=1, captions=["short", "a caption of many words " * 9]),
    )
    assert captioned.width == plain.width and captioned.height > plain.height
    pixels = np.asarray(captioned.convert("L"))
    assert (pixels[98:112] < 128).any()  # letters under the first picture


def test_clear_pixels_show_a_pattern() -> None:
    image = Image.new("RGBA", (96, 96), (255, 0, 0, 0))
    assert set(np.unique(np.asarray(grid([image], pad=0)))) == {204, 255}


def test_impossible_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="shape"):
        to_image(np.zeros((1, 1, 1, 1, 1)))
    with pytest.raises(UserError, match="0 pictures"):
        grid([])


def test_png_files_carry_text_in_any_language(tmp_path: Path) -> None:
    image = to_image(RNG.integers(0, 256, (3, 4, 6), np.uint8))
    path = save_png(image, tmp_path / "new" / "a.png", {"prompt": "une été 雪", "seed": "7"})
    with Image.open(path) as stored:
        stored.load()
        assert stored.text == {"prompt": "une été 雪", "seed": "7"} and stored.tobytes() == image.tobytes()
    assert [f.name for f in path.parent.iterdir()] == ["a.png"]


def test_what_can_not_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="can't be written"):
        save_png(Image.new("L", (2, 2)), tmp_path / "file" / "a.png")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
