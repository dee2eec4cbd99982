"""Score matching without a target: the score of lightly noised data is learned from its own divergence.

With s(x) the denoiser's score (`views.score`), x = alpha_t x0 + sigma_t eps, and every loss times sigma_t^2 / D to make
noise levels comparable:

    implicit     tr(ds/dx) + |s|^2 / 2
    sliced       v^T (ds/dx) v + (v^T s)^2 / 2         or, with less variance,  v^T (ds/dx) v + |s|^2 / 2

All have the minimiser of denoising score matching, up to a constant of the data the same value, and cost more: they
differentiate through the network twice. They are for comparing with the papers; `DenoisingLoss` is what to train with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.denoiser import NetDenoiser
from sfumato.core.objective import Loss, Objective
from sfumato.core.process import lift
from sfumato.core.random import Draws
from sfumato.core.times import Times, UniformTimes
from sfumato.core.views import score


def _noisy(denoiser: NetDenoiser, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    return denoiser.process.diffuse(x0, eps, t).detach().requires_grad_(True)


def _directional(s: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v^T (ds/dx) v of each sample, differentiable. (B,)."""
    (product,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
    return (product * v).flatten(1).sum(1)


def _loss(denoiser: NetDenoiser, x: Tensor, t: Tensor, each: Tensor) -> Loss:
    sigma = lift(denoiser.process.sigma(t), each)
    scaled = each * sigma.square() / x[0].numel()
    return Loss(scaled.mean(), scaled.detach(), t)


@final
@dataclass(frozen=True)
class ImplicitScoreMatching(Objective, name="implicit"):
    """tr(ds/dx) + |s|^2 / 2 with the exact trace: D backward passes, for D up to some hundred.

    Hyvarinen, "Estimation of Non-Normalized Statistical Models by Score Matching", 2005, eq. 4.
    """

    times: Times = field(default_factory=UniformTimes)

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        t = self.times(denoiser.process, draws.spread("times"))
        return self.at(denoiser, x0, cond, t, draws.normal(x0.shape[1:], device=x0.device))

    def at(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, t: Tensor, eps: Tensor) -> Loss:
        """The same at given times (B,) and noise (B, *S)."""
        with torch.enable_grad():
            x = _noisy(denoiser, x0, t, eps)
            s = score(denoiser, x, t, cond)
            each = s.square().flatten(1).sum(1) / 2
            for i in range(x[0].numel()):
                (row,) = torch.autograd.grad(s.flatten(1)[:, i].sum(), x, create_graph=True)
                each = each + row.flatten(1)[:, i]
        return _loss(denoiser, x, t, each)


@final
@dataclass(frozen=True)
class SlicedScoreMatching(Objective, name="sliced"):
    """v^T (ds/dx) v + |s|^2 / 2 for a random direction v of +1 and -1; `reduced=False`: (v^T s)^2 / 2 instead of |s|^2 / 2.

    One more backward pass, whatever the dimension. Unbiased for implicit score matching.
    Song et al., "Sliced Score Matching", 2019, eq. 7 and 8 (the variance-reduced form).
    """

    times: Times = field(default_factory=UniformTimes)
    reduced: bool = True

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        t = self.times(denoiser.process, draws.spread("times"))
        eps, v = (draws.normal(x0.shape[1:], stream, device=x0.device) for stream in ("noise", "slice"))
        return self.at(denoiser, x0, cond, t, eps, torch.where(v < 0, -1.0, 1.0))

    def at(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, t: Tensor, eps: Tensor, v: Tensor) -> Loss:
        """The same at given times (B,), noise (B, *S) and directions (B, *S)."""
        with torch.enable_grad():
            x, v = _noisy(denoiser, x0, t, eps), v.to(x0.dtype)
            s = score(denoiser, x, t, cond)
            size = s.square().flatten(1).sum(1) if self.reduced else (s * v).flatten(1).sum(1).square()
            each = _directional(s, x, v) + size / 2
        return _loss(denoiser, x, t, each)
