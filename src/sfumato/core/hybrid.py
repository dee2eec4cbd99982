"""Learning the variance of the reverse steps along with the mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.denoiser import NetDenoiser
from sfumato.core.objective import Loss, Objective
from sfumato.core.process import Process, lift
from sfumato.core.random import Draws
from sfumato.core.weighting import Unit, Weighting
from sfumato.errors import UserError


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) | N(other)) elementwise, in nats.

    (ln V' - ln V + V / V' + (mean - mean')^2 / V' - 1) / 2
    """
    gap = other_log_variance - log_variance
    return 0.5 * (gap + torch.expm1(-gap) + (mean - other_mean).square() * torch.exp(-other_log_variance))


@final
@dataclass(frozen=True)
class HybridLoss(Objective, name="hybrid"):
    """L_simple + lambda L_vlb on a chain of `steps` equal steps of time, for a network with a learned variance.

        L_simple = w |F - F*|^2 at t = k / steps,   L_vlb = sum_k KL(q(x_s | x_t, x0) | p(x_s | x_t)),   s = (k - 1) / steps

    p has the posterior's mean at the network's E[x0 | x_t], detached, so that L_vlb trains the variance alone, and
    ln variance = v ln large + (1 - v) ln small (`Process.variances`). Both are means over the elements of a sample, the KL
    in nats; the sum over k is `steps` times the mean of the k drawn.

    k = 1 has no term: t = 0 is exactly clean, so `small` is 0, the last step returns E[x0 | x_t] whatever v is, and the
    decoder's likelihood has nothing left to train here.
    weighting: of L_simple. Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, eq. 15-16.
    Raises UserError for a denoiser without a learned variance.
    """

    learns_variance = True

    steps: int = 1000
    lambda_vlb: float = 0.001
    weighting: Weighting = field(default_factory=Unit)

    def __post_init__(self) -> None:
        if self.steps < 2 or not self.lambda_vlb >= 0:
            raise UserError(f"hybrid needs steps >= 2 and lambda_vlb >= 0, not {self.steps} and {self.lambda_vlb}")

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        k = (draws.spread("times") * self.steps).ceil().clamp(1, self.steps)
        return self.at(denoiser, x0, cond, k, draws.normal(x0.shape[1:], device=x0.device))

    def at(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, k: Tensor, eps: Tensor) -> Loss:
        """The same at given steps k (B,) float64 of 1 ... steps and noise (B, *S)."""
        t, process = k / self.steps, denoiser.process
        x_t = process.diffuse(x0, eps, t)
        out, v, c = denoiser.outputs(x_t, t, cond)
        if v is None:
            raise UserError(
                "objective=hybrid needs a network with a learned variance: NetDenoiser(learned_variance=True)"
            )
        target = lift(c.k_x0, x0) * x0 + lift(c.k_eps, x0) * eps
        error = (out.float() - target.float()).square().flatten(1).mean(1)
        simple = lift(self.weighting(process, t, c), error) * error
        x0_hat = lift(c.c_skip, x0) * x_t + lift(c.c_out, x0) * out.detach().to(x0.dtype)
        vlb = self.kl(process, x0, x0_hat, x_t, v, k).to(simple)
        return Loss((simple + self.lambda_vlb * self.steps * vlb).mean(), error.detach(), t)

    def kl(self, process: Process, x0: Tensor, x0_hat: Tensor, x_t: Tensor, v: Tensor, k: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x0) | p(x_s | x_t)) of step k in nats, the mean over a sample's elements; 0 at k = 1. (B,)."""
        inside = k.clamp(min=2)  # k = 1 is computed as k = 2 and then left out
        t, s = inside / self.steps, (inside - 1) / self.steps
        small, large = (value.log() for value in process.variances(t, s))
        log_variance = lift(small, v) + v * lift(large - small, v)
        true, ours = process.posterior(x0, x_t, t, s).mean, process.posterior(x0_hat, x_t, t, s).mean
        each = gaussian_kl(true, lift(small, v), ours, log_variance)
        mean = each.flatten(1).mean(1)
        return lift((k > 1).to(k.dtype), mean) * mean
