"""The first-order family: DDIM, and the ancestral sampler of DDPM as one end of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process, lift
from sfumato.errors import UserError
from sfumato.samplers.base import Denoise, Noise, Solver, State, combine


@final
@dataclass(frozen=True)
class DDIM(Solver, name="ddim"):
    """Steps that keep the marginals, with a share `eta` of the noise drawn afresh.

        x_s = alpha_s x0 + sigma_s (sqrt(1 - tau) eps + sqrt(tau) z),   eps = (x_t - alpha_t x0) / sigma_t
        tau = eta^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)

    eta = 0 is deterministic, eta = 1 is ancestral sampling (`Ancestral`).
    Song et al., "Denoising Diffusion Implicit Models", 2021, eq. 12 and 16, for any alpha and sigma.
    Order 1 (measured: tests/samplers/test_order.py). One evaluation a step. Finite where alpha_t = 0.
    """

    eta: float = 0.0
    order = 1
    evaluations = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"ddim needs 0 <= eta <= 1, not {self.eta}")

    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        return ()

    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
        ratio = torch.where(sigma_t > 0, sigma_s / sigma_t, torch.ones_like(sigma_t))
        tau = (self.eta**2 * (1 - (alpha_t / alpha_s * ratio).square())).clamp(0, 1)
        on_x = ratio * (1 - tau).sqrt()
        new = combine(x, on_x, f(x, t), alpha_s - alpha_t * on_x)
        if self.eta:
            new = torch.addcmul(new, lift(sigma_s * tau.sqrt(), x), noise())
        return new, state


@final
@dataclass(frozen=True)
class Ancestral(Solver, name="ddpm"):
    """A draw from q(x_s | x_t, x0) with x0 replaced by the denoiser's estimate.

    Ho et al., "Denoising Diffusion Probabilistic Models", 2020, algorithm 2, with the posterior variance (beta-tilde).
    Weak order 1. One evaluation a step. The last step, to t = 0, draws no noise: the posterior's variance is 0 there.
    """

    order = 1
    evaluations = 1

    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        return ()

    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        mean, variance = process.posterior(f(x, t), x, t, s)
        return torch.addcmul(mean, variance.sqrt(), noise()), state
