"""Whether a walk holds what one step promises: errors that a loss does not show, because every step adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser
from sfumato.core.random import keys, normal
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.model import Model
from sfumato.samplers import Euler, sample


@final
@dataclass(frozen=True)
class WalkError:
    """From items with noise of level u = sigma / (alpha + sigma) back to clean, by the ODE in `steps` of Euler.

        ratio = E |walk(x_u) - x0|^2 / E |D(x_u) - x0|^2,      D(x_u) = E[x0 | x_u]

    1 where x_u decides x0, 2 where a walk ends at an x0 that is drawn anew from those which x_u allows. An exact model of
    Gaussian data has 1 + (1 - r) / (1 + r), r the correlation of x0 and x_u. Far above 2, something grows on the way.
    """

    level: float = 0.6
    steps: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UserError(f"level={self.level}: a level of noise lies between 0 (clean) and 1 (noise alone)")
        if self.steps < 2:
            raise UserError(f"steps={self.steps}: a walk takes at least 2")

    def errors(self, denoiser: Denoiser, x0: Tensor, eps: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        """Mean squared errors of the walk and of its first step, (B,) each, for clean items and noise (B, *S)."""
        process = denoiser.process
        u = torch.linspace(self.level, 0, self.steps + 1, dtype=torch.float64)[:-1]
        times = torch.cat([process.time(2 * torch.log1p(-u) - 2 * u.log()), torch.zeros(1, dtype=torch.float64)])
        t = times[:1].expand(len(x0))
        x = process.diffuse(x0, eps, t)
        ends = (sample(denoiser, Euler(), x, times, cond), denoiser(x, t, cond))
        walked, one = ((found - x0).double().square().flatten(1).mean(1) for found in ends)
        return walked, one

    @torch.no_grad()
    def __call__(self, model: Model, data: Data, n: int = 64, *, batch: int = 64, seed: int = 0) -> float:
        """The ratio for `n` items of `data`, which is used as it is given, asked by what they are and without guidance.

        Item i has noise of (seed, i). Cost: `steps` passes of the network an item. The model is left in the mode that it was
        in.
        """
        if len(data) == 0:
            raise UserError("the held-out part of the data is empty; set held_out to a share above 0")
        walked, one, training = [], [], model.training
        model.eval()
        try:
            for start in range(0, n, batch):
                i = np.arange(start, min(start + batch, n))
                fetched = data.fetch(i * len(data) // n if n <= len(data) else i % len(data))
                x0 = model.codec.whiten(model.codec.encode(fetched.media.to(model.device)))
                eps = normal(keys(seed, "walk", i), x0.shape[1:], device=x0.device)
                found = self.errors(model.denoiser, x0, eps, model.condition(fetched.conditions))
                walked.append(found[0].cpu())
                one.append(found[1].cpu())
        finally:
            model.train(training)
        return float(torch.cat(walked).mean() / torch.cat(one).mean())
