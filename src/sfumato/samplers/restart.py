"""Restart sampling: back up into the noise and down again, several times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process, lift
from sfumato.core.columns import by_column
from sfumato.errors import UserError
from sfumato.samplers.base import Denoise, Noise, Plan, Solver, State, Step
from sfumato.samplers.corrector import check_memoryless
from sfumato.samplers.rungekutta import Heun


@final
@dataclass(frozen=True)
class Restart(Solver, name="restart"):
    """`solver`'s walk; on reaching sigma / alpha <= low, noise is added up to `high` and walked down again, `times` times.

        x_h = a x_s + sqrt(sigma_h^2 - a^2 sigma_s^2) z,   a = alpha_h / alpha_s,   then `steps` steps of `solver` to s

    s is the first time of the grid at or below `low`; the steps are equal in (sigma / alpha)^(1 / rho). Fresh noise makes
    two walks that differ meet: with the exact score each restart multiplies an error of the variance by that of s over
    that of h, while the few large steps keep the discretisation error small. Several intervals are nested:
    Restart(Restart(Heun(), low=0.05, high=0.3), low=1.1, high=19).
    Xu et al., "Restart Sampling for Improving Generative Processes", 2023, algorithm 1; rho: their appendix.

    Cost: times * steps steps of `solver` on top of its own. Worth it with many evaluations (50 and more), where an ODE
    solver's error has stopped falling. The order is the solver's. A deterministic solver without memory.
    """

    solver: Solver = field(default_factory=Heun)
    low: float = 0.06
    high: float = 0.3
    times: int = 1
    steps: int = 4
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high or self.times < 0 or self.rho <= 0 or self.steps < self.solver.fewest:
            raise UserError(
                f"restart needs 0 < low < high, times >= 0, steps >= {self.solver.fewest} and rho > 0, not low = {self.low}, "
                f"high = {self.high}, times = {self.times}, steps = {self.steps}, rho = {self.rho}"
            )
        check_memoryless("restart", self.solver)
        if self.solver.stochastic and not isinstance(self.solver, Restart):
            raise UserError(
                f"restart adds the noise itself and needs a solver without, not {self.solver.kind} with its settings; "
                "use heun, ddim or rk4"
            )

    @property
    def order(self) -> int:
        return self.solver.order

    @property
    def evaluations(self) -> int:
        """Network evaluations of a step outside the restarts."""
        return self.solver.evaluations

    @property
    def stochastic(self) -> bool:
        return self.times > 0 or self.solver.stochastic

    def plan(self, process: Process, times: Tensor, x: Tensor) -> Plan:
        plain = self.solver.plan(process, times, x)
        check_memoryless("restart", self.solver, plain.state)
        steps, asked = list(plain.steps), list(plain.asked)
        for k, span in enumerate(pairwise(times)):
            walk = by_column(torch.stack(span), lambda columns: self._walk(process, *columns))
            if self.times == 0 or bool((walk[0] == walk[-1]).all()):
                continue
            kept, added = by_column(walk, lambda columns: _up(process, columns[-1], columns[0]))
            again = self.solver.plan(process, walk, x)
            asked += again.asked
            span_up = (span[1], walk[0])
            steps[k] = _Restarted(steps[k], span_up, lift(kept, x), lift(added, x), self.times, tuple(again.steps))
        return Plan((), steps, asked)

    def _walk(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        """The times of a restart after the step from t to s, (steps + 1, *prefix): all s where there is none.

        From sigma / alpha = high, or t = 1, equal steps in (sigma / alpha)^(1 / rho).
        """
        threshold = 2 * math.log(self.low) + 1e-9  # a grid through `low` itself stops there, whatever its rounding
        reached = (-process.logsnr(t) > threshold) & (-process.logsnr(s) <= threshold)
        top = process.time(torch.full_like(s, -2 * math.log(self.high))).clamp(max=1)
        high, low = (torch.exp(-process.logsnr(v) / (2 * self.rho)) for v in (top, s))
        share = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64).reshape(-1, *[1] * s.ndim)
        inside = process.time(-2 * self.rho * (high + share * (low - high)).log())[1:-1]
        inside = torch.minimum(torch.maximum(inside, s), top)
        return torch.where(reached & (top > s), torch.cat([top[None], inside, s[None]]), s)


def _up(process: Process, s: Tensor, t: Tensor) -> Tensor:
    """(2, *prefix): of x_s and of the noise in x_t, for t >= s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
    a = alpha_t / alpha_s
    added = (sigma_t.square() - (a * sigma_s).square()).clamp(min=0).sqrt()
    return torch.where(
        t == s, torch.tensor([1.0, 0.0], dtype=t.dtype).reshape(2, *[1] * t.ndim), torch.stack([a, added])
    )


@final
@dataclass(frozen=True, slots=True)
class _Restarted:
    """A compiled step, with the restarts after it."""

    step: Step
    span: tuple[Tensor, Tensor]
    kept: Tensor
    added: Tensor
    times: int
    again: tuple[Step, ...]

    def __call__(self, f: Denoise, x: Tensor, state: State, noise: Noise) -> tuple[Tensor, State]:
        x, state = self.step(f, x, state, noise)
        for _ in range(self.times):
            x = torch.addcmul(self.kept * x, self.added, noise(*self.span))
            for step in self.again:
                x, state = step(f, x, state, noise)
        return x, state
