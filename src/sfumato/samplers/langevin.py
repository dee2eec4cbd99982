"""Annealed Langevin dynamics: sampling with scores alone, one noise level after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process, lift
from sfumato.core.columns import by_column
from sfumato.errors import UserError
from sfumato.samplers.base import Denoise, Noise, Plan, Solver, State


def langevin_step(ratio: float, steps: int) -> float:
    """The best `step` of `AnnealedLangevin` for levels in the given ratio sigma_(i-1) / sigma_i > 1 and `steps` a level.

    A Gaussian of the former level's deviation has, after the steps, a variance of sigma_i^2 times

        (1 - d)^(2 steps) (ratio^2 - m) + m,   m = 2 / (2 - d),   d = step / 2

    and the step is the one that brings this nearest to 1. Song & Ermon, "Improved Techniques for Training Score-Based
    Generative Models" (NCSNv2), 2020, proposition 3 and technique 4; their eps is sigma_L^2 step / 2, and its published
    values follow (CIFAR-10: 6.2e-6 for 232 levels from 50 to 0.01).
    """
    if not ratio > 1 or steps < 1:
        raise UserError(f"a Langevin step needs levels that fall (ratio > 1) and steps >= 1, not {ratio} and {steps}")

    def excess(d: float) -> float:
        stationary = 2 / (2 - d)
        return abs((1 - d) ** (2 * steps) * (ratio**2 - stationary) + stationary - 1)

    low, high = 0.0, 1.0
    for _ in range(100):  # it falls, then rises
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if excess(left) < excess(right) else (left, high)
    return low + high


@final
@dataclass(frozen=True)
class AnnealedLangevin(Solver, name="annealed-langevin"):
    """`repeats` Langevin steps at the noise level of every time of the grid, from t = 1 down; then one denoising.

        y <- y + a/2 score(y) + sqrt(a) z,   y = x_t / alpha_t,   a = step (sigma_t / alpha_t)^2

    which in x is x <- (1 - step/2) x + step/2 alpha E[x0 | x] + sqrt(step) sigma z, so it works for every process. Between
    levels y stays as it is. The step to t = 0 returns E[x0 | x] after its own Langevin steps.

    step: the papers' eps / sigma_L^2, sigma_L the smallest level: 0.2 in Song & Ermon, "Generative Modeling by Estimating
    Gradients of the Data Distribution", 2019, algorithm 1 (eps = 2e-5, sigma_L = 0.01; `repeats` = 100, 10 levels). NCSNv2
    has 232 levels, 5 repeats and step = 0.124 by its rule, `langevin_step`. Levels should fall geometrically: grid=logsnr.
    The denoising at the end: Jolicoeur-Martineau et al., "Adversarial Score Matching and Improved Sampling", 2020.

    Cost: `repeats` evaluations a level and one at the end, ten to a hundred times what an ODE solver needs for the same
    error. With exact scores it has two errors: the steps' own (a stationary variance of sigma^2 / (1 - step / 4)), and the
    lag behind the levels, which falls with repeats * levels. A level of pure noise (alpha = 0) is passed without a step.
    """

    repeats: int = 10
    step: float = 0.2

    def __post_init__(self) -> None:
        if self.repeats < 1 or not 0 < self.step < 4:
            raise UserError(
                f"annealed-langevin needs repeats >= 1 and 0 < step < 4, not {self.repeats} and {self.step}; "
                "step is the papers' eps / sigma_L^2, 0.1 to 0.3 are usual"
            )

    @property
    def order(self) -> int:
        return 1

    @property
    def evaluations(self) -> int:
        """Network evaluations a level."""
        return self.repeats

    @property
    def stochastic(self) -> bool:
        return True

    def plan(self, process: Process, times: Tensor, x: Tensor) -> Plan:
        t, s = times[:-1], times[1:]
        numbers = by_column(times, lambda columns: self._numbers(process, columns))
        moves, ends = (t > s) & (process.alpha(t) > 0), (s == 0) & (t > 0)
        steps = [
            _Level(
                (t[k], s[k]),
                self.repeats if bool(moves[k].any()) else 0,
                tuple(lift(c, x) for c in numbers[:, k]),
                lift(ends[k], x).bool() if bool(ends[k].any()) else None,
            )
            for k in range(len(t))
        ]
        return Plan((), steps, [step.span[0] for step in steps if step.repeats or step.ends is not None])

    def _numbers(self, process: Process, times: Tensor) -> Tensor:
        """(4, N, *prefix): of x, the data and the noise in a Langevin step, and of x on the way to the next level."""
        t, s = times[:-1], times[1:]
        (alpha, sigma), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
        half = ((t > s) & (alpha > 0)).to(t) * (self.step / 2)
        onward = torch.where(alpha > 0, alpha_s / alpha, sigma_s / sigma)
        onward = torch.where(t > s, onward, torch.ones_like(t))
        return torch.stack([1 - half, half * alpha, (2 * half).sqrt() * sigma, onward])


@final
@dataclass(frozen=True, slots=True)
class _Level:
    """The compiled steps of one level."""

    span: tuple[Tensor, Tensor]
    repeats: int
    numbers: tuple[Tensor, ...]  # of x, the data and the noise, and of x onward
    ends: Tensor | None

    def __call__(self, f: Denoise, x: Tensor, state: State, noise: Noise) -> tuple[Tensor, State]:
        (t, s), (on_x, on_data, on_noise, on) = self.span, self.numbers
        for _ in range(self.repeats):
            x = torch.addcmul(torch.addcmul(on_x * x, on_data, f(x, t)), on_noise, noise(t, s))
        onward = on * x
        return (onward if self.ends is None else torch.where(self.ends, f(x, t), onward)), state
