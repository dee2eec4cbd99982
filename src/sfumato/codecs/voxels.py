"""Coloured voxel grids: occupancy, or the distance to the surface, with colour that means nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, final

import torch
from torch import Tensor

from sfumato.codecs.base import Codec, Whitening
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.solid.grid import signed_distance, spread, without_specks

_MIDDLE = 0.5  # occupancy from which on a cell is taken for occupied
REACH = 3.0


@final
class Voxels(Codec, name="voxels"):
    """uint8 (B, 4, X, Y, Z), red, green, blue and 255 where occupied, to x0 (B, 4 fold^3, X/fold, Y/fold, Z/fold).

        h = (o (c / 127.5 - 1 - m), o),   o in {0, 1},   m the mean colour of occupied cells by channel

    so the colour of empty cells is 0 and carries no signal; h is whitened per channel. Decoding takes cells of o >= 1/2 for
    occupied and rounds their colours; all others are 0.

    outside: `none`, as above, or `spread`: empty cells have the colour of what is near (`solid.grid.spread`) in place of 0,
    so that where a surface is in doubt its colour is not, and the mean of both is no grey.

    field: `occupancy`, or `distance`: the last channel is the exact distance to the surface in cells (`solid.grid`), cut off
    at `reach`, whose sign says what is occupied. fold: cells a side that are put side by side as channels, a lossless
    exchange of positions for channels: a U-Net of x0 folded by 2 costs an eighth. specks: connected parts smaller than this
    share of a model's largest one are left out when decoding; 0 keeps all.
    """

    colour: Tensor

    def __init__(
        self,
        info: DataInfo,
        *,
        field: Literal["occupancy", "distance"] = "occupancy",
        reach: float = REACH,
        outside: Literal["none", "spread"] = "none",
        fold: int = 1,
        specks: float = 0.0,
    ) -> None:
        super().__init__()
        if info.kind != "voxels":
            raise UserError(
                f"codec=voxels is for voxel models, and this data is '{info.kind}'; use codec=arrays or pixels"
            )
        if reach < 1:
            raise UserError(f"voxels: reach = {reach} must be at least 1 cell")
        if fold < 1 or any(side % fold for side in info.shape[1:]):
            size = " x ".join(map(str, info.shape[1:]))
            raise UserError(f"voxels: fold = {fold} must divide every side of {size}; use 1, 2 or 4")
        if not 0 <= specks <= 1:
            raise UserError(f"voxels: specks = {specks} is a share of the largest part, 0 to 1")
        self._sides = tuple(info.shape[1:])
        self.field, self.reach, self.outside, self.fold, self.specks = field, reach, outside, fold, specks
        self.whitening = Whitening(4 * fold**3)
        self.register_buffer("colour", torch.zeros(3))

    @property
    def shape(self) -> tuple[int, ...]:
        return (4 * self.fold**3, *(side // self.fold for side in self._sides))

    def encode(self, media: Tensor) -> Tensor:
        occupied = media[:, 3] > 127
        colour = media[:, :3].float() / 127.5 - 1 - self.colour.view(3, 1, 1, 1)
        solid = occupied.float() if self.field == "occupancy" else signed_distance(occupied, self.reach)
        kept = spread(colour, occupied) if self.outside == "spread" else colour * occupied[:, None]
        return torch.cat([kept, solid[:, None]], 1)

    def whiten(self, h: Tensor) -> Tensor:
        x0: Tensor = self.whitening(fold(h, self.fold))
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        h = unfold(self.whitening.inverse(x0), self.fold)
        occupied = h[:, 3] >= (_MIDDLE if self.field == "occupancy" else 0.0)
        if self.specks:
            occupied = without_specks(occupied, self.specks)
        colour = ((h[:, :3] + self.colour.view(3, 1, 1, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        opaque = torch.where(occupied, 255, 0).to(torch.uint8)[:, None]
        return torch.cat([colour * occupied[:, None], opaque], 1)

    @torch.no_grad()
    def measure(self, media: Iterable[Tensor]) -> None:
        batches = list(media)
        total, count = torch.zeros(3, dtype=torch.float64), 0
        for batch in batches:
            occupied = batch[:, 3] > 127
            total += (batch[:, :3].double() / 127.5 - 1).mul(occupied[:, None]).sum((0, 2, 3, 4)).cpu()
            count += int(occupied.sum())
        self.colour.copy_(total / max(count, 1))
        self.whitening.fit(self._folded(batches))

    def _folded(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            for part in torch.split(batch, 64):
                yield fold(self.encode(part.to(self.colour.device)), self.fold)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The range of x0 by channel. Colours may be -1 to 1, and 0 in empty cells."""
        ends = torch.tensor([-1.0, 1.0], device=self.colour.device) - self.colour[:, None]
        solid = (0.0, 1.0) if self.field == "occupancy" else (-self.reach, self.reach)
        h = torch.cat([ends, ends.new_tensor([solid])])  # (4, 2)
        whole = h.view(1, 4, 2, 1, 1).expand(1, 4, 2, self.fold**2, self.fold).reshape(1, 4, 2, -1)
        each = whole.movedim(3, 2).reshape(1, 4 * self.fold**3, 2)
        x0 = self.whitening(each)[0]
        return x0[:, 0], x0[:, 1]


def fold(x: Tensor, side: int) -> Tensor:
    """(B, C, X, Y, Z) to (B, C side^3, X/side, Y/side, Z/side): blocks of cells become channels."""
    if side == 1:
        return x
    b, c, *s = x.shape
    x = x.reshape(b, c, s[0] // side, side, s[1] // side, side, s[2] // side, side)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * side**3, *(n // side for n in s))


def unfold(x: Tensor, side: int) -> Tensor:
    """The inverse of `fold`."""
    if side == 1:
        return x
    b, c, *s = x.shape
    x = x.reshape(b, c // side**3, side, side, side, *s).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // side**3, *(n * side for n in s))
