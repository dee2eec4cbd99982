"""Denoisers whose answers are known in closed form: what solvers, guidance, losses and likelihoods are tested against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Process, lift


@final
@dataclass(frozen=True)
class GaussianDenoiser:
    """E[x0 | x_t] for x0 ~ N(mean, std^2 I). A condition's `vector` (B, ...) replaces the mean.

    E[x0 | x_t] = (std^2 alpha x_t + sigma^2 mean) / (alpha^2 std^2 + sigma^2)
    """

    process: Process
    mean: float = 0.5
    std: float = 0.7

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        alpha, sigma = (lift(c, x_t) for c in self.process.scales(t))
        variance = self.std**2
        asked = cond.vector if cond is not None else None
        mean = torch.full_like(x_t, self.mean) if asked is None else asked.to(x_t).expand_as(x_t)
        return (variance * alpha * x_t + sigma**2 * mean) / (alpha**2 * variance + sigma**2)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact solution at s of the probability-flow ODE that is x_t at t: the standard score is carried along."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.process.scales(t), self.process.scales(s)
        spread_t = (alpha_t.square() * self.std**2 + sigma_t.square()).sqrt()
        spread_s = (alpha_s.square() * self.std**2 + sigma_s.square()).sqrt()
        return lift(alpha_s, x_t) * self.mean + lift(spread_s / spread_t, x_t) * (x_t - lift(alpha_t, x_t) * self.mean)


@final
@dataclass(frozen=True)
class MixtureDenoiser:
    """E[x0 | x_t] for a mixture of isotropic Gaussians: means (K, *S), one deviation, weights (K,) (equal ones if None).

    The posterior over components is softmax_k(log w_k - |x_t - alpha m_k|^2 / (2 (alpha^2 std^2 + sigma^2))); each
    component contributes its own Gaussian posterior mean.
    """

    process: Process
    means: Tensor
    std: float = 0.1
    weights: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        alpha, sigma = (lift(c, x_t)[:, None] for c in self.process.scales(t))
        means = self.means.to(x_t)[None]
        spread = alpha**2 * self.std**2 + sigma**2
        difference = x_t[:, None] - alpha * means
        axes = tuple(range(2, difference.ndim))
        energy = (difference.square() / (2 * spread)).sum(axes, keepdim=True)
        if self.weights is not None:
            energy = energy - self.weights.to(x_t).log().reshape(1, -1, *[1] * (energy.ndim - 2))
        share = torch.softmax(-energy, 1)
        component = means + alpha * self.std**2 / spread * difference
        return (share * component).sum(1)
