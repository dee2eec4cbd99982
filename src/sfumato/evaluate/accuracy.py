"""Shares with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.errors import UserError


@dataclass(frozen=True)
class Share:
    """`hits` of `n`, with Wilson's interval."""

    hits: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n or self.n == 0:
            raise UserError(f"{self.hits} of {self.n} is not a share; score at least one item")

    @property
    def value(self) -> float:
        """hits / n."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval."""
        return wilson(self.hits, self.n)


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a share: the p with |hits/n - p| <= z sqrt(p (1 - p) / n).

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927. It stays in [0, 1]
    and has a width at 0 and n hits. z = 1.96 is 95%.
    """
    p, zz = hits / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # At the ends the root is exact in real numbers only.
    return (0.0 if hits == 0 else max(0.0, centre - half), 1.0 if hits == n else min(1.0, centre + half))


def accuracy(predicted: Tensor, asked: Tensor) -> Share:
    """How many of the judge's labels (N,) are what was asked for (N,)."""
    if predicted.shape != asked.shape:
        raise UserError(f"{tuple(predicted.shape)} judged labels do not fit {tuple(asked.shape)} asked ones")
    return Share(int((predicted.cpu() == asked.cpu()).sum()), predicted.numel())
