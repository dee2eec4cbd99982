"""The first-order family: DDIM, and the ancestral samplers that are its other end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from sfumato.core import Process
from sfumato.errors import UserError
from sfumato.samplers.linear import Basis, Forms, LinearSolver


def kept_noise(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """sigma_s / sigma_t: what is left of the noise, and 1 where there is none."""
    sigma_t, sigma_s = process.sigma(t), process.sigma(s)
    return torch.where(sigma_t > 0, sigma_s / sigma_t, torch.ones_like(sigma_t))


def ddim_form(process: Process, times: Tensor, x: Tensor, D: Tensor, z: Tensor, eta: float) -> Tensor:
    """The step of `DDIM` as a form, from the forms of x, D and the noise."""
    t, s = times[:-1], times[1:]
    (alpha_t, _), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
    ratio = kept_noise(process, t, s)
    tau = (eta**2 * (1 - (alpha_t / alpha_s * ratio).square())).clamp(0, 1)
    on_x = ratio * (1 - tau).sqrt()
    return on_x * x + (alpha_s - alpha_t * on_x) * D + sigma_s * tau.sqrt() * z


@final
@dataclass(frozen=True)
class DDIM(LinearSolver, name="ddim"):
    """Steps that keep the marginals, with a share `eta` of the noise drawn afresh.

        x_s = alpha_s x0 + sigma_s (sqrt(1 - tau) eps + sqrt(tau) z),   eps = (x_t - alpha_t x0) / sigma_t
        tau = eta^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)

    eta = 0 is deterministic, eta = 1 is ancestral sampling (`ddpm`).
    Song et al., "Denoising Diffusion Implicit Models", 2021, eq. 12 and 16, for any alpha and sigma.
    Order 1 (measured: tests/samplers/test_order.py). One evaluation a step. Finite where alpha_t = 0.
    """

    eta: float = 0.0
    order = 1
    evaluations = 1
    noises = 1

    def __post_init__(self) -> None:
        check_eta("ddim", self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        out = ddim_form(process, times, basis.x, basis.D[0], basis.z[0], self.eta)
        return Forms([(times[:-1], basis.x)], out)


def check_eta(name: str, eta: float) -> None:
    """Raise UserError unless 0 <= eta <= 1."""
    if not 0 <= eta <= 1:
        raise UserError(f"{name} needs 0 <= eta <= 1, not {eta}; 0 draws no noise, 1 is ancestral sampling")


@final
@dataclass(frozen=True)
class Ancestral(LinearSolver, name="ddpm"):
    """A draw from q(x_s | x_t, x0) with x0 replaced by the denoiser's estimate.

    variance: `posterior` (beta-tilde, the variance of q) or `forward` (beta: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2),
    which are right for data that is one point and for data that is white (Ho et al. 2020, section 3.2).
    Ho et al., "Denoising Diffusion Probabilistic Models", 2020, algorithm 2.
    Weak order 1. One evaluation a step. The last step, to t = 0, draws no noise.
    """

    variance: Literal["posterior", "forward"] = "posterior"
    order = 1
    evaluations = 1
    noises = 1

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
        a, kept = alpha_t / alpha_s, kept_noise(process, t, s).square()
        fresh = 1 - a.square() * kept  # share of the noise at t that has come since s
        variance = sigma_t.square() * fresh if self.variance == "forward" else sigma_s.square() * fresh
        deviation = torch.where(s > 0, variance, torch.zeros_like(variance)).clamp(min=0).sqrt()
        out = a * kept * basis.x + alpha_s * fresh * basis.D[0] + deviation * basis.z[0]
        return Forms([(t, basis.x)], out)


@final
@dataclass(frozen=True)
class EulerAncestral(LinearSolver, name="euler-a"):
    """Euler's step to less noise than was asked for, then noise up to it, in x / alpha.

        s_up^2 = eta^2 s^2 (1 - s^2 / t^2),   s_down^2 = s^2 - s_up^2   (t and s: sigma / alpha before and after the step)

    This is DDIM with the same eta, on every process: s_up / s is its sqrt(tau), and Euler's step in x / alpha is its
    deterministic one. It is listed because its name is known (Katherine Crowson, k-diffusion, 2022).
    Weak order 1. One evaluation a step.
    """

    eta: float = 1.0
    order = 1
    evaluations = 1
    noises = 1

    def __post_init__(self) -> None:
        check_eta("euler-a", self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        out = ddim_form(process, times, basis.x, basis.D[0], basis.z[0], self.eta)
        return Forms([(times[:-1], basis.x)], out)
