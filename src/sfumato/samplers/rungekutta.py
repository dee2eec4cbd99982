"""Runge-Kutta methods for the probability-flow ODE in a frame where its paths are nearly straight.

    z = x / c,  u = sigma / c,   dz/du = (z - E[x0 | x_t]) / u

for c = alpha (`frame="ve"`: EDM's) or c = alpha + sigma (`frame="flow"`: the straight-line frame, finite at both ends of
every process). A step that ends at u = 0 is Euler's, which gives E[x0 | x_t] there: the slope at the end is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from sfumato.core import Process
from sfumato.errors import UserError
from sfumato.samplers.linear import Basis, Forms, LinearSolver

Frame = Literal["flow", "ve"]


def frame_of(process: Process, t: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """(c, u) at t, of t's shape."""
    alpha, sigma = process.scales(t)
    c = alpha if frame == "ve" else alpha + sigma
    return c, sigma / c


def time_of(process: Process, u: Tensor, frame: Frame) -> Tensor:
    """The time of a noise level u of a frame: the inverse of `frame_of`."""
    return process.time(-2 * u.log() if frame == "ve" else 2 * (torch.log1p(-u) - u.log()))


def check_frame(process: Process, t: Tensor, frame: Frame) -> None:
    """Refuse the frame x / alpha where alpha = 0."""
    if frame == "ve" and bool((process.alpha(t) == 0).any()):
        raise UserError(
            f"frame=ve divides by alpha, which is 0 where this grid on the process '{process.kind}' begins; use frame=flow"
        )


def slope(z: Tensor, x0: Tensor, u: Tensor) -> Tensor:
    """The form of dz/du = (z - x0) / u, and 0 where u = 0: what is clean does not move."""
    return torch.where(u > 0, 1 / u, torch.zeros_like(u)) * (z - x0)


def explicit(
    process: Process,
    times: Tensor,
    basis: Basis,
    frame: Frame,
    nodes: Sequence[float],
    matrix: Sequence[Sequence[float]],
    weights: Sequence[float],
    *,
    geometric: bool = False,
) -> Forms:
    """The forms of an explicit Runge-Kutta method with the given Butcher tableau.

    Nodes are shares of the step in u, or in log u if `geometric`.
    """
    t, s = times[:-1], times[1:]
    check_frame(process, t, frame)
    (c_t, u_t), (c_s, u_s) = frame_of(process, t, frame), frame_of(process, s, frame)
    clean, h = u_s == 0, u_s - u_t
    z = basis.x / c_t
    ask, slopes = [(t, basis.x)], [slope(z, basis.D[0], u_t)]
    for node, row, D in zip(nodes[1:], matrix[1:], basis.D[1:]):
        u = u_t * (u_s / u_t) ** node if geometric else u_t + node * h
        share = (u - u_t) / h / node if geometric else torch.ones_like(h)  # a node in log u is another share of u
        u = torch.where(clean | (h == 0), u_t, u)
        time = t if node == 0 else (s if node == 1 else time_of(process, u, frame))
        time = torch.where(clean | (h == 0), t, time)
        c, _ = frame_of(process, time, frame)
        moved = z + h * share * sum_of(row, slopes)
        ask.append((time, torch.where(clean | (h == 0), basis.x, c * moved)))
        slopes.append(slope(moved, D, u))
    whole = torch.where(clean, z + h * slopes[0], z + h * sum_of(weights, slopes))
    return Forms(ask, c_s * whole)


def sum_of(weights: Sequence[float], forms: Sequence[Tensor]) -> Tensor:
    """sum_i w_i f_i over the weights that are not 0."""
    return torch.stack([w * f for w, f in zip(weights, forms) if w]).sum(0)


@final
@dataclass(frozen=True)
class Euler(LinearSolver, name="euler"):
    """Euler's method in the straight frame: z_s = z + (u_s - u_t) dz/du.

    Equal to DDIM with eta = 0 in exact arithmetic (tests/samplers/test_solvers.py): the frames differ by a linear map,
    which a first-order step does not see. Order 1. One evaluation a step.
    """

    order = 1
    evaluations = 1

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        return explicit(process, times, basis, "flow", (0,), ((),), (1,))


