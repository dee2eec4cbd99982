"""Processes: how data is noised.

    x_t = alpha(t) x0 + sigma(t) eps,   eps ~ N(0, I),   t in [0, 1]

t = 0 is data, exactly clean (alpha = 1, sigma = 0) for every process; t = 1 is noise. A process is a frozen value with
two functions of time; everything else follows from them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.registry import Registered


def lift(c: Tensor, x: Tensor) -> Tensor:
    """Make coefficients broadcast against a batch: (B,) or (B, L), any prefix of x's shape -> x's rank, dtype, device."""
    return c.to(device=x.device, dtype=x.dtype).reshape(c.shape + (1,) * (x.ndim - c.ndim))


class Normal(NamedTuple):
    """Mean and variance of a Gaussian with a diagonal covariance."""

    mean: Tensor
    variance: Tensor


class Process(Registered, ABC, family="process"):
    """A Gaussian noising process. Times are float64 tensors of any shape; results have the same shape."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data. alpha(0) = 1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Deviation of the noise. sigma(0) = 0, rising."""

    @abstractmethod
    def time(self, logsnr: Tensor) -> Tensor:
        """The time of a log signal-to-noise ratio: the inverse of `logsnr`."""

    @final
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t))."""
        return self.alpha(t), self.sigma(t)

    @final
    def logsnr(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha^2 / sigma^2), falling from +inf at t = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @final
    def level(self, t: Tensor) -> Tensor:
        """u(t) = sigma / (alpha + sigma) in [0, 1]: the noise level that networks are told. Equals t for `Flow`."""
        alpha, sigma = self.scales(t)
        return sigma / (alpha + sigma)

    @final
    def logsnr_slope(self, t: Tensor) -> Tensor:
        """-d lambda / dt, positive; by automatic differentiation in float64."""
        with torch.enable_grad():
            t = t.detach().clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.logsnr(t).sum(), t)
        return -slope

    @final
    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """A draw of q(x_t | x0) = N(alpha_t x0, sigma_t^2 I) from the given noise. (B, *S)."""
        alpha, sigma = self.scales(t)
        return lift(alpha, x0) * x0 + lift(sigma, x0) * eps

    @final
    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Normal:
        """q(x_s | x_t, x0) for s < t, of the Markov chain with these marginals.

            mean = (a sigma_s^2 / sigma_t^2) x_t + alpha_s (1 - a^2 sigma_s^2 / sigma_t^2) x0,   a = alpha_t / alpha_s
            variance = sigma_s^2 (1 - a^2 sigma_s^2 / sigma_t^2)

        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, eq. 7; this form: Kingma et al., "Variational
        Diffusion Models", 2021, appendix A. Finite where alpha_t = 0 and where sigma_s = 0.
        Returns mean (B, *S) and variance broadcastable against it.
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.scales(t), self.scales(s)
        a = alpha_t / alpha_s
        kept = (sigma_s / sigma_t).square()  # the share of the noise at t that was there at s, over a^2
        mean = lift(a * kept, x_t) * x_t + lift(alpha_s * (1 - a.square() * kept), x_t) * x0
        return Normal(mean, lift(sigma_s.square() * (1 - a.square() * kept), x_t))


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


@final
@dataclass(frozen=True)
class Cosine(Process, name="cosine"):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving and reaching pure noise.

    Nichol & Dhariwal, "Improved DDPM", 2021, eq. 17 in its continuous form without offset (Salimans & Ho 2022).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.where(t >= 1, torch.zeros_like(t), torch.cos(math.pi / 2 * t))  # cos(pi / 2) is 6e-17, not 0

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def time(self, logsnr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-logsnr / 2)) * 2 / math.pi


@final
@dataclass(frozen=True)
class VP(Process, name="vp"):
    """The variance-preserving SDE with beta(t) linear from `beta_min` to `beta_max`.

        alpha = exp(-B/2),  sigma^2 = 1 - exp(-B),  B(t) = beta_min t + (beta_max - beta_min) t^2 / 2

    Song et al., "Score-Based Generative Modeling through SDEs", 2021, eq. 32-33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(f"vp needs 0 < beta_min <= beta_max, not {self.beta_min} and {self.beta_max}")

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def time(self, logsnr: Tensor) -> Tensor:
        integral = torch.nn.functional.softplus(-logsnr)
        low, more = self.beta_min, self.beta_max - self.beta_min
        # The root of more t^2 / 2 + low t = B, written so that it is exact for more = 0 and loses nothing near t = 0.
        return 2 * integral / (low + torch.sqrt(low * low + 2 * more * integral))


@final
@dataclass(frozen=True)
class VE(Process, name="ve"):
    """Noise is added and data left as it is: alpha = 1, sigma = sigma_max t^rho.

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


