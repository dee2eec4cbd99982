"""Thresholds: estimates of x0 brought back into the range that media have.

A threshold acts on E[x0 | x_t], outside all guidance. Solvers work out eps from x_t and that, so it is recomputed after
clipping by construction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser
from sfumato.errors import UserError
from sfumato.guidance.base import Wrapped, lift_mask
from sfumato.registry import Registered

Bounds = tuple[Tensor, Tensor]  # (low, high) of x0, each (C,): what `Codec.bounds` gives


class Threshold(Registered, ABC, family="threshold"):
    """A rule that keeps x0 in range."""

    @abstractmethod
    def apply(self, x0: Tensor, low: Tensor, high: Tensor, ignore: Tensor | None) -> Tensor:
        """x0 (B, C, *S) in range; low and high broadcast against it. ignore: a mask of elements that are data already."""

    @final
    def wrap(self, denoiser: Denoiser, bounds: Bounds | None) -> Denoiser:
        """The denoiser with its estimates in range. bounds: (low, high), each (C,) or (), of x0."""
        if bounds is None:
            raise UserError(
                f"threshold={self.kind}: this codec's media have no range to keep to; leave it out, or use codec=pixels"
            )
        return _Kept(denoiser, self, *bounds)


@final
@dataclass(frozen=True)
class Static(Threshold, name="static"):
    """x0 clipped to the range of the media: [-1, 1] for pictures, before whitening.

    Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (in its code); Saharia et al., "Imagen", 2022, section 2.3.
    An estimate within the range is not changed. Cost: none to speak of.
    """

    def apply(self, x0: Tensor, low: Tensor, high: Tensor, ignore: Tensor | None) -> Tensor:
        return torch.maximum(torch.minimum(x0, high), low)


@final
@dataclass(frozen=True)
class Dynamic(Threshold, name="dynamic"):
    """x0 clipped to [-q, q] and divided by q, q a sample's own quantile of |x0| where that is above 1; for high scales.

    In units of the media, where their range is [-1, 1]. Saharia et al., "Photorealistic Text-to-Image Diffusion Models with
    Deep Language Understanding" (Imagen), 2022, section 2.3.
    quantile: the share of elements that are left unclipped. A sample with q <= 1 is clipped as by `static`.
    Cost: a sort of every sample at every evaluation.
    """

    quantile: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise UserError(f"threshold quantile must lie in (0, 1], not {self.quantile}")

    def apply(self, x0: Tensor, low: Tensor, high: Tensor, ignore: Tensor | None) -> Tensor:
        middle, half = (low + high) / 2, (high - low) / 2
        media = (x0 - middle) / half
        size = media.abs() if ignore is None else media.abs().masked_fill(ignore, float("nan"))
        size = size.flatten(1).to(torch.promote_types(x0.dtype, torch.float32))
        found = torch.quantile if ignore is None else torch.nanquantile
        q = found(size, self.quantile, dim=1).to(x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
        scaled = middle + half * torch.maximum(torch.minimum(media, q), -q) / q
        return torch.where(q > 1, scaled, torch.maximum(torch.minimum(x0, high), low))


@final
@dataclass(frozen=True)
class _Kept(Wrapped):
    rule: Threshold
    low: Tensor
    high: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        x0 = self.inner(x_t, t, cond)
        low, high = (
            bound.to(x0).reshape(-1, *[1] * (x0.ndim - 2)) if bound.ndim else bound.to(x0)
            for bound in (self.low, self.high)
        )
        clean = t <= 0
        if not bool(clean.any()):
            return self.rule.apply(x0, low, high, None)
        data = lift_mask(clean, x0)
        return torch.where(data, x0, self.rule.apply(x0, low, high, data.expand(x0.shape)))