@final
@dataclass(frozen=True)
class Heun(LinearSolver, name="heun"):
    """Heun's trapezoidal method: an Euler step, then the mean of the slopes at both ends; optionally with churn.

    With `frame="ve"` this is the sampler of EDM: Karras et al. 2022, algorithm 1, and with churn > 0 algorithm 2: while
    churn_min <= sigma / alpha <= churn_max, noise is first added up to sigma (1 + g), g = min(churn / N, sqrt(2) - 1),
    its deviation multiplied by churn_noise. No step is taken beyond t = 1.
    Order 2. Two evaluations a step, one in the step that ends at t = 0.
    """

    frame: Frame = "flow"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    order = 2
    evaluations = 2
    noises = 1

    def __post_init__(self) -> None:
        if self.churn < 0 or self.churn_noise < 0 or not 0 <= self.churn_min <= self.churn_max:
            raise UserError(f"heun needs churn >= 0, churn_noise >= 0 and 0 <= churn_min <= churn_max, not {self}")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        check_frame(process, t, self.frame)
        raised, x = (t, basis.x) if self.churn == 0 else self._churned(process, t, len(t), basis)
        (c_t, u_t), (c_s, u_s) = frame_of(process, raised, self.frame), frame_of(process, s, self.frame)
        clean, h = u_s == 0, u_s - u_t
        z = x / c_t
        first = slope(z, basis.D[0], u_t)
        ahead = z + h * first
        second = slope(ahead, basis.D[1], u_s)
        out = c_s * torch.where(clean, ahead, z + h / 2 * (first + second))
        # an element that ends at t = 0 needs no second answer: it is asked at t again, and the answer has weight 0
        return Forms([(raised, x), (torch.where(clean, raised, s), torch.where(clean, x, c_s * ahead))], out)

    def _churned(self, process: Process, t: Tensor, n: int, basis: Basis) -> tuple[Tensor, Tensor]:
        """The raised times and the form of x there."""
        alpha, sigma = process.scales(t)
        ratio = sigma / alpha
        top = torch.exp(-process.logsnr(torch.ones_like(t)) / 2)
        inside = (ratio >= self.churn_min) & (ratio <= self.churn_max) & torch.isfinite(ratio)
        gain = inside.to(ratio) * min(self.churn / n, math.sqrt(2) - 1)
        higher = torch.minimum(ratio * (1 + gain), top)
        raised = torch.where(higher > ratio, process.time(-2 * higher.log()), t)
        added = torch.where(higher > ratio, higher.square() - ratio.square(), torch.zeros_like(ratio)).sqrt()
        scale = torch.where(higher > ratio, process.alpha(raised) / alpha, torch.ones_like(alpha))
        return raised, scale * basis.x + process.alpha(raised) * added * self.churn_noise * basis.z[0]


@final
@dataclass(frozen=True)
class DPM2(LinearSolver, name="dpm2"):
    """The midpoint rule in x / alpha, with the midpoint taken in log sigma.

    Karras et al. 2022, appendix B (their general second-order family at the geometric mean); k-diffusion's DPM2.
    Order 2. Two evaluations a step, one in the step that ends at t = 0. Undefined where alpha_t = 0.
    """

    order = 2
    evaluations = 2

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        return explicit(process, times, basis, "ve", (0, 0.5), ((), (0.5,)), (0, 1), geometric=True)


@final
@dataclass(frozen=True)
class RK4(LinearSolver, name="rk4"):
    """The classical Runge-Kutta method.

    Kutta 1901. Order 4. Four evaluations a step, one in the step that ends at t = 0. For reference solutions.
    """

    frame: Frame = "flow"
    order = 4
    evaluations = 4

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        rows = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
        return explicit(process, times, basis, self.frame, (0, 0.5, 0.5, 1), rows, (1 / 6, 1 / 3, 1 / 3, 1 / 6))
