"""Adams-Bashforth methods for the probability-flow ODE: polynomials through former slopes, on any grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process
from sfumato.errors import UserError
from sfumato.samplers.dpmpp import exponential_step
from sfumato.samplers.linear import Basis, Forms, LinearSolver
from sfumato.samplers.multistep import choose, former, interpolation_weights, usable, weighted
from sfumato.samplers.rungekutta import Frame, check_frame, frame_of, slope


@final
@dataclass(frozen=True)
class Adams(LinearSolver, name="adams"):
    """z_s = z + sum_i b_i (dz/du)_i, the integral over the step of the polynomial through the last `points` slopes.

    frame: z = x / (alpha + sigma) (`flow`, finite at both ends, so the last step keeps its order) or x / alpha (`ve`:
    k-diffusion's LMS). Bashforth & Adams 1883, with variable steps.
    points: 1 to 4. Order `points` once started (measured). One evaluation a step.
    """

    points: int = 4
    frame: Frame = "flow"
    evaluations = 1
    carried = 3

    def __post_init__(self) -> None:
        if not 1 <= self.points <= 4:
            raise UserError(f"adams needs points between 1 and 4, not {self.points}")

    @property
    def order(self) -> int:
        return self.points

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        check_frame(process, t, self.frame)
        (c_t, u_t), (c_s, u_s) = frame_of(process, t, self.frame), frame_of(process, s, self.frame)
        z, h = basis.x / c_t, u_s - u_t
        u = former(frame_of(process, times, self.frame)[1], self.points - 1)
        order = usable([-v for v in u]).clamp(max=self.points)
        nodes = [(v - u_t) / h for v in u]
        moments = [torch.full_like(h, 1 / (k + 1)) for k in range(self.points)]
        weights = choose(order, [interpolation_weights(nodes[:p], moments[:p]) for p in range(1, self.points + 1)])
        slopes = [slope(z, basis.D[0], u_t), *basis.h]
        out = c_s * (z + h * weighted(weights, slopes))
        return Forms([(t, basis.x)], out, slopes[: len(basis.h)])


_FIXED = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@final
@dataclass(frozen=True)
class IPNDM(LinearSolver, name="ipndm"):
    """DDIM's step with the Adams-Bashforth average of former eps for equal steps, whatever the grid.

    Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, eq. 12, started as in Zhang & Chen
    2022 without Runge-Kutta steps. The fixed weights are right for equal steps only, and the transfer is not linear in
    the time, so the order is 2 whatever `points` (measured); `adams` and `deis` weigh by the grid and keep their order.
    points: 1 to 4. One evaluation a step.
    """

    points: int = 4
    evaluations = 1
    carried = 3

    def __post_init__(self) -> None:
        if not 1 <= self.points <= 4:
            raise UserError(f"ipndm needs points between 1 and 4, not {self.points}")

    @property
    def order(self) -> int:
        return min(self.points, 2)

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        step = exponential_step(process, t, s, 0.0)
        alpha_t, sigma_t = process.scales(t)
        eps = torch.where(sigma_t > 0, 1 / sigma_t, torch.zeros_like(sigma_t)) * (basis.x - alpha_t * basis.D[0])
        history = [eps, *basis.h]
        points = [-v for v in former(times, self.points - 1)]
        usable_here = torch.where(process.alpha(t) > 0, usable(points).clamp(max=self.points), 1)
        weights = choose(usable_here, [[torch.full_like(t, w) for w in row] for row in _FIXED[: self.points]])
        data = torch.where(usable_here == 1, basis.D[0], (basis.x - sigma_t * weighted(weights, history)) / alpha_t)
        return Forms([(t, basis.x)], step.on_x * basis.x + step.on_data * data, history[: len(basis.h)])
