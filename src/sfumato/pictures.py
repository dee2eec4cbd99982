"""One encoded picture from a stranger -> uint8 (C, H, W): size checks, turning, colour, alpha, resizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from sfumato.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000

Resample = Literal["lanczos", "area", "nearest"]
Pixels = NDArray[np.uint8]

_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX, "nearest": Image.Resampling.NEAREST}
_GREY = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION = 0x0112


class BadPicture(Exception):  # noqa: N818 - a finding about the data, counted and reported, not a failure of ours
    """A picture that can't be used; the message is the reason."""


@dataclass(frozen=True)
class Header:
    """What the header of a picture says: size as shown (after turning), colour or grey, with alpha or without."""

    width: int
    height: int
    grey: bool
    alpha: bool


@dataclass(frozen=True)
class Look:
    """What every picture of a set becomes: `channels` x `height` x `width`.

    under: the colour that transparent pictures are laid on, or None to keep alpha as the last channel. cover: keep what lies
    beyond `width` or `height` after resizing, for a random crop later. grey: refuse pictures of the other kind.
    """

    height: int
    width: int
    channels: int
    under: tuple[int, int, int] | None = (255, 255, 255)
    resample: Resample = "lanczos"
    cover: bool = False
    grey: bool | None = None


def read_header(stream: BinaryIO) -> Header:
    """Read the header of an encoded picture. Raises BadPicture."""
    with _opened(stream) as image:
        width, height = image.size
        try:  # a PNG without such data up front would be decoded to its end to find some
            looked = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(_ORIENTATION, 1) if looked else 1
        except (OSError, ValueError, SyntaxError) as error:
            raise BadPicture(_reason(error)) from None
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return Header(width, height, *_kind(image))


def decode(stream: BinaryIO, look: Look) -> Pixels:
    """Decode an encoded picture to (C, H, W), or (C, >= H, >= W) if `look.cover`. Raises BadPicture."""
    with _opened(stream) as image:
        if look.grey is not None and look.grey != _kind(image)[0]:
            raise BadPicture("in colour among grey ones" if look.grey else "grey among pictures in colour")
        try:
            if image.format == "JPEG":  # reduced while decoding, to no less than twice what is asked
                most = 2 * max(look.height, look.width)
                image.draft(None, (most, most))
            image.load()
            turned = image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
            return fit(coloured(turned, look), look)
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
            raise BadPicture(_reason(error)) from None


def from_array(array: Pixels, look: Look) -> Pixels:
    """(C, H, W) pixels of any channel count, resized and cropped like a decoded picture."""
    return np.concatenate([fit(Image.fromarray(np.ascontiguousarray(channel)), look) for channel in array])


def coloured(image: Image.Image, look: Look) -> Image.Image:
    """Convert to the mode of `look.channels`: L, LA, RGB or RGBA, alpha kept or laid on a colour."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits: Pillow's own conversion would clip at 255
        values = np.clip(np.asarray(image).astype(np.float64), 0, 65535)
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    _, alpha = _kind(image)
    if alpha and look.channels in (1, 3) and look.under is not None:
        image = Image.fromarray(lay_on(np.asarray(image.convert("RGBA")), look.under))
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[look.channels]
    return image if image.mode == mode else image.convert(mode)


def lay_on(rgba: Pixels, under: tuple[int, int, int]) -> Pixels:
    """(H, W, 4) over a colour: round(a c + (1 - a) under) with a = alpha / 255. Returns (H, W, 3)."""
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = rgba[..., :3] * alpha + np.asarray(under, np.uint32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def fit(image: Image.Image, look: Look) -> Pixels:
    """Resize so that the picture just covers (H, W), and cut the middle out unless `look.cover`."""
    width, height = image.size
    scale = max(look.width / width, look.height / height)
    resample = _FILTERS[look.resample]
    if look.cover:
        size = (max(look.width, round(width * scale)), max(look.height, round(height * scale)))
        image = image if size == image.size else image.resize(size, resample, reducing_gap=3.0)
    elif scale == 1:  # whole pixels: an odd margin must not shift the picture by half a pixel
        left, top = (width - look.width) // 2, (height - look.height) // 2
        if image.size != (look.width, look.height):
            image = image.crop((left, top, left + look.width, top + look.height))
    else:
        across, down = min(width, look.width / scale), min(height, look.height / scale)  # not past the edge by rounding
        x, y = (width - across) / 2, (height - down) / 2
        box = (x, y, min(width, x + across), min(height, y + down))
        image = image.resize((look.width, look.height), resample, box=box, reducing_gap=3.0)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def colour(name: str) -> tuple[int, int, int]:
    """A colour's name or #hex code as (r, g, b)."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise UserError(
            f"alpha = '{name}': neither 'keep' nor a colour; give a name such as white or a code such as #ffffff"
        ) from None


def _opened(stream: BinaryIO) -> Image.Image:
    """Open without decoding: allowed formats only, and not too many pixels."""
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadPicture("not a PNG, JPEG, WebP, GIF or BMP picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture(f"over the limit of {MAX_PIXELS // 10**6} million pixels") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise BadPicture(_reason(error)) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise BadPicture(f"{width} x {height} is over the limit of {MAX_PIXELS // 10**6} million pixels")
    return image


def _kind(image: Image.Image) -> tuple[bool, bool]:
    grey = image.mode in _GREY or image.mode.startswith("I;")
    return grey, image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0].strip() if str(error) else type(error).__name__


def cut(pixels: Pixels, look: Look, where: tuple[float, float] | None) -> Pixels:
    """Cut (H, W) out of a covering picture; `where` in [0, 1)^2 is the place down and across, None the middle."""
    down, across = pixels.shape[1] - look.height, pixels.shape[2] - look.width
    if where is None:
        top, left = down // 2, across // 2
    else:
        top, left = int(where[0] * (down + 1)), int(where[1] * (across + 1))
    return pixels[:, top : top + look.height, left : left + look.width]
