"""The problem of `benchmarks.solvers`: an exact denoiser, starts, and the exact end of every path.

A mixture of K = 32 Gaussians with deviation 0.05 and means 0.5 N(0, I) in 64 dimensions, noised by the 1,000 linear
betas of DDPM, and 256 starts x_T ~ N(0, I) at index 999. The truth is the probability-flow ODE from index 999 to index
0 in 1,500 steps of Runge-Kutta 4 and one denoising there, in float64; nothing of it comes from our samplers.

Several problems, one a seed, are stacked and walked together: `denoiser` treats block i of the rows with mixture i.

Index k = 0 ... 999 of the betas is t = (k + 1) / 1000 of `DiscreteVP("linear")`. sigma / alpha is 157 at index 999 and
0.0100 at index 0. The last denoising counts: x at index 0 still carries noise of 0.01, which is 0.4% of |x0| here, and
the ODE walked on to sigma = 0 ends 0.2% away from the denoised point. A solver that is to come nearer than 0.002 must
stop at index 0 and denoise once, as the truth does.

One start that ends in another component than the truth's is 0.075 to 0.09 of a seed's error by itself, so between 8 and
50 evaluations the error of the better solvers counts such starts (`Problem.strayed`), and the mean over five seeds
moves in steps of 0.015. Steps matter between sigma / alpha = 9 and 0.5, where a start decides for a component: an error
made above 9 or below 0.5 in a first-order step of a twentieth of the log-SNR range costs less than 0.003 at the end, in
between 0.02 to 0.13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, DiscreteVP, Process, lift

COMPONENTS, DIMENSIONS, STARTS = 32, 64, 256
STD, SPREAD = 0.05, 0.5
RK4_STEPS = 1500
SEEDS = (0, 1, 2, 3, 4)


def index_sigmas() -> Tensor:
    """sigma / alpha at the indices 0 ... 999 of the linear betas. (1000,) float64, from the betas alone."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumsum(torch.log1p(-betas), 0)  # log of the cumulative product of 1 - beta
    return torch.sqrt(torch.expm1(-kept))


@final
@dataclass(frozen=True)
class Mixtures:
    """E[x0 | x_t] of S mixtures for S equal blocks of rows, by matrix products. means: (S, K, D)."""

    process: Process
    means: Tensor
    std: float = STD

    @cached_property
    def _half_norms(self) -> Tensor:
        return self.means.square().sum(-1)[:, None] / 2

    def of_noisy(self, z: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | z] for z = x0 + sigma n; z: (S B, D), sigma: () or (S B, 1).

        (std^2 z + sigma^2 sum_k w_k m_k) / (std^2 + sigma^2),   w = softmax_k((z m_k - |m_k|^2 / 2) / (std^2 + sigma^2))
        """
        total = self.std**2 + sigma**2
        blocks = z.view(len(self.means), -1, z.shape[-1])
        spread = total.reshape(1, 1, 1) if total.numel() == 1 else total.view(*blocks.shape[:2], 1)
        shares = torch.softmax((blocks @ self.means.mT - self._half_norms) / spread, -1)
        centre = (shares @ self.means).view_as(z)
        return (self.std**2 * z + sigma**2 * centre) / total

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        alpha, sigma = (lift(c, x_t) for c in self.process.scales(t))
        return self.of_noisy(x_t / alpha, sigma / alpha)


@final
@dataclass(frozen=True)
class Problem:
    """What a solver is given, and where its paths end. start (x_T), truth: (S B, D), block i of the rows from seed i."""

    denoiser: Mixtures
    start: Tensor
    truth: Tensor

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def errors(self, x0: Tensor) -> list[float]:
        """The relative L2 error |x0 - truth| / |truth| of each seed, the norms over all its starts."""
        blocks = (len(self.denoiser.means), -1)
        distance = (x0 - self.truth).reshape(blocks).norm(dim=1)
        return [float(v) for v in distance / self.truth.reshape(blocks).norm(dim=1)]

    def strayed(self, x0: Tensor) -> list[int]:
        """How many starts of each seed end nearest to another component than the truth does."""

        def nearest(x: Tensor) -> Tensor:
            return torch.cdist(x.view(len(self.denoiser.means), -1, x.shape[-1]), self.denoiser.means).argmin(-1)

        return [int(n) for n in (nearest(x0) != nearest(self.truth)).sum(1)]


def truth(denoiser: Mixtures, start: Tensor, steps: int = RK4_STEPS) -> Tensor:
    """The end of the paths from index 999: Runge-Kutta 4 to index 0 in equal steps of log s, then E[x0 | z].

    dz / dlog s = z - E[x0 | z],   z = x / alpha,  s = sigma / alpha
    """
    sigmas = index_sigmas()
    high, low = math.log(float(sigmas[-1])), math.log(float(sigmas[0]))
    h = (low - high) / steps

    def slope(z: Tensor, log_s: float) -> Tensor:
        return z - denoiser.of_noisy(z, torch.tensor(math.exp(log_s), dtype=torch.float64))

    z = start * torch.sqrt(1 + sigmas[-1] ** 2)
    for i in range(steps):
        at = high + i * h
        k1 = slope(z, at)
        k2 = slope(z + h / 2 * k1, at + h / 2)
        k3 = slope(z + h / 2 * k2, at + h / 2)
        k4 = slope(z + h * k3, at + h)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return denoiser.of_noisy(z, sigmas[0])


def problem(
    seeds: tuple[int, ...] = SEEDS,
    *,
    components: int = COMPONENTS,
    dimensions: int = DIMENSIONS,
    std: float = STD,
    spread: float = SPREAD,
    starts: int = STARTS,
) -> Problem:
    """The problems of the seeds, stacked. A seed's generator draws the means (K, D) first, then the starts (B, D).

    Whatever is chosen or fitted is chosen on other seeds and other mixtures: SEEDS are for the table alone.
    """
    means, drawn = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        means.append(spread * torch.randn(components, dimensions, generator=generator, dtype=torch.float64))
        drawn.append(torch.randn(starts, dimensions, generator=generator, dtype=torch.float64))
    denoiser = Mixtures(DiscreteVP("linear"), torch.stack(means), std)
    start = torch.cat(drawn)
    return Problem(denoiser, start, truth(denoiser, start))
