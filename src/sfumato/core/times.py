"""Training times: which noise levels are learned how often. Each is the inverse of a distribution function.

`Times.__call__(process, u)` maps uniform u in (0, 1) to t in (0, 1), so that the randomness (independent, stratified,
low-discrepancy) is chosen elsewhere and any of them is exact.
"""

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


class Times(Registered, ABC, family="times"):
    """A distribution of training times."""

    @abstractmethod
    def __call__(self, process: Process, u: Tensor) -> Tensor:
        """u: (B,) float64 in (0, 1). Returns t (B,) float64 in (0, 1), rising with u."""


@final
@dataclass(frozen=True)
class UniformTimes(Times, name="uniform"):
    """t ~ U(0, 1) (Ho et al. 2020, algorithm 1)."""

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        return u


def _normal_quantile(u: Tensor) -> Tensor:
    quantile: Tensor = torch.special.ndtri(u)
    return quantile


@final
@dataclass(frozen=True)
class LogitNormalTimes(Times, name="logit-normal"):
    """logit(t) ~ N(mean, std^2) for flow matching (Esser et al., "Scaling Rectified Flow Transformers", 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise UserError(f"logit-normal times need std > 0, not {self.std}")

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u))


@final
@dataclass(frozen=True)
class LogNormalTimes(Times, name="log-normal"):
    """ln(sigma / alpha) ~ N(mean, std^2), cut to the range of the process (EDM, Karras et al. 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise UserError(f"log-normal times need std > 0, not {self.std}")

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        # The process may end at a finite noise (sigma_max): draw from the part of the distribution below it.
        end = -process.logsnr(torch.ones((), dtype=torch.float64)) / 2
        top = 0.5 * (1 + torch.erf((end - self.mean) / (self.std * math.sqrt(2))))
        return process.time(-2 * (self.mean + self.std * _normal_quantile(u * top)))


@final
@dataclass(frozen=True)
class LogSNRTimes(Times, name="logsnr"):
    """Uniform in log-SNR between `low` and `high`: every level of noise equally often (Kingma et al. 2021)."""

    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise UserError(f"logsnr times need low < high, not {self.low} and {self.high}")

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        low = torch.clamp(process.logsnr(torch.ones((), dtype=torch.float64)), min=self.low)
        return process.time(self.high + u * (low - self.high))
