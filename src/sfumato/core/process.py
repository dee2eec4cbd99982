"""Processes: how data is noised.

    x_t = alpha(t) x0 + sigma(t) eps,   eps ~ N(0, I),   t in [0, 1]

t = 0 is data, exactly clean (alpha = 1, sigma = 0) for every process; t = 1 is noise. A process is a frozen value with
two functions of time; everything else follows from them. The processes are in `interpolants`, `chains` and `learned`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.registry import Registered

# Where limits at the ends of time are read: any closer to 0, and sigma_max t^7 is no longer a float64.
_FIRST, _LAST = 1e-30, 1 - 2**-53
_HALVINGS = 64  # after 53 of them the two ends of [0, 1] are neighbours in float64, save near 0


def lift(c: Tensor, x: Tensor) -> Tensor:
    """Make coefficients broadcast against a batch: (B,) or (B, L), any prefix of x's shape -> x's rank, dtype, device."""
    return on_device(c.to(x.dtype), x.device).reshape(c.shape + (1,) * (x.ndim - c.ndim))


def on_device(c: Tensor, device: torch.device) -> Tensor:
    """Move a small tensor without making the host wait: to a GPU it goes from pinned memory."""
    if device.type == "cuda" and c.device.type == "cpu":
        return c.pin_memory().to(device, non_blocking=True)
    return c.to(device)


class Normal(NamedTuple):
    """Mean and variance of a Gaussian with a diagonal covariance."""

    mean: Tensor
    variance: Tensor


class Process(Registered, ABC, family="process"):
    """A Gaussian noising process. Times are float64 tensors of any shape; results have the same shape.

    A new one needs `alpha` and `sigma`; `time` has a slow default.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data, never rising. alpha(0) = 1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Deviation of the noise. sigma(0) = 0; sigma / alpha rises."""

    def time(self, logsnr: Tensor) -> Tensor:
        """The time of a log signal-to-noise ratio: the inverse of `logsnr`.

        By bisection, 64 evaluations of the process, to 1e-16 absolute; the nearer end for what lies beyond it. Processes
        with a closed form have that instead.
        """
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            later = self.logsnr(middle) > logsnr
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return high

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) where the log-SNR is this, also beyond the end of the process where its curve goes on."""
        return self.scales(self.time(logsnr))

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
        """-d lambda / dt, positive; by automatic differentiation in float64. Infinite at t = 0 and where alpha = 0."""
        return -_derivative(self.logsnr, t)

    @final
    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), by automatic differentiation; the limits at t = 0 (1e14 for VP's sigma) and 1."""
        t = t.clamp(_FIRST, _LAST)
        return _derivative(self.alpha, t), _derivative(self.sigma, t)

    @final
    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d ln alpha / dt <= 0 of the forward SDE  dx = f(t) x dt + g(t) dw.

        Kingma et al., "Variational Diffusion Models", 2021, appendix B. At t = 0 the limit; -inf where alpha = 0.
        """
        return self._sde(t)[0]

    @final
    def diffusion(self, t: Tensor) -> Tensor:
        """g^2(t) of the forward SDE (the square, as all formulas need it):

            g^2 = d sigma^2 / dt - 2 f sigma^2 = sigma^2 (-d lambda / dt)

        Kingma et al. 2021, appendix B. At t = 0 the limit (beta_min for VP, 0 for most); +inf where alpha = 0. The
        reverse SDE is dx = (f x - g^2 score) dt + g dw, the probability-flow ODE dx/dt = f x - g^2 score / 2 (Song et al.
        2021, eq. 6 and 13).
        """
        return self._sde(t)[1]

    def _sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), (alpha_slope, sigma_slope) = self.scales(t.clamp(_FIRST, _LAST)), self.slopes(t)
        f = alpha_slope / alpha
        g2 = 2 * sigma * (sigma_slope - f * sigma)  # two terms of one sign: nothing cancels
        ends = self.alpha(t) == 0
        return torch.where(ends, -torch.inf, f), torch.where(ends, torch.inf, g2)

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
    def variances(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and largest variance of x_s given x_t that data of deviation 0 and of deviation 1 have, s < t.

            new = sigma_t^2 - a^2 sigma_s^2,   small = new sigma_s^2 / sigma_t^2,
            large = new (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2)

        For a variance-preserving chain these are beta-tilde and beta (Ho et al. 2020, section 3.2), the ends between which
        a learned variance lies. Each of t's shape; small is 0 at s = 0.
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.scales(t), self.scales(s)
        kept = (sigma_s / sigma_t).square()
        new = 1 - (alpha_t / alpha_s).square() * kept  # over sigma_t^2
        total = (alpha_s.square() + sigma_s.square()) / (alpha_t.square() + sigma_t.square())
        return sigma_s.square() * new, sigma_t.square() * new * total


def _derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """df/dt elementwise, in t's shape."""
    with torch.enable_grad():
        t = t.detach().clone().requires_grad_(True)
        value = f(t)
        if not value.requires_grad:  # a constant
            return torch.zeros_like(t)
        (slope,) = torch.autograd.grad(value.sum(), t)
    return slope


def unit_scales(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1 at a log-SNR; values and derivatives keep their digits at both ends."""
    kept, lost = torch.sigmoid(logsnr), torch.sigmoid(-logsnr)
    return torch.where(logsnr > 0, 1 - lost / (1 + kept.sqrt()), kept.sqrt()), lost.sqrt()
