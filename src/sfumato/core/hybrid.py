"""Learning the variance of the reverse steps along with the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.denoiser import NetDenoiser
from sfumato.core.objective import Loss, Objective, Planned
from sfumato.core.process import lift, on_device
from sfumato.core.random import Draws, training_noise
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

    @property
    def separable(self) -> bool:
        return True

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        return self.at(
            denoiser, x0, cond, self._steps(draws), training_noise(on_device(draws.keys(), x0.device), x0.shape[1:])
        )

    def at(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, k: Tensor, eps: Tensor) -> Loss:
        """The same at given steps k (B,) float64 of 1 ... steps and noise (B, *S)."""
        terms = on_device(self._terms(denoiser, k).to(x0.dtype), x0.device)
        return Loss(*self._compute(denoiser, x0, cond, eps, terms), k / self.steps)

    def plan(self, denoiser: NetDenoiser, draws: Draws) -> Planned:
        k = self._steps(draws)
        return Planned({"terms": self._terms(denoiser, k).float(), "keys": draws.keys()}, k / self.steps)

    def compute(
        self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, planned: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        eps = training_noise(planned["keys"], x0.shape[1:])
        return self._compute(denoiser, x0, cond, eps, planned["terms"])

    def _steps(self, draws: Draws) -> Tensor:
        return (draws.spread("times") * self.steps).ceil().clamp(1, self.steps)

    def _terms(self, denoiser: NetDenoiser, k: Tensor) -> Tensor:
        """What is known of steps k (B,), (13, B) float64: the scales, the coefficients, the weight, and of the KL the log of
        `small`, that of large / small, the pull of x0 on the posterior's mean, and whether the step has a KL."""
        t, process = k / self.steps, denoiser.process
        c = denoiser.parameterization.coeffs(*process.scales(t))
        inside = k.clamp(min=2)  # k = 1 is computed as k = 2 and then left out
        late, early = inside / self.steps, (inside - 1) / self.steps
        small, large = (value.log() for value in process.variances(late, early))
        one = torch.ones_like(k)
        pull = process.posterior(one, 0 * one, late, early).mean
        weight = self.weighting(process, t, c)
        parts = (*process.scales(t), c.c_in, c.c_noise, c.k_x0, c.k_eps, weight, c.c_skip, c.c_out)
        return torch.stack([part.expand(k.shape) for part in (*parts, small, large - small, pull, (k > 1).double())])

    def _compute(
        self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, eps: Tensor, terms: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma, c_in, c_noise, k_x0, k_eps, weight, c_skip, c_out, small, gap, pull, more = terms.unbind(0)
        x_t = lift(alpha, x0) * x0 + lift(sigma, x0) * eps
        out, v = denoiser.asked(x_t, c_in, c_noise, cond)
        if v is None:
            raise UserError(
                "objective=hybrid needs a network with a learned variance: NetDenoiser(learned_variance=True)"
            )
        target = lift(k_x0, x0) * x0 + lift(k_eps, x0) * eps
        error = (out.float() - target.float()).square().flatten(1).mean(1)
        x0_hat = lift(c_skip, x0) * x_t + lift(c_out, x0) * out.detach().to(x0.dtype)
        apart = lift(pull, x0) * (x0 - x0_hat)  # of the two means
        small = lift(small, x0)
        each = gaussian_kl(apart, small, torch.zeros_like(apart), small + v * lift(gap, x0))
        vlb = lift(more, error) * each.flatten(1).mean(1).to(error.dtype)
        simple = lift(weight, error) * error
        return (simple + self.lambda_vlb * self.steps * vlb).mean(), error.detach()
