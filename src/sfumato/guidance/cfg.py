"""Classifier-free guidance: away from what anything could be, towards what was asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Process, lift
from sfumato.errors import UserError
from sfumato.registry import Registered


class Guidance(Registered, ABC, family="guidance"):
    """Settings of a guidance. `wrap` makes a denoiser of a denoiser, so guidances nest and know no solver."""

    @abstractmethod
    def wrap(self, denoiser: Denoiser, null: Cond, scale: Tensor | None = None) -> Denoiser:
        """null: what 'anything' is (batch B), or a negative prompt. scale: (B,), one a sample, instead of the setting."""


@final
@dataclass(frozen=True)
class ClassifierFree(Guidance, name="cfg"):
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
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance rescale must lie in [0, 1], not {self.rescale}")
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise UserError(
                f"the guidance interval must be (low, high) in log-SNR with low < high, not {self.interval}"
            )

    def wrap(self, denoiser: Denoiser, null: Cond, scale: Tensor | None = None) -> Denoiser:
        if scale is None:
            scale = torch.full((len(null),), self.scale, dtype=torch.float64)
        for value in scale.tolist():
            check_scale(value)
        return _Guided(denoiser, null, scale.to("cpu", torch.float64), self.interval, self.rescale)


def check_scale(scale: float) -> None:
    """Raise UserError for a guidance scale that means nothing."""
    if not 0 <= scale < float("inf"):
        raise UserError(
            f"guidance={scale} is not a scale; 1 is no guidance, 2 to 8 are usual, and it can't be negative"
        )


@final
@dataclass(frozen=True)
class _Guided:
    inner: Denoiser
    null: Cond
    scale: Tensor  # (B,) float64 on the CPU: which passes are needed is known without asking the device
    interval: tuple[float, float] | None
    rescale: float

    @property
    def process(self) -> Process:
        return self.inner.process

    def _weights(self, t: Tensor) -> Tensor:
        scale = self.scale.reshape(self.scale.shape + (1,) * (t.ndim - 1)).expand(t.shape)
        if self.interval is None:
            return scale
        logsnr = self.process.logsnr(t)
        inside = (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])
        return torch.where(inside, scale, torch.ones_like(scale))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        weights = self._weights(t)
        if cond is None or bool((weights == 1).all()):
            return self.inner(x_t, t, cond)
        if bool((weights == 0).all()):
            return self.inner(x_t, t, self.null)
        both = self.inner(torch.cat([x_t, x_t]), torch.cat([t, t]), Cond.cat([cond, self.null]))
        asked, anything = both.chunk(2)
        # lerp is exact at weight 1, so unguided rows of a mixed batch are what they would be alone
        guided = torch.lerp(anything, asked, lift(weights, x_t))
        return self._rescaled(guided, asked) if self.rescale else guided

    def _rescaled(self, guided: Tensor, asked: Tensor) -> Tensor:
        axes = tuple(range(1, guided.ndim))
        factor = asked.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp_min(
            torch.finfo(guided.dtype).tiny
        )
        return guided * torch.lerp(torch.ones_like(factor), factor, self.rescale)
