"""Guidance by the gradient of a function: classifiers, regressors, energies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, lift
from sfumato.errors import UserError
from sfumato.guidance.base import Given, Guidance, Wrapped, check_scale, spread


class _Gradient(Guidance):
    @property
    def neutral(self) -> float:
        return 0.0

    @property
    def by_condition(self) -> bool:
        return False


@final
@dataclass(frozen=True)
class Classifier(_Gradient):
    """Classifier guidance: D = D + w (sigma^2 / alpha) grad_x log p(y | x_t), by any differentiable log p(y | x_t).

    log_prob: (x_t (B, *S), t) -> (B,), a function of every row alone; up to a constant. A trained classifier of noisy
    media, or a regressor: -|f(x_t, t) - y|^2 / (2 s^2).
    The score of x_t given y is that of x_t plus grad log p(y | x_t), and alpha D = x_t + sigma^2 score (Tweedie): at
    w = 1 D is exactly E[x0 | x_t, y]. w = 0 is no guidance.
    Where alpha = 0 (t = 1 of flow and cosine) x_t says nothing of y and the gradient is 0; the limit of gradient / alpha
    is not, and can't be had from the gradient: there D is left as it is. For exact answers begin the walk below t = 1.

    Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, section 4.2, algorithm 2.
    Cost: forward and backward pass of `log_prob`, none through the network.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale(self.scale, self.neutral)

    def around(self, denoiser: Denoiser, given: Given) -> Denoiser:
        return _ByClassifier(denoiser, self.scales(given), self.log_prob)


@final
@dataclass(frozen=True)
class Energy(_Gradient):
    """Energy guidance: D = D - w (sigma^2 / alpha) grad_x E(D(x_t)), by any differentiable function of the x0 estimate.

    energy: x0 (B, *S) -> (B,), low for what is wanted; it needs no training on noisy media. Stands for exp(-E(x0)): exact
    for linear E on Gaussian data, and a first-order guess otherwise, as exp(-E) of a mean is not the mean of exp(-E).
    For E of x_t itself use `Classifier(lambda x_t, t: -E(x_t))`. w = 0 is no guidance; where alpha = 0, as `Classifier`.

    Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, section 3; Bansal et al.,
    "Universal Guidance for Diffusion Models", 2023 (their forward guidance).
    Cost: forward and backward pass of the network and of `energy`.
    """

    energy: Callable[[Tensor], Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale(self.scale, self.neutral)

    def around(self, denoiser: Denoiser, given: Given) -> Denoiser:
        return _ByEnergy(denoiser, self.scales(given), self.energy)


@final
@dataclass(frozen=True)
class _ByClassifier(Wrapped):
    scale: Tensor
    log_prob: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        x0 = self.inner(x_t, t, cond)
        weights = _weights(self, self.scale, t)
        if not bool(weights.any()):
            return x0
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            gradient = _gradient(self.log_prob(x, t), x, "log_prob")
        return x0 + lift(weights, x0) * gradient


@final
@dataclass(frozen=True)
class _ByEnergy(Wrapped):
    scale: Tensor
    energy: Callable[[Tensor], Tensor]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        weights = _weights(self, self.scale, t)
        if not bool(weights.any()):
            return self.inner(x_t, t, cond)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x0 = self.inner(x, t, cond)
            gradient = _gradient(self.energy(x0), x, "energy")
        return x0.detach() - lift(weights, x0) * gradient


def _weights(denoiser: Denoiser, scale: Tensor, t: Tensor) -> Tensor:
    """w sigma^2 / alpha, 0 where alpha = 0."""
    alpha, sigma = denoiser.process.scales(t)
    return spread(scale, t) * torch.where(alpha > 0, sigma.square() / alpha, 0.0)


def _gradient(values: Tensor, x: Tensor, name: str) -> Tensor:
    if values.shape != x.shape[:1]:
        raise UserError(
            f"{name} gave shape {tuple(values.shape)} for a batch of {len(x)}; it must give one number a sample, ({len(x)},)"
        )
    if not values.requires_grad:
        raise UserError(
            f"{name} does not depend on its input in a way that can be differentiated; write it with torch only"
        )
    return torch.autograd.grad(values.sum(), x)[0]
