"""CFG++: guidance of where the data is, and noise as the unconditional model sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Denoiser, Process
from sfumato.errors import UserError
from sfumato.guidance.base import Given, tile
from sfumato.guidance.contrast import NullContrast, Pair


@final
@dataclass(frozen=True)
class PlusPlus(NullContrast, name="cfg++"):
    """CFG++: x0 guided by lambda in [0, 1], noise added back from the unconditional estimate, for DDIM steps.

        x_s = alpha_s (D_null + lambda (D_cond - D_null)) + sigma_s eps_null,   eps_null = (x_t - alpha_t D_null) / sigma_t

    A DDIM step from t to s is x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D. So this is one on

        D = D_null + lambda / (1 - r) (D_cond - D_null),   r = (alpha_t sigma_s) / (alpha_s sigma_t)

    s is the next time of the sampling grid below t, so `wrap` needs `times`. It is defined by the step, not by the
    continuous flow: more steps guide more, a last step to s = 0 guides by lambda. With solvers that are not one DDIM
    (= euler) step between grid times the result is guidance by the weight above and no longer CFG++'s own update; a
    second evaluation of a step (heun) takes the weight of the step that begins there.
    lambda = 0 is unconditional; no lambda is neutral.

    Chung et al., "CFG++: Manifold-Constrained Classifier Free Guidance for Diffusion Models", 2024, algorithm 2.
    Cost: one pass over a batch of 2 B.
    """

    scale: float = 0.6

    def __post_init__(self) -> None:
        self.check(self.scale)

    @property
    def neutral(self) -> None:
        return None

    def check(self, scale: float) -> None:
        if not 0 <= scale <= 1:
            raise UserError(f"guidance={scale} is not a scale of cfg++; it lies between 0 (unconditional) and 1")

    def weights(self, scale: Tensor, process: Process, t: Tensor, times: Tensor | None) -> Tensor:
        assert times is not None  # checked by outermost
        grid = times.detach().to("cpu", torch.float64)
        rows = grid if grid.ndim > 1 else grid[:, None]
        rows = tile(rows.movedim(1, 0), len(t)).movedim(0, 1) if rows.shape[1] != 1 else rows
        rows = rows.reshape(*rows.shape, *[1] * (t.ndim + 1 - rows.ndim))
        below = torch.where(rows < t, rows, 0.0).amax(0)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(below)
        ratio = torch.where(t > 0, alpha_t * sigma_s / (alpha_s * sigma_t), 0.0)
        return scale / (1 - ratio)

    def outermost(self, pair: Denoiser, given: Given) -> Denoiser:
        assert isinstance(pair, Pair)
        if given.times is None:
            raise UserError("guidance=cfg++ depends on the steps; give wrap the sampling grid as times=")
        return pair
