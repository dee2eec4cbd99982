"""The probability-flow ODE with steps that follow a tolerance instead of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Process, lift
from sfumato.errors import UserError
from sfumato.samplers.base import Denoise, Noise, State, StepSolver
from sfumato.samplers.rk45 import integrate
from sfumato.samplers.rungekutta import frame_of, time_of


@final
@dataclass(frozen=True)
class Adaptive(StepSolver, name="adaptive"):
    """Dormand-Prince 5(4) between the times of the grid, in the straight frame.

        dz/du = (z - E[x0 | x_t]) / u,   z = x / (alpha + sigma),  u = sigma / (alpha + sigma)

    to u(s), or, if s = 0, to sigma / alpha = `sigma_min` and one denoising there.

    Every sample has steps of its own, chosen so that the estimated error of a step is below atol + rtol |z|; a grid of
    one step is best. evaluations: not known beforehand (tens to hundreds a walk): `evaluations` is what an accepted step
    of the pair costs, and `solve` says how many a walk took. Accurate rather than fast: for reference solutions and
    likelihoods; `unipc` has a smaller error for a given number of evaluations. It waits for the device in every step.
    Song et al. 2021, section 4.3 and appendix D.2 (there scipy's RK45). Order 5 in the steps it chooses.
    Raises UserError for a batch in which the elements of one sample have different times.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    sigma_min: float = 0.002
    max_evaluations: int = 10_000
    order = 5
    evaluations = 6

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0 and self.sigma_min > 0 and self.max_evaluations >= 1):
            raise UserError(f"adaptive needs rtol, atol and sigma_min > 0 and max_evaluations >= 1, not {self}")

    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        return ()

    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        return self.walk(f, process, x, t, s)[0], state

    def walk(self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, *S) from t to s, both (B,), and the evaluations that each sample needed, (B,) int64."""
        if t.ndim != 1:
            raise UserError(
                "solver=adaptive has one time for each sample, and here a sample's elements have different ones; use heun"
            )
        least = torch.tensor(self.sigma_min / (1 + self.sigma_min), dtype=torch.float64)
        (c, u), u_s = frame_of(process, t, "flow"), process.level(s)
        last = (s == 0) & (t > 0)
        end = torch.where(last, torch.minimum(u, least), u_s)

        def slope(z: Tensor, at: Tensor) -> Tensor:
            place, scale = self._place(process, at, u, t)
            inverse = torch.where(at > 0, 1 / at, torch.zeros_like(at))
            return lift(inverse, z) * (z - f(lift(scale, z) * z, place))

        z, evaluations = integrate(
            slope, x / lift(c, x), u, end, rtol=self.rtol, atol=self.atol, max_evaluations=self.max_evaluations
        )
        place, scale = self._place(process, end, u, t)
        x = torch.where(lift(end == u, x).bool(), x, lift(scale, z) * z)
        if bool(last.any()):
            x = torch.where(lift(last, x).bool(), f(x, place), x)
        return x, evaluations + last.long()

    @staticmethod
    def _place(process: Process, u: Tensor, first: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The time of a level u and alpha + sigma there; exactly t at the first level."""
        place = torch.where(u == first, t, time_of(process, u, "flow").clamp(0, 1))
        return place, frame_of(process, place, "flow")[0]


def solve(
    denoiser: Denoiser,
    x: Tensor,
    t: float | Tensor,
    s: float | Tensor,
    cond: Cond | None = None,
    *,
    solver: Adaptive | None = None,
) -> tuple[Tensor, Tensor]:
    """x (B, *S) carried along the probability-flow ODE from t down to s, and the evaluations of each sample, (B,) int64.

    t, s: one number for all, or (B,) float64. solver: the tolerances.
    """
    start, end = (torch.as_tensor(v, dtype=torch.float64).expand(len(x)) for v in (t, s))
    if bool((start < end).any()) or not bool(((start <= 1) & (end >= 0)).all()):
        raise UserError("the walk goes from t to s <= t within [0, 1]: t = 1 is noise and t = 0 is data")
    chosen = Adaptive() if solver is None else solver
    return chosen.walk(lambda x_t, at: denoiser(x_t, at, cond), denoiser.process, x, start, end)
