"""Processes in closed form, and the shift of one.

`Cosine` is what SiT and flow-matching code call GVP. `VE` with its `sigma_max` is EDM's process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from sfumato.core.process import Process, unit_scales
from sfumato.errors import UserError


def _straight_scales(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) with alpha + sigma = 1 at a log-SNR; values and derivatives keep their digits at both ends."""
    alpha, sigma = torch.sigmoid(logsnr / 2), torch.sigmoid(-logsnr / 2)
    return torch.where(logsnr > 0, 1 - sigma, alpha), torch.where(logsnr > 0, sigma, 1 - alpha)


@final
@dataclass(frozen=True)
class Flow(Process, name="flow"):
    """Straight lines from data to noise: alpha = 1 - t, sigma = t.

    Liu et al., "Flow Straight and Fast", 2022; Lipman et al., "Flow Matching for Generative Modeling", 2022.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2)

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return _straight_scales(logsnr)


@final
@dataclass(frozen=True)
class Polynomial(Process, name="polynomial"):
    """alpha = (1 - t)^n, sigma = 1 - alpha: the straight lines of `Flow` walked at another pace. n = 1 is `Flow`.

    n > 1 spends more of time near the noise, n < 1 near the data. The same SNRs as Flow in the same (alpha, sigma), so
    it changes what uniform times and grids mean and nothing else.
    Lipman et al., "Flow Matching Guide and Code", 2024, section 4.6 and its PolynomialConvexScheduler.
    """

    n: float = 2.0

    def __post_init__(self) -> None:
        if not self.n > 0:
            raise UserError(f"polynomial needs n > 0, not {self.n}")

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.n

    def sigma(self, t: Tensor) -> Tensor:
        near = -torch.expm1(self.n * torch.log1p(-t.clamp(max=0.5)))  # 1 - alpha without cancellation
        return torch.where(t > 0.5, 1 - self.alpha(t), near)

    def time(self, logsnr: Tensor) -> Tensor:
        return -torch.expm1(logsigmoid(logsnr / 2) / self.n)

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return _straight_scales(logsnr)


@final
@dataclass(frozen=True)
class Cosine(Process, name="cosine"):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving and reaching pure noise.

    Nichol & Dhariwal, "Improved DDPM", 2021, eq. 17 in its continuous form without offset (Salimans & Ho 2022). The "GVP"
    interpolant of Albergo & Vanden-Eijnden 2023 and SiT (Ma et al. 2024, section 2.3).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # as a sine it is exactly 0 at t = 1, and 1 at t = 0

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def time(self, logsnr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-logsnr / 2)) * 2 / math.pi

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return unit_scales(logsnr)


def _integral(low: float, high: float, t: Tensor) -> Tensor:
    """B(t) = int_0^t beta, beta linear from `low` to `high`."""
    return low * t + 0.5 * (high - low) * t * t


def _time_of(low: float, high: float, integral: Tensor) -> Tensor:
    """The root of more t^2 / 2 + low t = B, written so that it is exact for more = 0 and loses nothing near t = 0."""
    return 2 * integral / (low + torch.sqrt(low * low + 2 * (high - low) * integral))


def _check_betas(kind: str, low: float, high: float) -> None:
    if not 0 < low <= high:
        raise UserError(f"{kind} needs 0 < beta_min <= beta_max, not {low} and {high}")


@final
@dataclass(frozen=True)
class VP(Process, name="vp"):
    """The variance-preserving SDE with beta(t) linear from `beta_min` to `beta_max`: f = -beta / 2, g^2 = beta.

        alpha = exp(-B/2),  sigma^2 = 1 - exp(-B),  B(t) = beta_min t + (beta_max - beta_min) t^2 / 2

    Song et al., "Score-Based Generative Modeling through SDEs", 2021, eq. 32-33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas("vp", self.beta_min, self.beta_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * _integral(self.beta_min, self.beta_max, t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-_integral(self.beta_min, self.beta_max, t)))

    def time(self, logsnr: Tensor) -> Tensor:
        return _time_of(self.beta_min, self.beta_max, -logsigmoid(logsnr))

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return unit_scales(logsnr)


