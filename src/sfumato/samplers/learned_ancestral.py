"""Ancestral sampling with the variance that the network has learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process, lift
from sfumato.errors import UserError
from sfumato.samplers.base import Denoise, Noise, State, StepSolver


@final
@dataclass(frozen=True)
class LearnedAncestral(StepSolver, name="ddpm-learned"):
    """A draw of N(mean of q(x_s | x_t, E[x0 | x_t]), variance), the variance learned between its smallest and largest:

        ln variance = v ln large + (1 - v) ln small,   (small, large) = process.variances(t, s),  v from the network

    For models of `objective=hybrid`. Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, eq. 15.
    Better than `ddpm` when the steps are few; an ODE solver needs still fewer. Weak order 1. One evaluation a step. The
    last step, to t = 0, draws no noise.
    Raises UserError for a model without a learned variance, and for one with guidance around it: what guidance makes of
    the mean says nothing of the variance.
    """

    order = 1
    evaluations = 1

    @property
    def stochastic(self) -> bool:
        return True

    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        return ()

    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        x0, v = _answers(f, x, t)
        small, large = (c.log() for c in process.variances(t, s))
        last = lift(s == 0, x).bool()
        low, high = (lift(torch.where(s == 0, 0.0, c), x) for c in (small, large))
        deviation = torch.where(last, 0.0, torch.exp((low + v.to(x.dtype) * (high - low)) / 2))
        return torch.addcmul(process.posterior(x0, x, t, s).mean, deviation, noise(t, s)), state


def _answers(f: Denoise, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    with_variance = getattr(f, "with_variance", None)
    if with_variance is None:
        raise UserError(
            "solver=ddpm-learned is driven by a loop that does not pass the model's variance on; use `sample`"
        )
    x0, v = with_variance(x, t)
    return x0, v
