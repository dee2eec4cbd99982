"""Whether samples are copies of training items."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.errors import UserError
from sfumato.evaluate.accuracy import Share
from sfumato.evaluate.neighbours import Nearest, flat, nearest


@dataclass(frozen=True)
class Memorization:
    """near_copies: the share of samples nearer to training than `threshold`. held_out: the same share of held-out reals.

    nearest: each sample's nearest training item, (M, 1), to look at them side by side.
    """

    near_copies: Share
    held_out: Share
    threshold: float
    nearest: Nearest


def memorization(samples: Tensor, train: Tensor, held_out: Tensor, percentile: float = 5.0) -> Memorization:
    """The share of near-copies among samples (M, ...), given training items (N, ...) and held-out ones (H, ...).

        near-copy:  min_n |y - x_n| < the `percentile`-th percentile of  min_n |h - x_n|  over the held-out items h

    Held-out items come from where the training items come from and copy none of them, so their own share, about
    `percentile` per cent by construction, is what a model that does not memorize scores. Distances are Euclidean, in
    pixels or any features; items of any shape and type.
    """
    if not 0 < percentile < 100:
        raise UserError(f"percentile = {percentile}: must lie between 0 and 100, both excluded")
    bank = flat(train, "training items")
    of_held_out = nearest(flat(held_out, "held-out items"), bank).distance[:, 0]
    found = nearest(flat(samples, "samples"), bank)
    threshold = float(of_held_out.quantile(percentile / 100))
    return Memorization(
        near_copies=Share(int((found.distance[:, 0] < threshold).sum()), len(samples)),
        held_out=Share(int((of_held_out < threshold).sum()), len(held_out)),
        threshold=threshold,
        nearest=found,
    )
