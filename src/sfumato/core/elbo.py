"""The variational bound in continuous time as an objective, and what it teaches a learned noise schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.denoiser import NetDenoiser
from sfumato.core.learned import Learned
from sfumato.core.objective import DenoisingLoss, Loss, Objective
from sfumato.core.random import Draws
from sfumato.core.weighting import Likelihood


@final
@dataclass(frozen=True)
class ELBO(Objective, name="elbo"):
    """The diffusion part of the negative ELBO between log-SNR `high` and the process's end, in nats a dimension:

        1/2 int_{lambda(1)}^{high} E |eps - eps_hat|^2 / D  d lambda,   t ~ U(time(high), 1) with low discrepancy

    Its mean does not depend on the schedule between the ends (Kingma et al., "Variational Diffusion Models", 2021, eq.
    17-18), its variance does. With the process `learned` the schedule is trained to lower that variance (their appendix
    I.2), at next to no cost: the density of the drawn log-SNRs moves toward the root of the mean squared error at each.

    For likelihoods. Small noise counts most, so pictures look worse than with a loss such as `denoising` at its defaults.
    """

    high: float = 10.0

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        first = denoiser.process.time(torch.tensor(self.high, dtype=torch.float64))
        t = torch.lerp(first, torch.ones_like(first), draws.spread("times"))
        return self.at(denoiser, x0, cond, t, draws.normal(x0.shape[1:], device=x0.device))

    def at(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, t: Tensor, eps: Tensor) -> Loss:
        """The same at given times (B,), taken as drawn from U(time(high), 1), and noise (B, *S)."""
        process = denoiser.process
        loss = DenoisingLoss(weighting=Likelihood()).at(denoiser, x0, cond, t, eps)
        span = 1 - float(process.time(torch.tensor(self.high, dtype=torch.float64)))
        value = span * loss.value
        if isinstance(process, Learned):
            weight = Likelihood()(process, t, denoiser.parameterization.coeffs(*process.scales(t)))
            spread = log_second_moment(process, weight * loss.per_sample.to(weight), t)
            value = value + (spread - spread.detach()).to(value)
        return Loss(value, loss.per_sample, loss.t)


def log_second_moment(process: Learned, losses: Tensor, t: Tensor) -> Tensor:
    """A number () whose gradient in the schedule's weights is that of ln E[L^2], L the weighted losses (B,) at t (B,).

    With l(lambda) the loss for one unit of log-SNR and p the density of log-SNR that the schedule draws,
    E[L^2] = int l^2 / p d lambda. The log-SNRs that were drawn are held fixed and 1 / p = -d lambda / dt is followed to
    where the changed schedule has them, so nothing is differentiated through the network. As E[L] is fixed, less E[L^2] is
    less variance; the logarithm makes the step independent of the loss's scale.
    """
    slope = process.logsnr_slope(t)
    here = process.learned_logsnr(t)
    moved = t + (here - here.detach()) / slope  # the time at which the changed schedule has the same log-SNR
    (steep,) = torch.autograd.grad(process.learned_logsnr(moved).sum(), moved, create_graph=True)
    squares = losses.detach().cpu().double().square()
    return (squares * -steep / slope).mean() / squares.mean().clamp(min=torch.finfo(torch.float64).tiny)
