"""Adaptive projected guidance: classifier-free guidance without the part that oversaturates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import lift
from sfumato.errors import UserError
from sfumato.guidance.base import check_interval, check_scale
from sfumato.guidance.contrast import Branches, NullContrast, dot, quotient


@final
@dataclass(frozen=True)
class Projected(NullContrast, name="apg"):
    """Adaptive projected guidance: D = D_cond + (w - 1) (d_orth + eta d_par), for high scales without oversaturation.

    d = D_cond - D_null, shortened to length `norm` where it is longer; d_par is its part along D_cond, <d, D_cond> D_cond /
    |D_cond|^2, and d_orth the rest. Inner products and lengths are of a whole sample, over its elements at t > 0.
    eta = 1 without `norm` is classifier-free guidance; below w = 1 it always is, so that w = 0 stays unconditional.

    Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models", 2024, section 4
    and algorithm 1; their length r is the Euclidean one, so it grows with the square root of a sample's size. Their momentum
    is left out: it is a sum over the steps before, and a denoiser has no memory (samples of one batch stand at different
    steps, and a step may ask twice).
    interval: guide only where low <= log-SNR <= high.
    Cost: one pass over a batch of 2 B where guidance acts.
    """

    scale: float = 5.0
    eta: float = 0.0
    norm: float | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        if not 0 <= self.eta <= 1:
            raise UserError(f"guidance eta must lie in [0, 1], not {self.eta}; 1 is classifier-free guidance")
        if self.norm is not None and not 0 < self.norm < float("inf"):
            raise UserError(f"guidance norm must be above 0 and finite, not {self.norm}; none is no limit")

    def combine(self, at: Branches) -> Tensor:
        update = at.where_acts(at.asked - at.other)
        if self.norm is not None:
            update = update * (self.norm / dot(update, update).sqrt()).clamp(max=1.0).to(update.dtype)
        along = at.where_acts(at.asked)
        share = quotient(dot(update, along), dot(along, along), 0.0).to(update.dtype)
        update = update + (self.eta - 1) * share * along
        guided = at.asked + lift(at.weights - 1, update) * update
        if bool((at.weights < 1).any()):
            guided = torch.where(lift(at.weights < 1, guided).bool(), super().combine(at), guided)
        return guided
