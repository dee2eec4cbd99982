"""The recommended solver: an exponential Adams predictor-corrector whose polynomials run in the noise level.

In data prediction, with y = e^(lambda - lambda_s) and u = sigma^k / (alpha^k + sigma^k),

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) mean_y x0(u),   y uniform from e^(-h) to 1

is exact, and x0(u) is taken to be the polynomial in u through the former answers (predictor), then also through the answer
at s when it has come (corrector). For k = 1, u is the noise level of the straight paths of flow matching, in which
E[x0 | x_t] is nearly straight at both ends; for k -> 0 the polynomials run in lambda, as those of `dpmpp-3m`, `unipc` and
`deis` do. k = 1/4 was chosen on exact mixtures and a network together (docs/decisions/0012-the-walk-between.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato.core import Process
from sfumato.errors import UserError
from sfumato.samplers.dpmpp import Exponential, exponential_step
from sfumato.samplers.linear import Basis, Forms, LinearSolver
from sfumato.samplers.multistep import choose, former, half_logsnr, usable, weighted

_GAUSS = np.polynomial.legendre.leggauss(32)  # nodes and weights on [-1, 1]: the polynomials are smooth in y
_POINTS, _CAUTION = 3, 2.0  # by default: points, and of the last order of a predictor 1 - _CAUTION / steps
FREE_BELOW = -2.5  # log(alpha / sigma) below which a first answer is not worth asking for


def levels_of(lam: Tensor, power: float) -> Tensor:
    """sigma^k / (alpha^k + sigma^k) at lambda = log(alpha / sigma), k = power: 1 in pure noise, 0 in data."""
    return torch.sigmoid(-power * lam)


def level_weights(step: Exponential, lam_s: Tensor, points: Sequence[Tensor], power: float = 1.0) -> list[Tensor]:
    """Weights of the answers at levels `points` in the step: step.on_data times the means of their Lagrange polynomials.

    With r = y^k the levels are smooth in r down to y = 0, and the mean over y is one over r with the density r^(1/k - 1).
    """
    nodes, shares = (torch.from_numpy(v).reshape(-1, *[1] * lam_s.ndim) / 2 for v in _GAUSS)
    first = torch.exp(-power * step.h)
    r = first + (1 - first) * (nodes + 0.5)
    density = shares * r ** (1 / power - 1)
    density = density / density.sum(0)
    u = torch.sigmoid(-(power * lam_s + r.log()))
    weights = []
    for i, own in enumerate(points):
        polynomial = torch.ones_like(u)
        for j, other in enumerate(points):
            if j != i:
                polynomial = polynomial * (u - other) / (own - other)
        weights.append(step.on_data * (density * polynomial).sum(0))
    return weights


def _by_default(steps: int) -> tuple[int, int, float]:
    """Points of the predictor and former ones of the corrector, and the share of a predictor's last order."""
    return _POINTS, _POINTS - 1, max(0.0, 1 - _CAUTION / steps)


def _cautious(by_order: Sequence[Sequence[Tensor]], share: float) -> list[list[Tensor]]:
    """Of each order's step `share`, and of that of one order less the rest; the lowest stays as it is."""
    mixed = [list(by_order[0])]
    for lower, own in pairwise(by_order):
        rest = [*lower, torch.zeros_like(lower[0])]
        mixed.append([share * w + (1 - share) * v for w, v in zip(own, rest)])
    return mixed


def free_first(process: Process, times: Tensor, wanted: bool) -> Tensor:
    """Which elements make their first step without an answer: (N, *prefix) bool, True in the first row only.

    Where a walk begins in (nearly) pure noise, E[x0 | x_t] is alpha x_t / (alpha^2 + sigma^2) but for little, for data of
    zero mean and unit deviation; the corrector then puts the answer at the end of that step in its place.
    """
    free = torch.zeros_like(times[:-1], dtype=torch.bool)
    free[0] = wanted & (half_logsnr(process, times[0]) <= FREE_BELOW) & (times[1] > 0) & (times[1] < times[0])
    return free


