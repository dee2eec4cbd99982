"""A picture of what is wanted, to tokens and a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.conditioners.field import FieldConditioner
from sfumato.core.media import Column, DataInfo
from sfumato.errors import UserError

_WHITE = 255
_SPREAD = 64.0  # grey levels: about the deviation of what is not background
_NEAR = 8  # grey levels: a pixel this near to white is background
_FINER = 4  # files that will be cut are read with so many times the pixels
_MARGIN = 1 / 16  # around what is cut out, of its longer side


@final
class Picture(FieldConditioner, name="picture"):
    """One picture of what is wanted, RGB on white. Reads `picture`: uint8 (B, 3, H, W) of any size.

    Pictures become squares (white is added at the shorter sides) of `size` pixels, by averaging. crop: cut each to what it
    shows and a margin of a sixteenth: then it does not matter, and is not learned, how far away a picture was taken.
    width: of tokens and vector; depth: transformer blocks; heads: attention heads; patch: pixels a side of one token.
    """

    columns = ("picture",)

    def __init__(
        self,
        info: DataInfo,
        *,
        size: int = 32,
        crop: bool = False,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        patch: int = 4,
    ) -> None:
        super().__init__((3, size, size), width, depth, heads, patch)
        if not patch <= size <= 1024:
            raise UserError(f"picture: size = {size}: must be {patch} (one patch) to 1,024 pixels")
        self.size, self.crop = size, crop

    @property
    def media(self) -> Mapping[str, DataInfo]:
        side = self.size * (_FINER if self.crop else 1)
        return {"picture": DataInfo((3, side, side))}

    def prepare(self, conditions: Mapping[str, Column]) -> dict[str, Tensor]:
        pictures = self.column(conditions, torch.uint8)
        if 0 in pictures.shape[2:]:
            raise UserError(f"'picture' of shape {tuple(pictures.shape)} has no pixels")
        if self.crop:
            return {"picture": torch.cat([_reduced(_cut(one[None]), self.size) for one in pictures])}
        return {"picture": _reduced(pictures, self.size)}

    def field(self, media: Tensor) -> Tensor:
        return (_WHITE - media.to(self.pool.weight.dtype)) / _SPREAD


def _reduced(pictures: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) uint8 as squares (B, 3, size, size): unchanged where they are, means of pixels where they are larger."""
    high, wide = pictures.shape[2:]
    side = max(high, wide)
    if high != wide:
        down, across = side - high, side - wide
        pad = (across // 2, across - across // 2, down // 2, down - down // 2)
        pictures = F.pad(pictures, pad, value=_WHITE)
    if side == size:
        return pictures
    made = F.interpolate(pictures.float(), (size, size), mode="area" if side > size else "bilinear")
    return made.round().to(torch.uint8)


def _cut(picture: Tensor) -> Tensor:
    """(1, 3, H, W) cut to what is not white and a margin; a white picture as it is."""
    shown = (picture[0] < _WHITE - _NEAR).any(0)
    rows, columns = (shown.any(axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return picture
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    margin = max(1, round(_MARGIN * max(bottom - top, right - left)))
    return F.pad(picture[:, :, top:bottom, left:right], (margin,) * 4, value=_WHITE)
