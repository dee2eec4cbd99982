"""The way that a judge's learning rate goes."""

from __future__ import annotations

import math


def rising_cosine(step: int, steps: int, rising: float) -> float:
    """Share of the highest rate at step 0 ... steps - 1.

    Up in a straight line over the share `rising` of the steps, then down to 0 along half a cosine.
    """
    first = max(1, int(rising * steps))
    if step < first:
        return (step + 1) / first
    return 0.5 + 0.5 * math.cos(math.pi * (step - first) / max(1, steps - first))
