"""Sampling grids: the times a solver visits, from noise to data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core.process import Process
from sfumato.errors import UserError
from sfumato.registry import Registered


class Grid(Registered, ABC, family="grid"):
    """A rule for n steps."""

    @abstractmethod
    def interior(self, process: Process, n: int) -> Tensor:
        """The first n times, falling from 1 and all above 0. (n,) float64."""

    @final
    def __call__(self, process: Process, n: int) -> Tensor:
        """n steps from t = 1 to t = 0: (n + 1,) float64 on the CPU."""
        if n < 1:
            raise UserError(f"sampling needs at least 1 step, not {n}; set steps= to 1 or more")
        times = torch.cat([self.interior(process, n), torch.zeros(1, dtype=torch.float64)])
        times[0] = 1.0  # exactly, whatever rounding the inverse of log-SNR had
        return times


def _ramp(n: int) -> Tensor:
    """0 ... 1 in n points; 0 alone for n = 1."""
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


@final
@dataclass(frozen=True)
class UniformGrid(Grid, name="uniform"):
    """Equal steps in t: t_i = 1 - i / n ("trailing" steps of Lin et al. 2023, table 2)."""

    def interior(self, process: Process, n: int) -> Tensor:
        return 1 - torch.arange(n, dtype=torch.float64) / n


@final
@dataclass(frozen=True)
class QuadraticGrid(Grid, name="quadratic"):
    """t_i = (1 - i / n)^2: small steps near the data (Song et al., "DDIM", 2021, appendix D.2)."""

    def interior(self, process: Process, n: int) -> Tensor:
        return (1 - torch.arange(n, dtype=torch.float64) / n).square()


def _ends(process: Process, low: float, high: float) -> tuple[float, float]:
    """sigma / alpha at the last and first time of a grid: `low`, and the noisiest the process has, at most `high`."""
    start = -0.5 * float(process.logsnr(torch.ones((), dtype=torch.float64)))
    return low, min(high, math.exp(min(start, 700.0)))


@final
@dataclass(frozen=True)
class KarrasGrid(Grid, name="karras"):
    """Equal steps in (sigma / alpha)^(1 / rho) from `sigma_max` to `sigma_min` (Karras et al. 2022, eq. 5).

    A process that starts at more noise than `sigma_max` (Flow and Cosine start at pure noise) begins at t = 1 all the same.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise UserError(f"karras grid needs 0 < sigma_min < sigma_max and rho > 0, not {self}")

    def interior(self, process: Process, n: int) -> Tensor:
        low, high = _ends(process, self.sigma_min, self.sigma_max)
        root = high ** (1 / self.rho) + _ramp(n) * (low ** (1 / self.rho) - high ** (1 / self.rho))
        return process.time(-2 * self.rho * root.log())


@final
@dataclass(frozen=True)
class LogSNRGrid(Grid, name="logsnr"):
    """Equal steps in log-SNR between the same ends (Lu et al., "DPM-Solver", 2022, section 3.4)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"logsnr grid needs 0 < sigma_min < sigma_max, not {self}")

    def interior(self, process: Process, n: int) -> Tensor:
        low, high = (math.log(v) for v in _ends(process, self.sigma_min, self.sigma_max))
        return process.time(-2 * (high + _ramp(n) * (low - high)))
