"""The exact law of what a solver samples from a Gaussian, with no Monte Carlo in it.

For Gaussian data every answer is affine in x, so what a linear solver makes is a sum

    x = c_0 + c_1 xi + c_2 z_1 + c_3 z_2 + ...

of the start xi ~ N(0, 1) and the noises drawn. `law` walks the coefficients c through the very steps that a picture goes
through, as a "sample" with one element for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Process, lift
from sfumato.samplers import Noise, Solver, sample

MEAN, STD = 0.5, 0.7


@final
@dataclass(frozen=True)
class Affine:
    """`GaussianDenoiser` on coefficients (1, W): the constant term is the first."""

    process: Process
    mean: float = MEAN
    std: float = STD

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        alpha, sigma = (lift(c, x_t) for c in self.process.scales(t))
        total = alpha**2 * self.std**2 + sigma**2
        one = torch.zeros_like(x_t)
        one[:, 0] = 1
        return (self.std**2 * alpha * x_t + sigma**2 * self.mean * one) / total


@final
class Units:
    """Every draw of noise is the next unit vector."""

    def __init__(self) -> None:
        self.drawn = 0

    def of_step(self, number: int, x: Tensor) -> Noise:
        def noise(t: Tensor, s: Tensor) -> Tensor:
            self.drawn += 1
            unit = torch.zeros_like(x)
            unit[:, 1 + self.drawn] = 1
            return unit

        return noise


def marginal(process: Process, t: Tensor, mean: float = MEAN, std: float = STD) -> tuple[float, float]:
    """Mean and variance of x_t."""
    alpha, sigma = process.scales(t)
    return float(alpha * mean), float(alpha**2 * std**2 + sigma**2)


def law(
    solver: Solver,
    process: Process,
    times: Tensor,
    *,
    mean: float = MEAN,
    std: float = STD,
    first: tuple[float, float] | None = None,
    draws: int | None = None,
) -> tuple[float, float]:
    """Mean and variance at times[-1] of walks that start with the law `first`, the exact one if None."""
    begin = marginal(process, times[0], mean, std) if first is None else first
    x = torch.zeros(1, 2 + (len(times) * 4 if draws is None else draws), dtype=torch.float64)
    x[0, 0], x[0, 1] = begin[0], begin[1] ** 0.5
    y = sample(Affine(process, mean, std), solver, x, times, noise=Units())[0]
    return float(y[0]), float(y[1:].square().sum())
