"""Exponential Adams methods: interpolation through former answers, integrated exactly against the exponential.

In data prediction, with v = lambda_s - lambda and a = 1 + eta,

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s a integral_0^h e^(-a v) x0(v) dv + sigma_s sqrt(1 - e^(-2 eta h)) z

where x0(v) is the polynomial through the answers at lambda_t, lambda_prev, ... (predictor), and, when the answer at s has
come, through that one too (corrector: it costs nothing, the next step needs that answer anyway).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from sfumato.core import Process
from sfumato.errors import UserError
from sfumato.samplers.dpmpp import Exponential, check_sde_eta, exponential_step
from sfumato.samplers.linear import Basis, Forms, LinearSolver
from sfumato.samplers.multistep import (
    choose,
    exponential_moments,
    former,
    half_logsnr,
    interpolation_weights,
    usable,
    weighted,
)

Variant = Literal["bh1", "bh2", "exact"]


def data_weights(step: Exponential, lam_s: Tensor, points: list[Tensor], eta: float) -> list[Tensor]:
    """Weights of the answers at `points` (lambda values) in the integral; their sum is step.on_data."""
    nodes = [(lam_s - point) / step.h for point in points]
    moments = exponential_moments((1 + eta) * step.h, len(points))
    shares = interpolation_weights(nodes, [m / moments[0] for m in moments])
    return [step.on_data * share for share in shares]


def _predictor(
    step: Exponential, lam_s: Tensor, lam: list[Tensor], order: int, eta: float, variant: Variant, alpha_s: Tensor
) -> list[Tensor]:
    """Weights of [D_k, D_(k-1), ...] of the predictor, each element at the order that its history allows."""
    allowed = torch.where(torch.isfinite(step.h), usable(lam).clamp(max=order), 1)
    by_order = [[step.on_data]]
    for p in range(2, order + 1):
        if p == 2 and variant != "exact":
            half = _half(step, alpha_s, variant) * step.h / (lam[0] - lam[1])
            by_order.append([step.on_data + half, -half])
        else:
            by_order.append(data_weights(step, lam_s, lam[:p], eta))
    return choose(allowed, by_order)


def _half(step: Exponential, alpha_s: Tensor, variant: Variant) -> Tensor:
    """alpha_s B(h) / 2 of UniPC's simplified second-order terms."""
    return step.on_data / 2 if variant == "bh2" else alpha_s * step.h / 2


def _corrector(
    step: Exponential, lam_s: Tensor, lam: list[Tensor], order: int, eta: float, variant: Variant, alpha_s: Tensor
) -> list[Tensor]:
    """Weights of [D at s, D_k, D_(k-1), ...] of the corrector of the step to s; all 0 where there is none to make."""
    possible = torch.isfinite(step.h) & torch.isfinite(lam[0]) & (step.h > 0)
    allowed = torch.where(possible, usable(lam).clamp(max=order), 0)
    by_order = []
    for p in range(1, order + 1):
        if p == 1 and variant != "exact":
            half = _half(step, alpha_s, variant)
            by_order.append([half, step.on_data - half])
        else:
            by_order.append(data_weights(step, lam_s, [lam_s, *lam[:p]], eta))
    return choose(allowed, by_order)


def predict_correct(
    process: Process,
    times: Tensor,
    basis: Basis,
    order: int,
    corrector: int,
    eta: float,
    variant: Variant,
) -> Forms:
    """The forms of a predictor of `order` and a corrector of order `corrector` + 1 (0: none).

    Carried: the corrected x's part of the next x before any answer (with the noise), then former answers.
    """
    t, s = times[:-1], times[1:]
    values = half_logsnr(process, times)
    lam, step = former(values, max(order, corrector) - 1), exponential_step(process, t, s, eta)
    base, answers = basis.h[0], [basis.D[0], *basis.h[1:]]
    weights = _predictor(step, values[1:], lam, order, eta, variant, process.alpha(s))
    x = basis.x
    if corrector:
        after = _corrector(step, values[1:], lam, corrector, eta, variant, process.alpha(s))
        # the corrector of step k - 1 is made in step k, when the answer at its end is there
        late = [torch.cat([torch.zeros_like(w[:1]), w[:-1]]) for w in after]
        x = torch.where(late[0] != 0, base + weighted(late, answers), x)
    carried = step.on_x * x + step.on_noise * basis.z[0]
    return Forms([(t, basis.x)], carried + weighted(weights, answers), [carried, *answers[: len(basis.h) - 1]])


