"""DPM-Solver++: exponential integrators in data prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process, lift
from sfumato.samplers.base import Denoise, Noise, Solver, State, combine


@final
@dataclass(frozen=True)
class DPMpp2M(Solver, name="dpmpp-2m"):
    """Second-order multistep solver in data prediction.

        x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D,   D = (1 + k) x0_t - k x0_prev
        k = (lambda_s - lambda_t) / (2 (lambda_t - lambda_prev)),   lambda = log(alpha / sigma)

    Lu et al., "DPM-Solver++", 2022, algorithm 2. https://arxiv.org/abs/2211.01095
    Order 2 (measured: tests/samplers/test_order.py). One evaluation a step. k = 0, a first-order step, where it is not
    finite: in the first step, in the one after a start at alpha = 0, and in the last one to t = 0.
    """

    order = 2
    evaluations = 1

    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        return torch.zeros_like(x), torch.full_like(t, -math.inf)

    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        x0_prev, lambda_prev = state
        x0 = f(x, t)
        lambda_t, lambda_s = process.logsnr(t) / 2, process.logsnr(s) / 2
        k = (lambda_s - lambda_t) / (2 * (lambda_t - lambda_prev))
        k = torch.where(torch.isfinite(k), k, torch.zeros_like(k))
        data = torch.lerp(x0, x0_prev, -lift(k, x))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
        ratio = torch.where(sigma_t > 0, sigma_s / sigma_t, torch.ones_like(sigma_t))
        return combine(x, ratio, data, alpha_s - alpha_t * ratio), (x0, lambda_t)
