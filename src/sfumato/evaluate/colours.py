"""Colours as a judge looks at them: how much of each a picture has."""

from __future__ import annotations

from itertools import product
from typing import final

import torch
from torch import Tensor, nn

from sfumato.errors import UserError

_REACH = 5.0  # by which weights are larger than the optimizer sees them: they learn as quickly as the rest of a judge
_CHANNELS = 3  # of a histogram, which has bins ** channels numbers


def histogram(media: Tensor, bins: int, counts: Tensor | None = None) -> Tensor:
    """The square root of the share of positions in each bin of colours (B, bins ** min(C, 3)), of the first three channels.

    media: (B, C, ...) of 0 ... 255. counts: (B, ...) bool, the positions that count; None for all. A colour between the
    centres of bins counts in parts for all around it, so that a small change changes little. The squares of a row add up to
    1 (to 0 where nothing counts): the product of two rows is the Bhattacharyya coefficient of their colours. Raises
    UserError for fewer than two bins.
    """
    if bins < 2:
        raise UserError(f"a histogram of {bins} bins tells no colours apart; give at least 2")
    places = media[:, :_CHANNELS].flatten(2).float() * ((bins - 1) / 255)
    whole = torch.ones_like(places[:, 0]) if counts is None else counts.flatten(1).float()
    below = places.floor().clamp(0, bins - 2)
    above = places - below
    shares = places.new_zeros(len(media), bins ** places.shape[1])
    for corner in product((0, 1), repeat=places.shape[1]):
        part, at = whole, torch.zeros_like(whole)
        for channel, up in enumerate(corner):
            part = part * (above[:, channel] if up else 1 - above[:, channel])
            at = at * bins + below[:, channel] + up
        shares.scatter_add_(1, at.long(), part)
    return (shares / whole.sum(1, keepdim=True).clamp(min=1)).sqrt()


@final
class Palette(nn.Linear):
    """Logits of a histogram of colours, 5 P histogram(x): media (B, C, ...) of 0 ... 255 to (B, classes). P begins at zero.

    channels: of media. bins: see `histogram`, as for counts.
    """

    def __init__(self, channels: int, bins: int, classes: int) -> None:
        super().__init__(bins ** min(channels, _CHANNELS), classes, bias=False)
        self.bins = bins
        nn.init.zeros_(self.weight)

    def forward(self, media: Tensor, counts: Tensor | None = None) -> Tensor:
        return _REACH * super().forward(histogram(media, self.bins, counts))
