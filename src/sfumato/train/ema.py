"""Averages of the weights over training, with a profile that needs no tuning to the length of the run.

    theta_hat(n) = beta(n) theta_hat(n - 1) + (1 - beta(n)) theta(n),   beta(n) = (1 - 1 / n)^(gamma + 1)

is the average of theta over steps i = 1 ... n with weights proportional to i^gamma, so that its length is a fixed share
of the training so far: no warm-up and no constant such as 0.9999 that fits one length only. gamma follows from the
relative deviation s of the profile, s^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), 2024, section 3.1, eq. 2
and appendix C. https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Generic, TypeVar, final

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.errors import UserError

M = TypeVar("M", bound=nn.Module)


def power_gamma(std: float) -> float:
    """gamma of a power-function profile with relative deviation `std` in (0, 0.28): 6.94 for 0.1, 16.97 for 0.05."""
    if not 0 < std < 12**-0.5:  # gamma = 0, the plain mean, has 12^-1/2 = 0.289
        raise UserError(f"ema = {std}: the relative deviation must lie in (0, 0.28)")
    square = std**-2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def power_beta(gamma: float, n: int) -> float:
    """beta(n) of step n = 1, 2, ...; 0 at the first, so that the initial weights leave no trace."""
    return float((1 - 1 / n) ** (gamma + 1))


@final
class Ema(Generic[M]):
    """Averaged copies of a model, one for each relative deviation, in evaluation mode. Updated in place by `update`."""

    def __init__(self, model: M, stds: Sequence[float]) -> None:
        self.gammas = [power_gamma(std) for std in stds]
        self.models: list[M] = [copy.deepcopy(model).eval().requires_grad_(False) for _ in stds]
        self.source = model
        self._live: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        names = [k for k, p in model.named_parameters() if p.requires_grad]
        self._kept: list[list[Tensor]] = []
        for average in self.models:
            parameters = dict(average.named_parameters())
            self._kept.append([parameters[name].data for name in names])
        self._names = names

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the weights after step n = 1, 2, ..."""
        for weight, kept in zip(self.weights(n), self._kept):
            torch._foreach_lerp_(kept, self._live, weight)

    def weights(self, n: int) -> list[float]:
        """1 - beta of every average at step n: the weight of the newest weights."""
        return [1 - power_beta(gamma, n) for gamma in self.gammas]

    @torch.no_grad()
    def take(self, weights: Tensor) -> None:
        """`update` with `weights` (one for each average) that lie on the device: can be recorded in a CUDA graph."""
        for kept, weight in zip(self._kept, weights.unbind(0)):
            apart = torch._foreach_sub(self._live, kept)
            torch._foreach_mul_(apart, weight)
            torch._foreach_add_(kept, apart)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Give the copies the buffers of the model as they are now."""
        theirs = dict(self.source.named_buffers())
        for average in self.models:
            for name, ours in average.named_buffers():
                if name in theirs and theirs[name].shape == ours.shape:  # a cached table may exist in one of them only
                    ours.copy_(theirs[name])

    def state(self) -> dict[str, Tensor]:
        """The averaged weights: `0.name`, `1.name`, ..."""
        return {f"{i}.{k}": v for i, kept in enumerate(self._kept) for k, v in zip(self._names, kept)}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, ours in self.state().items():
            ours.copy_(state[name])
        self.copy_buffers()