@final
@dataclass(frozen=True)
class ExpAdams(LinearSolver, name="exp-adams"):
    """Predictor-corrector in data prediction with polynomials in u = sigma^k / (alpha^k + sigma^k): the default.

    points: answers of the predictor (1 to 4); the corrector goes through one more, the new one, and costs nothing. None:
    3 of each, the new one among the corrector's, and the predictor is (1 - 2 / N) times its step of each order and 2 / N
    times that of one order less, in N steps: long steps extrapolate far, and a network is not smooth enough to be trusted
    with all of it.
    power: k, from 0.1 to 2. 1: as flow matching sees it; towards 0: polynomials in lambda.
    free_start: the first step, from nearly pure noise, asks nothing (see `free_first`), so n evaluations make n + 1
    steps. The idea is GENIE's (Dockhorn et al., 2022: "analytical first step"); correcting it afterwards is not.
    Exponential integrators: Lu et al. 2022; a corrector without evaluations: Zhao et al., "UniPC", 2023.
    Order `points` + 1 once started (measured; 3 with None); started at order 1, and the last step to t = 0 is E[x0 | x_t].
    One evaluation a step. Finite from alpha = 0 on.
    """

    points: int | None = None
    power: float = 0.25
    free_start: bool = True
    evaluations = 1
    carried = 5

    def __post_init__(self) -> None:
        if self.points is not None and not 1 <= self.points <= 4:
            raise UserError(f"exp-adams needs points between 1 and 4, not {self.points}")
        if not 0.1 <= self.power <= 2:
            raise UserError(f"exp-adams needs power between 0.1 and 2, not {self.power}")

    @property
    def order(self) -> int:
        return _POINTS if self.points is None else 1 + self.points

    def intervals(self, process: Process, steps: int) -> int:
        first = half_logsnr(process, torch.ones((), dtype=torch.float64))
        return steps + int(self.free_start and bool(first <= FREE_BELOW))

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        points, corrector, share = (self.points, self.points, 1.0) if self.points else _by_default(len(t))
        lam = half_logsnr(process, times)
        lam_s, levels = lam[1:], levels_of(lam, self.power)
        free = free_first(process, times, self.free_start)
        answered = torch.where(torch.cat([free, free[-1:] & False]), torch.nan, levels)  # no answer there to go through
        known = former(answered, points - 1)
        step = exponential_step(process, t, s, 0.0)
        count, inner = usable([-u for u in known]), torch.isfinite(lam_s)
        predict = [[step.on_data]] + [level_weights(step, lam_s, known[:p], self.power) for p in range(2, points + 1)]
        weights = choose(torch.where(inner, count, 1), _cautious(predict, share))
        correct = [level_weights(step, lam_s, [levels[1:], *known[:p]], self.power) for p in range(1, corrector + 1)]
        after = choose(torch.where(inner & (s < t), count.clamp(max=corrector), 0), correct)
        after = [torch.where(free, step.on_data if i == 0 else 0.0, w) for i, w in enumerate(after)]
        # the corrector of step k - 1 is made in step k, when the answer at its end is there
        late = [torch.cat([torch.zeros_like(w[:1]), w[:-1]]) for w in after]
        answers = [basis.D[0], *basis.h[1:]]
        x = torch.where(late[0] != 0, basis.h[0] + weighted(late, answers), basis.x)
        carried = step.on_x * x
        alpha, sigma = process.scales(t)
        white = step.on_data * alpha / (alpha.square() + sigma.square()) * basis.x
        out = carried + torch.where(free, white, weighted(weights, answers))
        asked = torch.where(free, 0 * basis.D[0], basis.D[0])
        return Forms([(t, basis.x)], out, [carried, asked, *basis.h[1 : self.carried - 1]])
