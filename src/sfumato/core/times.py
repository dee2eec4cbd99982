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
        """u: (B,) float64 in (0, 1). Returns t (B,) float64 in (0, 1], never falling with u."""


@final
@dataclass(frozen=True)
class UniformTimes(Times, name="uniform"):
    """t ~ U(low, 1) (Ho et al. 2020, algorithm 1).

    low: above 0 for weights that are infinite at t = 0, 1e-5 in Song et al. 2021, appendix C.
    """

    low: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < 1:
            raise UserError(f"uniform times need 0 <= low < 1, not {self.low}")

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        return self.low + (1 - self.low) * u if self.low else u


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


@final
@dataclass(frozen=True)
class GeometricTimes(Times, name="geometric"):
    """`levels` noise levels sigma / alpha in geometric progression, each as often as the others.

        sigma_i = sigma_min (sigma_max / sigma_min)^(i / (levels - 1)),   i = 0 ... levels - 1

    Song & Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019, section 3.2; the defaults
    are those for CIFAR-10 of Song & Ermon, "Improved Techniques", 2020, in units of data in [0, 1]: for white data
    `levels.largest_distance` and `levels.geometric_levels` have its rules. One level is denoising at a fixed noise.
    Raises UserError for a process that ends below `sigma_max`.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    levels: int = 232

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min <= self.sigma_max or self.levels < 1:
            raise UserError(f"geometric times need 0 < sigma_min <= sigma_max and levels >= 1, not {self}")

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        end = -0.5 * float(process.logsnr(torch.ones((), dtype=torch.float64)))
        if math.log(self.sigma_max) > end + 1e-9:
            raise UserError(
                f"geometric times reach sigma_max={self.sigma_max:g} and the process ends at sigma / alpha = "
                f"{math.exp(end):g}; set objective.times.sigma_max to that or less"
            )
        i = (u * self.levels).floor().clamp(max=self.levels - 1)
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        log_sigma = low + (high - low) * i / max(self.levels - 1, 1)
        return process.time(-2 * log_sigma).clamp(max=1)
