"""DPM-Solver++: exponential integrators in data prediction, with a share eta of the reverse SDE's noise.

With lambda = log(alpha / sigma) and h = lambda_s - lambda_t,

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) D + sigma_s sqrt(1 - e^(-2 eta h)) z

and the methods differ in D, an estimate of the clean data between t and s. eta = 0 is the ODE, eta = 1 the reverse SDE.
Lu et al., "DPM-Solver++", 2022, https://arxiv.org/abs/2211.01095. A step is first order where a lambda it needs is not
finite: the one that starts at alpha = 0, the one after it in multistep methods, and the last one to t = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process
from sfumato.errors import UserError
from sfumato.samplers.ddim import kept_noise
from sfumato.samplers.linear import Basis, Forms, LinearSolver
from sfumato.samplers.multistep import former, half_logsnr, usable


@final
@dataclass(frozen=True)
class Exponential:
    """The coefficients of an exponential step: of x, of the data estimate, of the noise, and h."""

    on_x: Tensor
    on_data: Tensor
    on_noise: Tensor
    h: Tensor


def exponential_step(process: Process, t: Tensor, s: Tensor, eta: float) -> Exponential:
    """The step from t to s; all finite, also from alpha = 0 and to sigma = 0."""
    ratio, h = kept_noise(process, t, s), half_logsnr(process, s) - half_logsnr(process, t)
    alpha_s, sigma_s = process.scales(s)
    if eta == 0:  # without e^(-0 inf)
        return Exponential(ratio, alpha_s - process.alpha(t) * ratio, torch.zeros_like(ratio), h)
    noise = sigma_s * (-torch.expm1(-2 * eta * h)).clamp(min=0).sqrt()
    return Exponential(ratio * torch.exp(-eta * h), alpha_s * -torch.expm1(-(1 + eta) * h), noise, h)


def check_sde_eta(name: str, eta: float) -> None:
    """Raise UserError unless 0 <= eta <= 1."""
    if not 0 <= eta <= 1:
        raise UserError(f"{name} needs 0 <= eta <= 1, not {eta}; 0 is the ODE, 1 the reverse SDE")


def _finite(value: Tensor) -> Tensor:
    return torch.where(torch.isfinite(value), value, torch.zeros_like(value))


@final
@dataclass(frozen=True)
class DPMpp2M(LinearSolver, name="dpmpp-2m"):
    """Second-order multistep solver in data prediction.

        D = (1 + k) x0_t - k x0_prev,   k = h / (2 (lambda_t - lambda_prev))

    Lu et al. 2022, algorithm 2; with eta > 0 the SDE-DPM-Solver++(2M) of their appendix.
    Order 2 (measured: tests/samplers/test_order.py), weak order 1 with eta > 0. One evaluation a step.
    """

    eta: float = 0.0
    evaluations = 1
    carried = 1
    noises = 1

    def __post_init__(self) -> None:
        check_sde_eta("dpmpp-2m", self.eta)

    @property
    def order(self) -> int:
        return 1 if self.eta else 2

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        lam = former(half_logsnr(process, times), 1)
        step = exponential_step(process, times[:-1], times[1:], self.eta)
        k = torch.where(usable(lam) > 1, _finite(step.h / (2 * (lam[0] - lam[1]))), 0.0)
        data = (1 + k) * basis.D[0] - k * basis.h[0]
        out = step.on_x * basis.x + step.on_data * data + step.on_noise * basis.z[0]
        return Forms([(times[:-1], basis.x)], out, [basis.D[0]])


@final
@dataclass(frozen=True)
class DPMpp3M(LinearSolver, name="dpmpp-3m"):
    """Third-order multistep solver in data prediction: a parabola through the last three estimates.

        D = x0_t + p_1 d1 + p_2 d2,   d1, d2: first and second divided differences at t, in units of the step

    weighted by the exact integrals of the parabola (below). Lu et al. 2022, appendix B (multistep, order 3).
    Order 3 once started (measured), one evaluation a step; its first two steps are of order 1 and 2.
    published: halve the weight of d2, as the authors' code does and with it every library: the term of a Taylor series is
    f'' / 2 and d2 is already that, so the error is of order 2 (measured). Only for the same pictures as theirs.
    """

    eta: float = 0.0
    published: bool = False
    evaluations = 1
    carried = 2
    noises = 1

    def __post_init__(self) -> None:
        check_sde_eta("dpmpp-3m", self.eta)

    @property
    def order(self) -> int:
        return 1 if self.eta else (2 if self.published else 3)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        lam = former(half_logsnr(process, times), 2)
        step = exponential_step(process, times[:-1], times[1:], self.eta)
        alpha_s, h, a = process.alpha(times[1:]), step.h, 1 + self.eta
        order = torch.where(torch.isfinite(h), usable(lam), 1)
        r0, r1 = (lam[0] - lam[1]) / h, (lam[1] - lam[2]) / h
        # integrals of v and v^2 / 2 (v in units of h) against a h e^(-a h (1 - v)), as phi functions
        phi2 = torch.expm1(-a * h) / (a * h) + 1
        phi3 = phi2 / (a * h) - 0.5
        D0, D1, D2 = basis.D[0], basis.h[0], basis.h[1]
        first, second = (D0 - D1) / r0, (D1 - D2) / r1
        third = (first - second) / (r0 + r1)
        one, zero = torch.ones_like(h), torch.zeros_like(h)
        by_order = {
            1: zero * D0,
            2: 0.5 * -torch.expm1(-a * h) * (one * first),
            3: phi2 * (first + r0 * third) - (1 if self.published else 2) * phi3 * third,
        }
        more = by_order[1]
        for p in (2, 3):
            more = torch.where(order == p, by_order[p], more)
        out = step.on_x * basis.x + step.on_data * D0 + alpha_s * more + step.on_noise * basis.z[0]
        return Forms([(times[:-1], basis.x)], out, [D0, D1])


@final
@dataclass(frozen=True)
class DPMpp2S(LinearSolver, name="dpmpp-2s"):
    """Second-order singlestep solver in data prediction: a second estimate halfway in lambda.

        D = x0_t + (x0_mid - x0_t) / (2 r),   lambda_mid = lambda_t + r h,  r = 1/2

    Lu et al. 2022, algorithm 1. Order 2. Two evaluations a step, one where lambda is not finite at an end.
    """

    order = 2
    evaluations = 2

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        lam_t, lam_s = half_logsnr(process, t), half_logsnr(process, s)
        single = ~(torch.isfinite(lam_t) & torch.isfinite(lam_s) & (lam_s > lam_t))
        middle = torch.where(single, t, process.time(torch.where(single, 0.0, lam_t + lam_s)))
        half, whole = exponential_step(process, t, middle, 0.0), exponential_step(process, t, s, 0.0)
        place = torch.where(single, basis.x, half.on_x * basis.x + half.on_data * basis.D[0])
        data = torch.where(single, basis.D[0], basis.D[1])  # r = 1/2: the estimate at the middle alone
        return Forms([(t, basis.x), (middle, place)], whole.on_x * basis.x + whole.on_data * data)