@final
@dataclass(frozen=True)
class UniPC(LinearSolver, name="unipc"):
    """Predictor-corrector in data prediction; the corrector raises the order by one at no cost.

    points: of the predictor and of the corrector (1 to 4). variant: how the second-order terms are simplified
    (B(h) = h or 1 - e^(-h)), or `exact`: not at all. From three points on all are the same.
    Zhao et al., "UniPC", 2023, algorithms 1-2 and eq. 5 and 8; their p-point formulas are the unique ones that are exact
    for polynomials in lambda, and are computed as such.
    Order `points` + 1 once started (measured); started at order 1. One evaluation a step.
    """

    points: int = 3
    variant: Variant = "bh2"
    evaluations = 1
    carried = 5
    noises = 1

    def __post_init__(self) -> None:
        if not 1 <= self.points <= 4:
            raise UserError(f"unipc needs points between 1 and 4, not {self.points}")

    @property
    def order(self) -> int:
        return self.points + 1

    @property
    def stochastic(self) -> bool:
        return False

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        return predict_correct(process, times, basis, self.points, self.points, 0.0, self.variant)


@final
@dataclass(frozen=True)
class SASolver(LinearSolver, name="sa"):
    """Stochastic Adams predictor-corrector: exponential Adams steps of the reverse SDE with noise of strength eta.

    predictor, corrector: points (1 to 4; 0 for no corrector). eta = tau^2 of the paper, constant: 0 is the ODE.
    Xue et al., "SA-Solver", 2023, eq. 14 and 17 with exact integrals.
    Weak order 1 in general, its error for small eta that of the deterministic method. One evaluation a step.
    """

    predictor: int = 3
    corrector: int = 3
    eta: float = 1.0
    evaluations = 1
    carried = 5
    noises = 1

    def __post_init__(self) -> None:
        check_sde_eta("sa", self.eta)
        if not (1 <= self.predictor <= 4 and 0 <= self.corrector <= 4):
            raise UserError(
                f"sa needs 1 to 4 points of the predictor and 0 to 4 of the corrector, not {self.predictor}, {self.corrector}"
            )

    @property
    def order(self) -> int:
        if self.eta:
            return 1
        # the corrector uses an answer at the predicted place, which is off by the predictor's error
        return min(self.predictor, self.corrector) + 1 if self.corrector else self.predictor

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        return predict_correct(process, times, basis, self.predictor, self.corrector, self.eta, "exact")


@final
@dataclass(frozen=True)
class DEIS(LinearSolver, name="deis"):
    """Exponential Adams-Bashforth method in noise prediction: the polynomial runs through former eps.

        x_s = (alpha_s / alpha_t) x_t - alpha_s integral e^(-lambda) eps(lambda) d lambda

    Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2022, with polynomials in log rho
    (rho = sigma / alpha = e^(-lambda)); the multistep DPM-Solver of Lu et al. 2022 with exact integrals.
    points: 1 to 4. Order `points` once started (measured). One evaluation a step.
    """

    points: int = 3
    evaluations = 1
    carried = 3

    def __post_init__(self) -> None:
        if not 1 <= self.points <= 4:
            raise UserError(f"deis needs points between 1 and 4, not {self.points}")

    @property
    def order(self) -> int:
        return self.points

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        lam = former(half_logsnr(process, times), self.points - 1)
        step = exponential_step(process, t, s, 0.0)
        (alpha_t, sigma_t), alpha_s = process.scales(t), process.alpha(s)
        eps = torch.where(sigma_t > 0, 1 / sigma_t, torch.zeros_like(sigma_t)) * (basis.x - alpha_t * basis.D[0])
        order = torch.where(torch.isfinite(step.h), usable(lam).clamp(max=self.points), 1)
        history = [eps, *basis.h]
        first = step.on_x * basis.x + step.on_data * basis.D[0]
        nodes = [(point - lam[0]) / step.h for point in lam]
        moments = exponential_moments(step.h, self.points)
        scale = alpha_s * sigma_t / alpha_t * step.h
        out = first
        for p in range(2, self.points + 1):
            weights = [scale * w for w in interpolation_weights(nodes[:p], moments[:p])]
            out = torch.where(order == p, alpha_s / alpha_t * basis.x - weighted(weights, history), out)
        return Forms([(t, basis.x)], out, history[: len(basis.h)])
