"""Exact denoisers and batches for tests of guidance."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.core import VE, VP, Cond, Cosine, Denoiser, DiscreteVP, Flow, Process
from sfumato.testing import GaussianDenoiser

PROCESSES: tuple[Process, ...] = (Flow(), Cosine(), VP(), VE(), DiscreteVP("linear"))
TIMES = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
ASKED = Cond(vector=torch.tensor([[1.0], [2.0], [3.0], [4.0]]).double())
NULL = Cond(vector=torch.tensor([[0.0], [0.5], [-0.5], [1.0]]).double())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = noise(4, 5)


@dataclass
class Squared:
    """A denoiser whose answers for two conditions do not lie along one direction: that of a Gaussian, bent."""

    process: Process
    rows: list[int] = field(default_factory=list)  # how many rows it was asked for, call by call

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        self.rows.append(len(x_t))
        x0 = GaussianDenoiser(self.process)(x_t, t)
        if cond is None or cond.vector is None:
            return x0
        shift = cond.vector.to(x_t).reshape(-1, *[1] * (x_t.ndim - 1))
        return x0 + torch.sin(3 * x0 + shift) + 0.3 * shift


def both(inner: Denoiser, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(D_cond, D_null)."""
    return inner(x, t, ASKED), inner(x, t, NULL)
