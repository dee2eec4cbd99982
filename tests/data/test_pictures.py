"""Decoding: turning, colour conversions, alpha, resizing and cropping against exact answers; hostile files."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.errors import UserError
from sfumato.pictures import (
    MAX_PIXELS,
    BadPicture,
    Look,
    colour,
    cut,
    decode,
    fit,
    from_array,
    lay_on,
    read_header,
)

RNG = np.random.default_rng(0)


def encoded(array: np.ndarray[Any, Any] | Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def look(height: int, width: int, channels: int = 3, **settings: Any) -> Look:
    return Look(height, width, channels, **settings)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pictures_are_turned_as_exif_says(orientation: int, undo: Any, kind: str) -> None:
    stored = RNG.integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | ({"lossless": True} if kind == "WEBP" else {})
    shown = undo(stored)
    header = read_header(encoded(stored, kind, **options))
    assert (header.height, header.width) == shown.shape[:2]
    assert np.array_equal(decode(encoded(stored, kind, **options), look(*shown.shape[:2])), shown.transpose(2, 0, 1))


@pytest.mark.parametrize("resample", ["lanczos", "area", "nearest"])
@pytest.mark.parametrize("size", [(3, 3), (16, 16), (7, 5), (64, 40)])
def test_a_constant_picture_stays_constant(resample: Any, size: tuple[int, int]) -> None:
    shade = np.asarray([200, 3, 77], np.uint8)
    picture = np.broadcast_to(shade, (23, 37, 3)).copy()
    decoded = decode(encoded(picture), look(*size, resample=resample))
    assert decoded.shape == (3, *size) and (decoded == shade[:, None, None]).all()


def test_no_size_rounds_past_the_edge() -> None:
    """scale = 64 / 103 gives back 103.00000000000001: a box outside the picture."""
    for side in range(1, 260):
        for target in (8, 28, 64):
            for shape in ((side, 177), (61, side)):
                picture = Image.new("L", shape, 7)
                assert (fit(picture, look(target, target, 1)) == 7).all()


def test_area_halves_by_means() -> None:
    blocks = RNG.integers(0, 64, (8, 8, 1), np.uint8) * 4
    picture = np.broadcast_to(blocks.reshape(8, 1, 8, 1), (8, 2, 8, 2)).reshape(16, 16)
    assert np.array_equal(decode(encoded(picture), look(8, 8, 1, resample="area"))[0], blocks[..., 0])


@pytest.mark.parametrize(("shape", "top", "left"), [((12, 8), 2, 0), ((8, 12), 0, 2), ((11, 8), 1, 0), ((8, 8), 0, 0)])
def test_centre_crop_takes_the_middle_pixels(shape: tuple[int, int], top: int, left: int) -> None:
    picture = RNG.integers(0, 256, (*shape, 3), np.uint8)
    wanted = picture[top : top + 8, left : left + 8].transpose(2, 0, 1)
    assert np.array_equal(decode(encoded(picture), look(8, 8)), wanted)


def test_covering_pictures_are_cut_where_the_draw_says() -> None:
    picture = RNG.integers(0, 256, (8, 13, 3), np.uint8)
    asked = look(8, 8, cover=True)
    covering = decode(encoded(picture), asked)
    assert covering.shape == (3, 8, 13)
    for where, left in (((0.0, 0.0), 0), ((0.9, 0.99), 5), ((0.5, 0.5), 3), (None, 2)):
        assert np.array_equal(cut(covering, asked, where), picture.transpose(2, 0, 1)[:, :, left : left + 8])


def test_alpha_is_laid_on_a_colour_by_the_formula() -> None:
    rgba = RNG.integers(0, 256, (5, 7, 4), np.uint8)
    a = rgba[..., 3:] / 255
    for under in ((255, 255, 255), (0, 0, 0), (10, 200, 90)):
        exact = a * rgba[..., :3] + (1 - a) * np.asarray(under)
        assert np.abs(lay_on(rgba, under) - exact).max() <= 0.5
        assert np.array_equal(decode(encoded(rgba), look(5, 7, under=under)), lay_on(rgba, under).transpose(2, 0, 1))
    assert np.array_equal(decode(encoded(rgba), look(5, 7, 4, under=None)), rgba.transpose(2, 0, 1))


def test_clear_pixels_do_not_bleed_when_resized() -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :8] = (255, 0, 0, 255)  # opaque red beside clear black
    small = decode(encoded(rgba), look(5, 5, 4, under=None))
    seen = small[3] > 8
    assert (small[0][seen] >= 250).all() and (small[1:3, seen] == 0).all()


def test_palettes_are_converted_with_their_transparency() -> None:
    palette = Image.new("P", (4, 2))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2, 0, 1, 2, 0, 1])
    stream = encoded(palette, transparency=0)
    assert read_header(stream).alpha and not read_header(encoded(palette)).alpha
    stream.seek(0)
    shown = decode(stream, look(2, 4))
    assert shown[:, 0, 0].tolist() == [255, 255, 255] and shown[:, 0, 1].tolist() == [0, 255, 0]
    kept = decode(encoded(palette, transparency=0), look(2, 4, 4, under=None))
    assert kept[3].tolist() == [[0, 255, 255, 0], [255, 255, 0, 255]]


def test_sixteen_bits_keep_their_scale() -> None:
    values = np.asarray([[0, 256, 257, 32768, 65535]], np.uint16)
    shown = decode(encoded(Image.fromarray(values)), look(1, 5, 1))
    assert shown[0].tolist() == np.rint(values / 257).astype(int).tolist() == [[0, 1, 1, 128, 255]]


def test_cmyk_becomes_rgb() -> None:
    shown = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), look(8, 8))
    assert np.abs(shown.astype(int) - np.asarray([255, 0, 0])[:, None, None]).max() <= 8


def test_grey_and_colour_are_converted_on_request() -> None:
    grey = RNG.integers(0, 256, (4, 4), np.uint8)
    assert np.array_equal(decode(encoded(grey), look(4, 4)), np.stack([grey] * 3))
    rgb = np.stack([grey] * 3, -1)
    assert np.array_equal(decode(encoded(rgb), look(4, 4, 1))[0], grey)
    assert decode(encoded(rgb), look(4, 4, 4))[3].tolist() == [[255] * 4] * 4


def test_large_jpegs_are_reduced_while_decoding_and_agree_with_the_full_picture() -> None:
    y, x = np.mgrid[:1024, :1024] / 1024
    smooth = np.rint(np.stack([255 * x, 255 * y, 255 * (1 - x)], -1)).astype(np.uint8)
    small = decode(encoded(smooth, "JPEG", quality=95), look(32, 32))
    exact = np.rint(smooth.reshape(32, 32, 32, 32, 3).mean((1, 3))).transpose(2, 0, 1)
    assert np.abs(small - exact).max() <= 4


def test_arrays_of_many_channels_are_resized_alike() -> None:
    array = RNG.integers(0, 256, (7, 20, 10), np.uint8)
    made = from_array(array, look(5, 5, 7, resample="area"))
    alone = decode(encoded(array[3]), look(5, 5, 1, resample="area"))
    assert made.shape == (7, 5, 5) and np.array_equal(made[3], alone[0])


def png_header(width: int, height: int) -> io.BytesIO:
    """A PNG that promises width x height pixels and holds none."""
    body = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(8001, 8001), (100_000, 100_000), (2**31 - 1, 2**31 - 1), (64_000_001, 1)]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_picture_bombs_are_refused_by_their_header(width: int, height: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_header, lambda stream: decode(stream, look(8, 8))):
        with pytest.raises(BadPicture, match=f"over the limit of {MAX_PIXELS // 10**6} million pixels"):
            read(png_header(width, height))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6])
def test_truncated_pictures_are_bad(kind: str, keep: float) -> None:
    whole = encoded(RNG.integers(0, 256, (64, 64, 3), np.uint8), kind).getvalue()
    with pytest.raises(BadPicture):
        decode(io.BytesIO(whole[: int(len(whole) * keep)]), look(8, 8))


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_give_a_picture_or_a_reason(seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = bytearray(
        encoded(RNG.integers(0, 256, (16, 16, 3), np.uint8), ["PNG", "JPEG", "WEBP", "GIF", "BMP"][seed % 5]).getvalue()
    )
    for position in rng.integers(0, len(raw), 5):
        raw[position] ^= int(rng.integers(1, 256))
    try:
        assert decode(io.BytesIO(bytes(raw)), look(8, 8)).shape == (3, 8, 8)
    except BadPicture as reason:
        assert str(reason)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "EPS"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(BadPicture, match="not a PNG, JPEG, WebP, GIF or BMP"):
        read_header(encoded(np.zeros((16, 16, 3), np.uint8), kind))


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), shade) for shade in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    stream.seek(0)
    assert decode(stream, look(4, 4))[:, 0, 0].tolist() == [255, 0, 0]


def test_colours_are_names_or_codes() -> None:
    assert colour("white") == (255, 255, 255) and colour("#102030") == (16, 32, 48)
    with pytest.raises(UserError, match="alpha = 'vhite'"):
        colour("vhite")


def test_pictures_of_the_other_kind_are_bad() -> None:
    grey = encoded(np.zeros((4, 4), np.uint8))
    with pytest.raises(BadPicture, match="grey among"):
        decode(grey, replace(look(4, 4), grey=False))
