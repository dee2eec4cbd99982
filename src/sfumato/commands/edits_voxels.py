"""`keep=z:0:0.5` of `sfumato sample MODEL init=part.vox`: which part of a voxel model stays."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.errors import UserError

_AXES = "xyz"


def kept_cells(text: str, sides: tuple[int, ...]) -> Tensor:
    """`z:0:0.5` or `x:0:0.5,z:0:0.25` as a mask (1, 1, X, Y, Z): the slabs along an axis, in shares of its side, that stay.

    Several are joined: a cell stays if it lies in any of them.
    """
    known = torch.zeros(1, 1, *sides, dtype=torch.bool)
    for part in text.split(","):
        axis, _, span = part.strip().partition(":")
        first, colon, last = span.partition(":")
        try:
            start, stop = float(first or 0), float(last or 1)
        except ValueError:
            colon, start, stop = "", 0.0, 0.0
        if axis not in tuple(_AXES) or not colon or not 0 <= start < stop <= 1:
            raise UserError(
                f"keep={text}: write what stays of a voxel model as AXIS:FROM:TO in shares of its side, such as z:0:0.5 "
                "for its lower half, several with commas"
            )
        number = _AXES.index(axis)
        side = sides[number]
        known.narrow(2 + number, round(start * side), max(1, round(stop * side) - round(start * side))).fill_(True)
    return known
