"""A noise schedule that is learned with the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.process import Process, unit_scales
from sfumato.errors import UserError

_CLEAN = 0.001  # share of time from exactly clean data to the first log-SNR that is learned
_SLOPE = 12.0  # of the sigmoids at the start: neighbours overlap, so that their sum is nearly straight


@final
class Learned(nn.Module, Process, name="learned"):
    """A variance-preserving process whose log-SNR is a monotone network, trained by the objective `elbo`.

        lambda(t) = high - (high - low) q(r) - 2 ln min(t / t0, 1),   r = max(t - t0, 0) / (1 - t0),   t0 = 0.001
        q(r) = (m(r) - m(0)) / (m(1) - m(0)),   m(r) = w r + sum_j a_j sigmoid(b_j (r - c_j)),   w, a, b > 0

    Learned between log-SNR `high` at t0 and `low` at t = 1; before t0 a fixed law reaches exactly clean data at t = 0. At
    the start lambda is nearly linear. Kingma et al., "Variational Diffusion Models", 2021, appendix H, with two layers.

    As a function of time it gives no gradient to its weights: a schedule that could would make any other loss small by
    avoiding the hard levels of noise. `learned_logsnr` does. The weights are float32 on the model's device, whatever type
    the network is cast to; schedules are computed in float64 on the CPU, so on a GPU each call waits for them.
    """

    def __init__(self, *, high: float = 10.0, low: float = -10.0, width: int = 32) -> None:
        super().__init__()
        if not low < high:
            raise UserError(f"a learned process needs low < high, not {low} and {high}")
        if width < 1:
            raise UserError(f"a learned process needs width >= 1, not {width}")
        self.high, self.low, self.width = high, low, width
        one = torch.ones(width)
        self.straight = nn.Parameter(_inverse_softplus(torch.full((1,), 0.5)))
        self.sizes = nn.Parameter(_inverse_softplus(0.5 * one / width))
        self.steepness = nn.Parameter(_inverse_softplus(_SLOPE * one))
        self.centres = nn.Parameter((torch.arange(width) + 0.5) / width)

    def __repr__(self) -> str:
        return f"Learned(high={self.high}, low={self.low}, width={self.width})"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved with the model, but never cast: a schedule in half precision has steps."""

        def move(v: Tensor) -> Tensor:
            return v.to(fn(v[:0]).device)

        moved: Self = super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return moved

    def learned_logsnr(self, t: Tensor, *, frozen: bool = False) -> Tensor:
        """lambda(t), float64 on t's device; differentiable in the weights too unless `frozen`."""
        weights = (self.straight, self.sizes, self.steepness, self.centres)
        w, a, b, c = ((p.detach() if frozen else p).to(t.device, torch.float64) for p in weights)
        w, a, b = F.softplus(w), F.softplus(a), F.softplus(b)

        def m(r: Tensor) -> Tensor:
            return w[0] * r + (a * torch.sigmoid(b * (r[..., None] - c))).sum(-1)

        r = ((t.double() - _CLEAN) / (1 - _CLEAN)).clamp(min=0)
        first, last = m(r.new_zeros(())), m(r.new_ones(()))
        q = (m(r) - first) / (last - first)
        return self.high - (self.high - self.low) * q - 2 * (t / _CLEAN).clamp(max=1).log()

    def alpha(self, t: Tensor) -> Tensor:
        return unit_scales(self.learned_logsnr(t, frozen=True))[0]

    def sigma(self, t: Tensor) -> Tensor:
        return unit_scales(self.learned_logsnr(t, frozen=True))[1]

    def time(self, logsnr: Tensor) -> Tensor:
        early: Tensor = _CLEAN * torch.exp((self.high - logsnr) / 2)
        known = logsnr >= self.high
        return early if bool(known.all()) else torch.where(known, early, super().time(logsnr))

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return unit_scales(logsnr)


def _inverse_softplus(v: Tensor) -> Tensor:
    return v + torch.log(-torch.expm1(-v))
