"""Media that people give to be asked by: files of any size, and what is said of those that can't be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.given import read_given, read_sound
from sfumato.sound import resample, write_wav

PICTURE = DataInfo((3, 32, 32))
SOUND = DataInfo((1, 800), "audio", rate=8000)
RNG = np.random.default_rng(0)


def thing(ground: tuple[int, int, int] = (255, 255, 255), side: int = 32) -> NDArray[np.uint8]:
    """A ring of noise on a plain ground, which is seen through it."""
    made = np.full((side, side, 3), ground, np.uint8)
    made[8:24, 8:24] = RNG.integers(0, 120, (16, 16, 3))
    made[12:20, 12:20] = ground
    return made


def one(value: Any, info: DataInfo = PICTURE) -> torch.Tensor:
    found = read_given("picture", value, info)
    assert len(found) == 1
    return found[0].media


def test_a_picture_of_the_right_size_on_white_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = thing()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    for value in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), expected[None]):
        assert torch.equal(one(value), expected)


def test_larger_pictures_are_means_of_their_pixels(tmp_path: Path) -> None:
    pixels = thing()
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(tmp_path / "a.png")
    assert torch.equal(one(tmp_path / "a.png"), torch.from_numpy(pixels).permute(2, 0, 1))
    Image.fromarray(pixels.repeat(40, 0).repeat(40, 1)).save(tmp_path / "large.png")  # over the size that is worked in
    assert (one(tmp_path / "large.png").int() - torch.from_numpy(pixels).permute(2, 0, 1).int()).abs().max() <= 1
    assert one(Image.fromarray(pixels[:7, :5])).shape == (3, 32, 32)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = thing((10, 200, 30))
    alpha = np.zeros((32, 32, 1), np.uint8)
    alpha[8:24, 8:24] = 255
    Image.fromarray(np.concatenate([pixels, alpha], 2)).save(tmp_path / "a.png")
    shown = one(tmp_path / "a.png")
    inside = torch.from_numpy(alpha[..., 0]) > 0
    assert (shown[:, ~inside] == 255).all()
    assert torch.equal(shown[:, inside], torch.from_numpy(pixels).permute(2, 0, 1)[:, inside])


def test_a_plain_background_becomes_white_and_what_it_surrounds_stays() -> None:
    pixels = thing((90, 140, 230))
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[8:24, 8:24] = False
    shown = one(Image.fromarray(pixels))
    assert (shown[:, outside] == 255).all()
    assert torch.equal(shown[:, ~outside], torch.from_numpy(pixels).permute(2, 0, 1)[:, ~outside])  # the hole too
    noisy = np.clip(pixels.astype(int) + RNG.integers(-9, 10, pixels.shape), 0, 255).astype(np.uint8)
    assert (one(Image.fromarray(noisy))[:, outside] == 255).all()


def test_a_background_round_a_corner_is_found() -> None:
    """A spiral: the ground inside is reached from the rim by turns alone."""
    pixels = np.full((32, 32, 3), 200, np.uint8)
    pixels[4:28, 4], pixels[4:28, 27], pixels[4, 4:28], pixels[27, 4:24] = 0, 0, 0, 0
    pixels[8:28, 23], pixels[8, 8:24] = 0, 0
    shown = one(Image.fromarray(pixels))
    assert (shown[:, torch.from_numpy(pixels[..., 0]) == 200] == 255).all()
    assert (shown[:, torch.from_numpy(pixels[..., 0]) == 0] == 0).all()


def test_any_other_background_is_left_as_it_is() -> None:
    pixels = RNG.integers(0, 255, (32, 32, 3), np.uint8)
    assert torch.equal(one(Image.fromarray(pixels)), torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_picture_is_widened_to_a_square() -> None:
    shown = one(Image.fromarray(RNG.integers(0, 100, (32, 12, 3), np.uint8)))
    assert (shown[:, :, :10] == 255).all() and (shown[:, :, 22:] == 255).all() and (shown[:, :, 10:22] < 100).all()


def test_grey_16_bit_and_palette_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 40 * 257, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(thing()).convert("P").save(tmp_path / "few.gif")
    Image.fromarray(thing()[..., 0]).save(tmp_path / "grey.png")
    assert (
        len(read_given("picture", [tmp_path / "deep.png", tmp_path / "few.gif", tmp_path / "grey.png"], PICTURE)) == 3
    )


def test_a_sound_has_the_rate_and_length_of_the_model(tmp_path: Path) -> None:
    sound = (0.3 * torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))).clamp(-0.9, 0.9)
    (tmp_path / "a.wav").write_bytes(write_wav(sound.numpy(), 16_000))
    mono = torch.from_numpy(np.rint(sound.numpy() * 32767) / 32768).float().mean(0, keepdim=True)
    found = read_given("reference", tmp_path / "a.wav", SOUND)[0]
    expected = resample(mono, 16_000, 8000)
    assert found.media.shape == (1, 800) and (found.media[:, 500:] == 0).all()
    assert torch.allclose(found.media[:, :500], expected, atol=2e-4)
    assert torch.equal(read_sound(tmp_path / "a.wav", SOUND, "init", 300), found.media[:, :300])


def test_the_same_text_means_the_same_item(tmp_path: Path) -> None:
    for name, pixels in (("a.png", thing()), ("b.png", thing())):
        Image.fromarray(pixels).save(tmp_path / name)
    a, b = read_given("picture", [tmp_path / "a.png", tmp_path / "b.png"], PICTURE)
    assert a.stem == "a" and a.written.startswith("a.png ") and a.written.split()[1] != b.written.split()[1]
    assert read_given("picture", tmp_path / "a.png", PICTURE)[0].written == a.written


@pytest.mark.parametrize(
    ("value", "info", "words"),
    [
        ("none.png", PICTURE, "picture=.*none.png: there is no such file"),
        ("text.png", PICTURE, "not a PNG, JPEG"),
        ("short.png", PICTURE, "short.png"),
        (".", PICTURE, "no such file"),
        ([], PICTURE, "asks for nothing"),
        (7, PICTURE, "must be a file"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), PICTURE, "a batch of 4 axes"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), PICTURE, "a batch of 4 axes"),
        ("text.png", SOUND, "text.png"),
        ("nan.wav", SOUND, "NaN"),
        ("wrong.npy", DataInfo((4, 8, 8, 8), "array"), "of shape"),
    ],
)
def test_what_is_refused(tmp_path: Path, value: Any, info: DataInfo, words: str) -> None:
    (tmp_path / "text.png").write_text("no picture at all")
    Image.fromarray(thing()).save(tmp_path / "whole.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    head = write_wav(np.zeros((1, 4), np.float32), 8000)
    assert head[:4] == b"RIFF"
    body = np.full(4, np.nan, "<f4").tobytes()
    float_head = (
        b"RIFF\x34\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x03\x00\x01\x00\x40\x1f\x00\x00\x00\x7d\x00\x00\x04\x00\x20\x00"
    )
    (tmp_path / "nan.wav").write_bytes(float_head + b"data\x10\x00\x00\x00" + body)
    np.save(tmp_path / "wrong.npy", np.zeros((2, 2), np.float32))
    place = tmp_path / value if isinstance(value, str) else value
    with pytest.raises(UserError, match=words) as caught:
        read_given("picture", place, info)
    assert "\n" not in str(caught.value)
