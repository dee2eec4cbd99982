"""Pictures of media: tensors and arrays to images, contact sheets, and PNG files that carry their settings."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sfumato.errors import UserError
from sfumato.files import make_folder, write_atomic

_INKS = ("#1f4e9c", "#c2452d", "#2d8a4e", "#8a4ea8", "#b8860b", "#3a3a3a")
_PLOT = (192, 96)
_SHOWN = 96  # pictures below this are enlarged by a whole factor, so that a person can see them
_FONT = 11
_LINES = 4
_SLICES = 8


def to_image(x: Tensor | NDArray[Any]) -> Image.Image:
    """One item (C, *S) as a picture.

    (D,): a step for each number. (C, L): a line plot, a colour for each channel. (C, H, W): grey, grey + alpha, RGB or
    RGBA for C = 1 to 4, else the channels side by side. (C, D, H, W): up to 8 slices along D, side by side. uint8 is
    shown as it is; other types are stretched from their smallest to their largest finite value.
    """
    array = np.asarray(x.detach().cpu().float().numpy() if isinstance(x, Tensor) and x.is_floating_point() else x)
    if array.ndim == 1:
        return _plot(np.repeat(array[None], max(1, 2 * _PLOT[0] // max(1, len(array))), 1))
    if array.ndim == 2:
        return _plot(array)
    if array.ndim == 4:
        depths = np.linspace(0, array.shape[1] - 1, min(_SLICES, array.shape[1])).round().astype(int)
        return _row([to_image(_bytes(array)[:, d]) for d in depths])
    if array.ndim != 3:
        raise UserError(
            f"an array of shape {array.shape} can't be shown; items are (D,), (C, L), (C, H, W) or (C, D, H, W)"
        )
    shown = _bytes(array)
    if len(shown) > 4:
        return _row([Image.fromarray(channel) for channel in shown])
    return Image.fromarray(shown[0] if len(shown) == 1 else np.ascontiguousarray(shown.transpose(1, 2, 0)))


def grid(
    images: Sequence[Image.Image],
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    pad: int = 2,
    scale: int | None = None,
) -> Image.Image:
    """A contact sheet on white, row by row, with a caption under each picture.

    columns: by default as square a sheet as fits. scale: whole factor by which all pictures are enlarged (nearest
    pixel); by default the one that brings small pictures to about 96 pixels.
    """
    if not images:
        raise UserError("a grid of 0 pictures can't be made; give at least one")
    wide = max(image.width for image in images)
    high = max(image.height for image in images)
    factor = scale or max(1, _SHOWN // max(wide, high))
    columns = columns or min(len(images), max(1, round((len(images) * high / wide) ** 0.5)))
    cell_w, cell_h = wide * factor, high * factor
    font = ImageFont.load_default(_FONT)
    lines = [_wrapped(caption, max(cell_w, _SHOWN)) for caption in captions or ()]
    line_h = _FONT + 3
    text_h = max((len(wrapped) for wrapped in lines), default=0) * line_h
    step_x = max(cell_w, _SHOWN if lines else 0) + pad
    step_y = cell_h + text_h + pad
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * step_x + pad, rows * step_y + pad), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left, top = pad + i % columns * step_x, pad + i // columns * step_y
        shown = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        if shown.mode in ("RGBA", "LA"):
            sheet.paste(_checker(shown.size), (left, top))
            sheet.paste(shown.convert("RGBA"), (left, top), shown.getchannel("A"))
        else:
            sheet.paste(shown, (left, top))
        for number, line in enumerate(lines[i] if i < len(lines) else ()):
            draw.text((left, top + cell_h + 1 + number * line_h), line, fill="black", font=font)
    return sheet


def scatter(points: Tensor | NDArray[Any], side: int = 384) -> Image.Image:
    """Vectors (N, D) as dots by their first two numbers, in a square that holds all; one number alone is drawn over 0."""
    array = np.asarray(points.detach().cpu().float().numpy() if isinstance(points, Tensor) else points, np.float64)
    if array.ndim != 2 or array.shape[1] < 1:
        raise UserError(f"a scatter plot takes vectors (N, D), not an array of shape {array.shape}")
    xy = np.zeros((len(array), 2))
    xy[:, : min(2, array.shape[1])] = np.nan_to_num(array[:, :2])
    low, high = (xy.min(0), xy.max(0)) if len(xy) else (np.zeros(2), np.zeros(2))
    scale = (side - 9) / (float((high - low).max()) or 1.0)
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for x, y in ((xy - (low + high) / 2) * scale + side / 2).tolist():
        draw.ellipse((x - 1.5, side - y - 1.5, x + 1.5, side - y + 1.5), fill=_INKS[0])
    return image


def save_png(image: Image.Image, path: str | Path, text: Mapping[str, str] | None = None, *, sync: bool = True) -> Path:
    """Write a PNG with text chunks, whole or not at all; folders are made as needed. sync: as for `write_atomic`."""
    target = Path(path)
    make_folder(target.parent)
    write_atomic(target, png(image, text), sync=sync)
    return target


def png(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """The content of a PNG file with text chunks."""
    info = PngInfo()
    for key, value in (text or {}).items():
        if value.isascii():
            info.add_text(key, value)
        else:
            info.add_itxt(key, value)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=info)
    return encoded.getvalue()


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    unit = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low or 1.0)
    return np.rint(unit * 255).astype(np.uint8)


def _row(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, one pixel apart."""
    wide, high = images[0].size
    row = Image.new(images[0].mode, ((wide + 1) * len(images) - 1, high), "white")
    for i, image in enumerate(images):
        row.paste(image, (i * (wide + 1), 0))
    return row


def _plot(array: NDArray[Any]) -> Image.Image:
    """(C, L) as lines over a common range; long ones as the envelope of smallest and largest value per pixel column."""
    wide, high = _PLOT
    values = np.nan_to_num(array.astype(np.float64))
    low, high_value = float(values.min(initial=0)), float(values.max(initial=0))
    down = (high - 3) / ((high_value - low) or 1.0)
    image = Image.new("RGB", _PLOT, "white")
    draw = ImageDraw.Draw(image)
    draw.line([(0, 1 + high_value * down), (wide, 1 + high_value * down)], fill="#d0d0d0")
    for channel, row in enumerate(values):
        y = 1 + (high_value - row) * down
        ink = _INKS[channel % len(_INKS)]
        if len(row) <= 2 * wide:
            x = np.linspace(0, wide - 1, len(row))
            draw.line(list(zip(x.tolist(), y.tolist())), fill=ink)
            continue
        ends = np.linspace(0, len(y) - 1, wide + 1).astype(int)
        for column, (start, stop) in enumerate(itertools.pairwise(ends.tolist())):
            part = y[start : stop + 1]  # with the first value of the next column, so that steep lines have no gaps
            draw.line([(column, float(part.min())), (column, float(part.max()))], fill=ink)
    return image


def _checker(size: tuple[int, int]) -> Image.Image:
    """The grey squares that stand for transparency."""
    x, y = np.meshgrid(np.arange(size[0]) // 8, np.arange(size[1]) // 8)
    return Image.fromarray(np.where((x + y) % 2, 204, 255).astype(np.uint8)).convert("RGB")


def _wrapped(caption: str, wide: int) -> list[str]:
    lines = textwrap.wrap(caption, max(8, int(wide / (_FONT * 0.52)))) or [""]
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], lines[_LINES - 1][:-1] + "…"]
