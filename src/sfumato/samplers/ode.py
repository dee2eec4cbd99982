"""Solvers of the probability-flow ODE in a frame where its paths are nearly straight.

    z = x / c,  u = sigma / c,   dz/du = (z - E[x0 | x_t]) / u

for c = alpha (`frame="ve"`: EDM's) or c = alpha + sigma (`frame="flow"`: the straight-line frame, finite at both ends of
every process). Where u = 0 an element is clean and does not move: the slope is 0 there, not 0/0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from sfumato.core import Process, lift
from sfumato.errors import UserError
from sfumato.samplers.base import Denoise, Noise, Solver, State

Frame = Literal["flow", "ve"]


def _frame(process: Process, t: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """(c, u) at t, of t's shape."""
    alpha, sigma = process.scales(t)
    c = alpha if frame == "ve" else alpha + sigma
    return c, sigma / c


def _slope(z: Tensor, x0: Tensor, u: Tensor) -> Tensor:
    """dz/du = (z - x0) / u, and 0 where u = 0."""
    inverse = torch.where(u > 0, 1 / u, torch.zeros_like(u))
    return (z - x0) * lift(inverse, z)


def _check_frame(process: Process, t: Tensor, frame: Frame) -> None:
    if frame == "ve" and bool((process.alpha(t) == 0).any()):
        raise UserError(
            f"frame=ve divides by alpha, which is 0 where this grid on the process '{process.kind}' begins; use frame=flow"
        )


@final
@dataclass(frozen=True)
class Euler(Solver, name="euler"):
    """Euler's method in the straight frame: z_s = z + (u_s - u_t) dz/du.

    Equal to DDIM with eta = 0 in exact arithmetic (tests/samplers/test_equivalence.py): the frames differ by a linear map,
    which a first-order step does not see. Order 1. One evaluation a step.
    """

    order = 1
    evaluations = 1

    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        return ()

    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        (c_t, u_t), (c_s, u_s) = _frame(process, t, "flow"), _frame(process, s, "flow")
        z = x / lift(c_t, x)
        return lift(c_s, x) * (z + lift(u_s - u_t, x) * _slope(z, f(x, t), u_t)), state


@final
@dataclass(frozen=True)
class Heun(Solver, name="heun"):
    """Heun's trapezoidal method: an Euler step, then the mean of the slopes at both ends.

    With `frame="ve"` this is the deterministic sampler of EDM: Karras et al. 2022, algorithm 1 (parity to 1e-10 in
    tests/samplers/test_parity.py). Order 2. Two evaluations a step, one in the step that ends at t = 0.
    """

    frame: Frame = "flow"
    order = 2
    evaluations = 2

    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        _check_frame(process, t, self.frame)
        return ()

    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        (c_t, u_t), (c_s, u_s) = _frame(process, t, self.frame), _frame(process, s, self.frame)
        z = x / lift(c_t, x)
        slope, h = _slope(z, f(x, t), u_t), lift(u_s - u_t, x)
        euler = z + h * slope
        clean = u_s == 0
        if bool(clean.all()):
            return lift(c_s, x) * euler, state
        slope_s = _slope(euler, f(lift(c_s, x) * euler, s), u_s)
        heun = z + h * (slope + slope_s) / 2
        if bool(clean.any()):
            heun = torch.where(lift(clean, x).bool(), euler, heun)
        return lift(c_s, x) * heun, state