@final
@dataclass(frozen=True)
class SubVP(Process, name="sub-vp"):
    """The sub-VP SDE: the mean of `VP` with less noise. f = -beta / 2, g^2 = beta (1 - exp(-2B)).

        alpha = exp(-B/2),  sigma = 1 - exp(-B),  B as in `VP`

    alpha^2 + sigma = 1. Better likelihoods than VP in the paper. Song et al. 2021, eq. 29 and appendix B.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas("sub-vp", self.beta_min, self.beta_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * _integral(self.beta_min, self.beta_max, t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-_integral(self.beta_min, self.beta_max, t))

    def time(self, logsnr: Tensor) -> Tensor:
        # sigma / alpha = 2 sinh(B / 2)
        return _time_of(self.beta_min, self.beta_max, 2 * torch.asinh(torch.exp(-logsnr / 2) / 2))


@final
@dataclass(frozen=True)
class VE(Process, name="ve"):
    """Noise is added and data left as it is: alpha = 1, sigma = sigma_max t^rho, f = 0, g^2 = 2 sigma sigma'.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (EDM), 2022: equal steps in t are
    equal steps in sigma^(1/rho), their eq. 5; their sigma_min is where a grid's last step starts, not a floor of sigma.
    """

    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.sigma_max <= 0 or self.rho <= 0:
            raise UserError(f"ve needs sigma_max > 0 and rho > 0, not {self.sigma_max} and {self.rho}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t**self.rho

    def time(self, logsnr: Tensor) -> Tensor:
        return torch.exp((-logsnr / 2 - math.log(self.sigma_max)) / self.rho)

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(logsnr), torch.exp(-logsnr / 2)


@final
@dataclass(frozen=True)
class Shifted(Process, name="shifted"):
    """A process with more noise at every time, for large pictures: s > 1 shifts its log-SNR down.

        lambda(t) = lambda_process(t) - 2 ln s,   (alpha, sigma) on the same curve as the process's

    The shift of resolution of "Simple diffusion" (Hoogeboom et al. 2023, section 2.1: s = side / 64). For `Flow` it is the
    time shift of Stable Diffusion 3, alpha(t) = alpha_flow(t') with t' = s t / (1 + (s - 1) t) (Esser et al., "Scaling
    Rectified Flow Transformers", 2024, eq. 23: s = sqrt(m / n) for m against n pixels, 3 for 1024^2).

    It is part of the process, so it is stored with the model: training and sampling use the same one and neither can apply
    it twice. t = 0 stays exactly clean. An end of finite noise moves too: VE(sigma_max) shifted by s is VE(s sigma_max);
    VP and the chains end at lambda(1) - 2 ln s, purer noise for s > 1 and more signal left for s < 1.
    """

    process: Process = field(default_factory=Flow)
    s: float = 3.0

    def __post_init__(self) -> None:
        if not (self.s > 0 and math.isfinite(self.s)):
            raise UserError(f"shifted needs s > 0, not {self.s}; 1 is no shift")
        if isinstance(self.process, nn.Module):
            raise UserError(f"the process '{self.process.kind}' is learned and needs no shift; leave it out")
        if isinstance(self.process, Shifted):
            product = self.s * self.process.s
            raise UserError(
                f"the process is shifted twice, by {self.process.s:g} and by {self.s:g}; use one shift of s={product:g}"
            )

    def _logsnr(self, t: Tensor) -> Tensor:
        return self.process.logsnr(t) - 2 * math.log(self.s)

    def alpha(self, t: Tensor) -> Tensor:
        return self.process.scales_at(self._logsnr(t))[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.process.scales_at(self._logsnr(t))[1]

    def time(self, logsnr: Tensor) -> Tensor:
        return self.process.time(logsnr + 2 * math.log(self.s))

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.scales_at(logsnr)
