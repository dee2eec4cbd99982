"""Classifier-free guidance: away from what anything could be, towards what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.guidance.base import check_interval, check_scale
from sfumato.guidance.contrast import Branches, NullContrast, dot, quotient


@final
@dataclass(frozen=True)
class ClassifierFree(NullContrast, name="cfg"):
    """D = D_null + w (D_cond - D_null) on E[x0 | x_t]; w = 1 is no guidance, w = 0 unconditional.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6 (their w is this one minus 1).
    interval: guide only where low <= log-SNR <= high (Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval").
    rescale: pull the deviation of D back towards that of D_cond, by this share (Lin et al. 2023, eq. 15-16, here on x0).
    Cost: one pass over a batch of 2 B where guidance acts, of B where it does not.
    """

    scale: float = 3.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance rescale must lie in [0, 1], not {self.rescale}")

    def combine(self, at: Branches) -> Tensor:
        guided = super().combine(at)
        if not self.rescale:
            return guided
        factor = quotient(_deviation(at.asked, at), _deviation(guided, at), 1.0)
        return guided * torch.lerp(torch.ones_like(factor), factor, self.rescale).to(guided.dtype)


def _deviation(x: Tensor, at: Branches) -> Tensor:
    """The standard deviation of every sample, (B, 1, ...), over the elements that are guided."""
    ones = at.where_acts(torch.ones_like(x))
    count = dot(ones, ones)
    centred = at.where_acts(x - (dot(x, ones) / count.clamp(min=1)).to(x.dtype))
    return (dot(centred, centred) / (count - 1).clamp(min=1)).sqrt()
