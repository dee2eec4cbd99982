"""CFG-Zero*: classifier-free guidance whose unconditional velocity is brought to the right length first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, lift
from sfumato.errors import UserError
from sfumato.guidance.base import Given, Wrapped, check_interval, check_scale, lift_mask, spread
from sfumato.guidance.contrast import Branches, NullContrast, dot, quotient


@final
@dataclass(frozen=True)
class ZeroStar(NullContrast, name="cfg-zero"):
    """CFG-Zero*: v = s v_null + w (v_cond - s v_null), s = <v_cond, v_null> / |v_null|^2 for every sample.

    The velocity of any process is that of the straight path it lies on up to scale and time: with z = x_t / (alpha +
    sigma) and u = sigma / (alpha + sigma), z = (1 - u) x0 + u eps, so v = eps - x0 = (z - D) / u and D = z - u v. For `flow`
    z = x_t and u = t. As v_null is trained on everything it is the better estimate while a model is young; s takes out
    what of it is only length.
    zero_init: at times above 1 - zero_init the guided velocity is 0: D = z, and z stays where it is. On a uniform grid
    that is this share of the steps; no pass is made. For one-step solvers (euler, ddim, heun): a multistep solver would
    carry z on as if it were an estimate of x0.
    w = 1 is no guidance, w = 0 unconditional (s = 1), and neither is ever zeroed.

    Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", 2025,
    algorithm 1; they zero 4% of the steps.
    interval: guide only where low <= log-SNR <= high.
    Cost: one pass over a batch of 2 B where guidance acts.
    """

    scale: float = 3.0
    zero_init: float = 0.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        if not 0 <= self.zero_init < 1:
            raise UserError(f"guidance zero_init is a share of the walk, at least 0 and below 1, not {self.zero_init}")

    def combine(self, at: Branches) -> Tensor:
        alpha, sigma = at.process.scales(at.t)
        z = lift(1 / (alpha + sigma), at.x_t) * at.x_t
        asked, other = at.where_acts(z - at.asked), at.where_acts(z - at.other)  # u v
        if at.t.ndim > 1:  # u differs within a sample; where it is 0 nothing is guided
            slower = lift(torch.where(sigma > 0, (alpha + sigma) / sigma, 0.0), at.x_t)
            s = quotient(dot(slower * asked, slower * other), dot(slower * other, slower * other), 1.0)
        else:
            s = quotient(dot(asked, other), dot(other, other), 1.0)
        return at.asked + lift(1 - at.weights, asked) * (asked - s.to(asked.dtype) * other)

    def outermost(self, pair: Denoiser, given: Given) -> Denoiser:
        return _ZeroInit(pair, self.scales(given), self.zero_init) if self.zero_init else pair


@final
@dataclass(frozen=True)
class _ZeroInit(Wrapped):
    scale: Tensor
    share: float

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        scale = spread(self.scale, t)
        early = 1 - t < self.share * (1 - 1e-9)  # the K-th of N steps begins at K / N, give or take its rounding
        still = early & (scale != 1) & (scale != 0)
        if not bool(still.any()):
            return self.inner(x_t, t, cond)
        alpha, sigma = self.process.scales(t)
        z = lift(1 / (alpha + sigma), x_t) * x_t
        return z if bool(still.all()) else torch.where(lift_mask(still, x_t), z, self.inner(x_t, t, cond))
