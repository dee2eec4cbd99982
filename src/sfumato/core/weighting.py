"""Loss weights as a function of the noise level.

A weighting returns the weight of |F - F*|^2, the error of the network's *own output*. That is how the choice of
parameterization and of weight stay independent, and how no weight explodes: a weight of 1 on the error of x0 would be
c_out^-2 times too strong for eps-prediction at high noise (1e4 for DDPM's schedule) and it would not learn.

    |x0_hat - x0|^2 = c_out^2 |F - F*|^2,     |eps_hat - eps|^2 = SNR |x0_hat - x0|^2
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core.parameterization import Coeffs
from sfumato.core.process import Process
from sfumato.errors import UserError
from sfumato.registry import Registered


class Weighting(Registered, ABC, family="weighting"):
    """A weight for every time."""

    @abstractmethod
    def __call__(self, process: Process, t: Tensor, c: Coeffs) -> Tensor:
        """t: (B,) in (0, 1). Returns the weight of the squared error of the network's output, (B,) float64."""


@final
@dataclass(frozen=True)
class Unit(Weighting, name="unit"):
    """1: plain regression of the output, DDPM's simple loss for eps (Ho et al. 2020, eq. 14), flow matching for velocity."""

    def __call__(self, process: Process, t: Tensor, c: Coeffs) -> Tensor:
        return torch.ones_like(t)


@final
@dataclass(frozen=True)
class VelocityError(Weighting, name="velocity"):
    """1 on the error of the velocity eps - x0, whatever the network gives: the loss of flow matching for other outputs.

        w = (c_out / max(u, least))^2,   u = sigma / (alpha + sigma), which is t of `flow`

    least: below this u the weight grows no more; 0.05 is what Li & He, "Back to Basics: Let Denoising Generative Models
    Denoise", 2025, take for a network that gives x0. With the parameterization `velocity` and least = 0 it is `unit`.
    """

    least: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.least < 1:
            raise UserError(f"the weighting velocity needs 0 <= least < 1, not {self.least}")

    def __call__(self, process: Process, t: Tensor, c: Coeffs) -> Tensor:
        return (c.c_out / c.c_noise.clamp(min=self.least)).square()


@final
@dataclass(frozen=True)
class SigmaSquared(Weighting, name="sigma-squared"):
    """sigma^2 on the error of the score, which is 1 on the error of eps, whatever the network gives.

    The weight of Song & Ermon 2019, section 4.2 (lambda = sigma^2), that makes all levels of noise equally important. With
    the parameterization `eps` it is `unit`.
    """

    def __call__(self, process: Process, t: Tensor, c: Coeffs) -> Tensor:
        alpha, sigma = process.scales(t)
        return (alpha * c.c_out / sigma).square()


@final
@dataclass(frozen=True)
class Likelihood(Weighting, name="likelihood"):
    """g^2 / 2 on the error of the score: the loss is the diffusion part of the negative ELBO, in nats a dimension.

        w = g^2 alpha^2 / (2 sigma^4) = SNR (-d lambda / dt) / 2   on the error of x0, for t ~ U(0, 1)

    Song et al., "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, eq. 8; the same as Kingma et al.,
    "Variational Diffusion Models", 2021, eq. 17. It depends on the schedule through its ends alone. It is infinite at
    t = 0 (times=uniform needs low > 0). Times uniform in log-SNR draw in proportion to it (importance sampling, section
    4 of Song): with `logsnr` times and `eps` it is the weight `unit`, times half the range.
    """

    def __call__(self, process: Process, t: Tensor, c: Coeffs) -> Tensor:
        alpha, sigma = process.scales(t)
        return 0.5 * process.logsnr_slope(t) * (alpha * c.c_out / sigma).square()


@final
@dataclass(frozen=True)
class MinSNR(Weighting, name="min-snr"):
    """min(SNR, gamma) on the error of x0 (Hang et al., "Efficient Diffusion Training via Min-SNR", 2023, eq. 8)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise UserError(f"min-snr needs gamma > 0, not {self.gamma}")

    def __call__(self, process: Process, t: Tensor, c: Coeffs) -> Tensor:
        return process.logsnr(t).clamp(max=math.log(self.gamma)).exp() * c.c_out.square()


@final
@dataclass(frozen=True)
class Sigmoid(Weighting, name="sigmoid"):
    """sigmoid(bias - lambda) on the error of eps, per unit of log-SNR, whatever the times drawn are uniform in.

        w = (-d lambda / dt) e^bias sigmoid(lambda - bias)   on the error of x0, for t ~ U(0, 1)

    Kingma & Gao, "Understanding Diffusion Objectives as the ELBO", 2023; Hoogeboom et al., "Simpler Diffusion", 2024, eq. 8.
    """

    bias: float = -3.0

    def __call__(self, process: Process, t: Tensor, c: Coeffs) -> Tensor:
        on_x0 = process.logsnr_slope(t) * math.exp(self.bias) * torch.sigmoid(process.logsnr(t) - self.bias)
        return on_x0 * c.c_out.square()


@final
@dataclass(frozen=True)
class EDM(Weighting, name="edm"):
    """(sigma^2 + d^2) / (sigma d)^2 on the error of x0, sigma relative to alpha (Karras et al. 2022, table 1).

    With the `karras` parameterization this is 1 on the output.
    """

    sigma_data: float = 1.0

    def __call__(self, process: Process, t: Tensor, c: Coeffs) -> Tensor:
        alpha, sigma = process.scales(t)
        d = self.sigma_data
        return (sigma * sigma + (alpha * d).square()) * (c.c_out / (sigma * d)).square()
