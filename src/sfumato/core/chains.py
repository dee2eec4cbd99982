"""Discrete chains: DDPM's tables of noise variances, as processes in continuous time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch
from torch import Tensor

from sfumato.core.process import Process, unit_scales
from sfumato.errors import UserError

Betas = Literal["linear", "scaled_linear", "cosine", "sigmoid"]


def beta_table(schedule: Betas, steps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """The noise variances beta_1 ... beta_T of a discrete chain. (T,) float64.

    linear: Ho et al. 2020, section 4. scaled_linear: linear in sqrt(beta), Rombach et al. 2022, appendix. cosine: Nichol &
    Dhariwal 2021, eq. 17, capped at 0.999. sigmoid: Jabri et al. 2022 ("Scalable Adaptive Computation", start -3, end 3).
    The ends are those of a chain of 1,000 steps; a shorter chain is scaled to reach the same noise.
    """
    scale = 1000 / steps
    if schedule == "linear":
        betas = torch.linspace(beta_start * scale, beta_end * scale, steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        low, high = math.sqrt(beta_start * scale), math.sqrt(beta_end * scale)
        betas = torch.linspace(low, high, steps, dtype=torch.float64).square()
    else:
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        if schedule == "cosine":
            kept = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        else:
            kept = torch.sigmoid(3 - 6 * t) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
        betas = 1 - kept[1:] / kept[:-1]
    return betas.clamp(max=0.999)


@final
@dataclass(frozen=True)
class DiscreteVP(Process, name="discrete-vp"):
    """The chain of DDPM: alpha at t = k / T is sqrt((1 - beta_1) ... (1 - beta_k)), linear in between; sigma^2 = 1 - alpha^2.

    Ho et al. 2020, eq. 4. `zero_terminal_snr` shifts and scales alpha so that alpha(1) = 0: Lin et al., "Common Diffusion
    Noise Schedules and Sample Steps are Flawed", 2023, algorithm 1. t = 0 is the clean data before the first step.
    """

    schedule: Betas = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UserError(f"discrete-vp needs steps >= 2, not {self.steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"discrete-vp needs 0 < beta_start <= beta_end < 1, not {self.beta_start} and {self.beta_end}"
            )

    @cached_property
    def _missing(self) -> Tensor:
        """1 - alpha at t = 0, 1/T, ..., 1: (T + 1,). The difference from 1 is kept, or small times lose their digits."""
        betas = beta_table(self.schedule, self.steps, beta_start=self.beta_start, beta_end=self.beta_end)
        log_alpha = torch.cat([betas.new_zeros(1), 0.5 * torch.log1p(-betas).cumsum(0)])
        missing = -torch.expm1(log_alpha)
        if self.zero_terminal_snr:
            # alpha' = (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T) on the chain; the clean start stays clean.
            first, last = missing[1], missing[-1]
            chain = 1 - (last - missing[1:]) * (1 - first) / (last - first)
            missing = torch.cat([missing[:1], chain])
            missing[-1] = 1.0
        return missing

    def _interpolate(self, t: Tensor) -> Tensor:
        table = self._missing.to(t.device)
        position = (t.clamp(0, 1) * self.steps).to(torch.float64)
        k = position.floor().clamp(max=self.steps - 1).long()
        return torch.lerp(table[k], table[k + 1], position - k).to(t.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self._interpolate(t)

    def sigma(self, t: Tensor) -> Tensor:
        missing = self._interpolate(t)
        return torch.sqrt(missing * (2 - missing))

    def time(self, logsnr: Tensor) -> Tensor:
        # 1 - sqrt(sigmoid(lambda)), without cancellation for large lambda
        kept = torch.sigmoid(logsnr.double())
        missing = torch.sigmoid(-logsnr.double()) / (1 + torch.sqrt(kept))
        table = self._missing.to(logsnr.device)
        k = (torch.searchsorted(table, missing, right=True) - 1).clamp(0, self.steps - 1)
        inside = (missing - table[k]) / (table[k + 1] - table[k])
        return ((k + inside) / self.steps).clamp(0, 1).to(logsnr.dtype)

    def scales_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return unit_scales(logsnr)
