"""Media that people give to be asked by (`picture=chair.png`, `reference=clip.wav`): files to tensors, in the form that a
model reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.kinds import kind_of
from sfumato.pictures import BadPicture, Look, coloured, decode, fit, read_header
from sfumato.sound import resample
from sfumato.sound.read import channels_to, head_of, load_file
from sfumato.sound.wav import BadSound

_WHITE = (255, 255, 255)
_WORKED = 512  # pixels of the longer side, in which a background is looked for
_PLAIN = 0.9  # share of the rim that has to be of one colour
_NEAR = 24  # grey levels from it


@final
@dataclass(frozen=True)
class Given:
    """One item of a column of media. media: (C, *S). name: of its file, or of what it is."""

    media: Tensor
    name: str

    @property
    def written(self) -> str:
        """Name and content for settings: the same text means the same item."""
        content = self.media.contiguous().numpy().tobytes()
        return f"{self.name} {hashlib.sha256(content).hexdigest()[:12]}"

    @property
    def stem(self) -> str:
        """The name without a suffix, for file names and captions."""
        return Path(self.name).stem


def read_given(column: str, values: Any, info: DataInfo) -> list[Given]:
    """What was given for a column of media: a file, a Pillow picture, several of these in a list, or a batch (B, C, *S).

    info: what an item is. Pictures are laid on white, sounds brought to rate and length; tensors are taken as they are.
    Raises UserError.
    """
    if isinstance(values, Tensor):
        if values.ndim != len(info.shape) + 1 or not len(values):
            raise UserError(
                f"{column}: a tensor holds a batch of {len(info.shape) + 1} axes, (B, {', '.join(map(str, info.shape))}), "
                f"not {tuple(values.shape)}"
            )
        return [Given(one, column) for one in values]
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    if not listed:
        raise UserError(f"{column}=[] asks for nothing; give at least one file")
    return [_one(column, value, info) for value in listed]


def _one(column: str, value: Any, info: DataInfo) -> Given:
    if isinstance(value, Image.Image) and info.kind == "image":
        look = _look(info, value.width, value.height)
        return Given(_on_white(fit(coloured(value, look), look).transpose(1, 2, 0), info), column)
    if not isinstance(value, str | Path):
        raise UserError(f"{column}: must be a file, or media, not {value!r:.60}")
    file = Path(value)
    if not file.is_file():
        raise UserError(f"{column}={file}: there is no such file")
    if info.kind == "audio":
        return Given(read_sound(file, info, column), file.name)
    if info.kind == "image":
        return Given(_picture(file, info, column), file.name)
    media = kind_of(info).read(file, info)
    if media is None or tuple(media.shape) != tuple(info.shape):
        found = "not read back" if media is None else f"of shape {tuple(media.shape)}"
        raise UserError(
            f"{column}={file}: is {found}, and this model reads {tuple(info.shape)}; give media of that shape"
        )
    return Given(media, file.name)


def read_sound(file: Path, info: DataInfo, column: str, samples: int | None = None) -> Tensor:
    """A sound as (c, T) at the rate of `info`: cut, or followed by silence, to `samples` (its own T). Raises UserError."""
    try:
        rate, sound = head_of(file).rate, load_file(file)
    except BadSound as reason:
        raise UserError(f"{column}={file}: {reason}") from None
    if not np.isfinite(sound).all():
        raise UserError(f"{column}={file}: holds NaN or infinite samples")
    media = resample(torch.from_numpy(channels_to(sound, info.shape[0])), rate, info.rate)
    length = samples or info.shape[1]
    return F.pad(media[:, :length], (0, max(0, length - media.shape[1])))


def _picture(file: Path, info: DataInfo, column: str) -> Tensor:
    try:
        with file.open("rb") as stream:
            head = read_header(stream)
            stream.seek(0)
            pixels = decode(stream, _look(info, head.width, head.height))
    except (BadPicture, OSError) as reason:
        raise UserError(f"{column}={file}: {reason}; give a PNG, JPEG, WebP, GIF or BMP picture") from None
    return _on_white(pixels.transpose(1, 2, 0), info)


def _look(info: DataInfo, wide: int, high: int) -> Look:
    """Pixels as they are, but for very large pictures, laid on white where they are transparent."""
    scale = min(1.0, _WORKED / max(wide, high))
    return Look(max(1, round(high * scale)), max(1, round(wide * scale)), info.shape[0], under=_WHITE, resample="area")


def _on_white(pixels: NDArray[np.uint8], info: DataInfo) -> Tensor:
    """(H, W, C) of any size as a square (C, *S) uint8 of the size of `info`: a plain background becomes white, shorter sides
    are widened with it. Any other background is left as it is."""
    shown = pixels.copy()
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.int16)
    ground = np.median(rim, axis=0)
    if (np.abs(rim - ground).max(1) <= _NEAR).mean() >= _PLAIN:
        shown[_outside(np.abs(pixels.astype(np.int16) - ground).max(2) <= _NEAR)] = 255
    side = max(shown.shape[:2])
    down, across = side - shown.shape[0], side - shown.shape[1]
    margins = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    square = torch.from_numpy(np.pad(shown, margins, constant_values=255)).permute(2, 0, 1)
    if side == info.shape[1]:
        return square.contiguous()
    mode = "area" if side > info.shape[1] else "bilinear"
    return F.interpolate(square[None].float(), tuple(info.shape[1:]), mode=mode)[0].round().to(torch.uint8)


def _outside(like: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the pixels (H, W) that are like the background, those joined to the rim."""
    found = np.zeros_like(like)
    found[[0, -1]], found[:, [0, -1]] = like[[0, -1]], like[:, [0, -1]]
    count = -1
    while (now := int(found.sum())) != count:
        count = now
        for axis in (0, 1):
            for way in (1, -1):
                found = _spread(found, like, axis, way)
    return found


def _spread(found: NDArray[np.bool_], like: NDArray[np.bool_], axis: int, way: int) -> NDArray[np.bool_]:
    """What is reached from `found` by going straight along an axis over `like` alone."""
    a, b = (np.moveaxis(m, axis, 0)[::way] for m in (found, like))
    made = np.zeros_like(a)
    row = np.zeros(a.shape[1], np.bool_)
    for i in range(len(a)):
        row = (row | a[i]) & b[i]
        made[i] = row
    return np.moveaxis(made[::way], 0, axis)