Betas = Literal["linear", "scaled_linear", "cosine", "sigmoid"]


def beta_table(schedule: Betas, steps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """The noise variances beta_1 ... beta_T of a discrete chain. (T,) float64.

    linear: Ho et al. 2020, section 4. scaled_linear: linear in sqrt(beta), Rombach et al. 2022, appendix. cosine: Nichol &
    Dhariwal 2021, eq. 17, capped at 0.999. sigmoid: Jabri et al. 2022 ("Scalable Adaptive Computation", start -3, end 3).
    The ends are those of a chain of 1,000 steps; a shorter chain is scaled to reach the same noise.
    """
    scale = 1000 / steps
    if schedule == "linear":
        betas = torch.linspace(beta_start * scale, beta_end * scale, steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        low, high = math.sqrt(beta_start * scale), math.sqrt(beta_end * scale)
        betas = torch.linspace(low, high, steps, dtype=torch.float64).square()
    else:
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        if schedule == "cosine":
            kept = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        else:
            kept = torch.sigmoid(3 - 6 * t) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
        betas = 1 - kept[1:] / kept[:-1]
    return betas.clamp(max=0.999)


@final
@dataclass(frozen=True)
class DiscreteVP(Process, name="discrete-vp"):
    """The chain of DDPM: alpha at t = k / T is sqrt((1 - beta_1) ... (1 - beta_k)), linear in between; sigma^2 = 1 - alpha^2.

    Ho et al. 2020, eq. 4. `zero_terminal_snr` shifts and scales alpha so that alpha(1) = 0: Lin et al., "Common Diffusion
    Noise Schedules and Sample Steps are Flawed", 2023, algorithm 1. t = 0 is the clean data before the first step.
    """

    schedule: Betas = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UserError(f"discrete-vp needs steps >= 2, not {self.steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"discrete-vp needs 0 < beta_start <= beta_end < 1, not {self.beta_start} and {self.beta_end}"
            )

    @cached_property
    def _missing(self) -> Tensor:
        """1 - alpha at t = 0, 1/T, ..., 1: (T + 1,). The difference from 1 is kept, or small times lose their digits."""
        betas = beta_table(self.schedule, self.steps, beta_start=self.beta_start, beta_end=self.beta_end)
        log_alpha = torch.cat([betas.new_zeros(1), 0.5 * torch.log1p(-betas).cumsum(0)])
        missing = -torch.expm1(log_alpha)
        if self.zero_terminal_snr:
            # alpha' = (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T) on the chain; the clean start stays clean.
            first, last = missing[1], missing[-1]
            chain = 1 - (last - missing[1:]) * (1 - first) / (last - first)
            missing = torch.cat([missing[:1], chain])
            missing[-1] = 1.0
        return missing

    def _interpolate(self, t: Tensor) -> Tensor:
        table = self._missing.to(t.device)
        position = (t.clamp(0, 1) * self.steps).to(torch.float64)
        k = position.floor().clamp(max=self.steps - 1).long()
        return torch.lerp(table[k], table[k + 1], position - k).to(t.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self._interpolate(t)

    def sigma(self, t: Tensor) -> Tensor:
        missing = self._interpolate(t)
        return torch.sqrt(missing * (2 - missing))

    def time(self, logsnr: Tensor) -> Tensor:
        # 1 - sqrt(sigmoid(lambda)), without cancellation for large lambda
        kept = torch.sigmoid(logsnr.double())
        missing = torch.sigmoid(-logsnr.double()) / (1 + torch.sqrt(kept))
        table = self._missing.to(logsnr.device)
        k = (torch.searchsorted(table, missing, right=True) - 1).clamp(0, self.steps - 1)
        inside = (missing - table[k]) / (table[k + 1] - table[k])
        return ((k + inside) / self.steps).clamp(0, 1).to(logsnr.dtype)
