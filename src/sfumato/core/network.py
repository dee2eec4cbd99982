"""The contract of every network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from sfumato.core.cond import Cond
from sfumato.registry import Registered


class Network(nn.Module, Registered, ABC, family="network"):
    """A function of a noisy tensor, its noise level and a condition. It knows no process and no schedule.

    Built as `Network(shape, cond, *, settings)`: `shape` is `(C, *S)` of one sample, `cond` the `CondShape` it will be
    given. The number of spatial dimensions is `len(shape) - 1`; 1, 2 and 3 must work, odd sizes included.
    """

    regional: ClassVar[bool] = False  # whether `blocks`, its repeated parts, are compiled where steps are recorded

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated parts in the order in which they run: units for compiling, recomputing and sharding."""
        return ()

    @abstractmethod
    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x: (B, C, *S); noise: (B,) in [0, 1], 0 = clean, 1 = pure noise (`Coeffs.c_noise`). Returns (B, C, *S)."""
