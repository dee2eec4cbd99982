"""Colours as a judge looks at them: how much of each a picture has."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

_LEAST = 1e-6
_CHANNELS = 3  # of a histogram, which has bins ** channels numbers


def histogram(media: Tensor, bins: int, weight: Tensor | None = None) -> Tensor:
    """The square root of the share of positions in each bin of colours (B, bins ** min(C, 3)), of the first three channels.

    media: (B, C, ...) of 0 ... 255. weight: (B, ...), what each position counts; without it all count alike. A colour
    between the centres of bins counts in parts for all around it, so that a small change changes little. The squares of a
    row add up to 1 (to 0 where nothing counts): the product of two rows is the Bhattacharyya coefficient of their colours.
    """
    places = media[:, :_CHANNELS].flatten(2).float() * ((bins - 1) / 255)
    counts = torch.ones_like(places[:, 0]) if weight is None else weight.flatten(1).float()
    below = places.floor().clamp(0, bins - 2)
    above = places - below
    shares = places.new_zeros(len(media), bins ** places.shape[1])
    for corner in product((0, 1), repeat=places.shape[1]):
        part, at = counts, torch.zeros_like(counts)
        for channel, up in enumerate(corner):
            part = part * (above[:, channel] if up else 1 - above[:, channel])
            at = at * bins + below[:, channel] + up
        shares.scatter_add_(1, at.long(), part)
    return (shares / counts.sum(1, keepdim=True).clamp(min=_LEAST)).sqrt()
