"""What a network is trained to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.coupling import Coupling
from sfumato.core.denoiser import NetDenoiser
from sfumato.core.process import lift, on_device
from sfumato.core.random import Draws, training_noise
from sfumato.core.times import Times, UniformTimes
from sfumato.core.weighting import Unit, Weighting
from sfumato.errors import UserError
from sfumato.registry import Registered


class Loss(NamedTuple):
    """value: () to differentiate. per_sample: (B,) detached, unweighted, on the device. t: (B,) float64 on the CPU."""

    value: Tensor
    per_sample: Tensor
    t: Tensor


class Planned(NamedTuple):
    """What a loss needs from the host: tensors on the CPU whose shapes depend on the batch size only, and t (B,) float64."""

    tensors: dict[str, Tensor]
    t: Tensor


class Objective(Registered, ABC, family="objective"):
    """A loss of a denoiser on clean data."""

    learns_variance: ClassVar[bool] = False  # then the network is built with twice the outputs

    @property
    def self_conditions(self) -> bool:
        """Whether it teaches the network to use an earlier estimate of its own; it is then built with room for one."""
        return False

    @abstractmethod
    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        """x0: (B, *S) from the codec; draws: the batch's random numbers (draws.n = B)."""

    @property
    def separable(self) -> bool:
        """Whether `plan` and `compute` are there: the loss in two halves, so that the second can be captured in a graph."""
        return False

    def plan(self, denoiser: NetDenoiser, draws: Draws) -> Planned:
        """The host's half: everything that is drawn or comes from a schedule, as small tensors on the CPU."""
        raise NotImplementedError(f"objective={self.kind} is not separable")

    def compute(
        self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, planned: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The device's half: (value, per_sample) of `Loss`, from tensors on x0's device alone."""
        raise NotImplementedError(f"objective={self.kind} is not separable")


@final
@dataclass(frozen=True)
class DenoisingLoss(Objective, name="denoising"):
    """Regression of the network's output, one formula for every parameterization:

        mean_B  w(t) |F(c_in x_t; c_noise) - (k_x0 x0 + k_eps eps)|^2,   x_t = alpha_t x0 + sigma_t eps

    The mean is over all elements of a sample. Times are drawn with low discrepancy over consecutive samples.
    coupling: which noise goes with which sample of a batch; None: as drawn, independently.
    self_conditioning: share of the samples for which the network is first asked for an estimate of x0, without gradients, and
    then told it; the others are told zeros. 0.5 is usual, 0 leaves it out. Cost: one more forward pass, a third of a step.
    Chen et al., "Analog Bits", 2022, algorithm 1.
    With weighting `sigma-squared` it is denoising score matching for any parameterization.
    Vincent 2011 (denoising score matching); Ho et al. 2020, eq. 14; the common form: Karras et al. 2022, eq. 8.
    """

    times: Times = field(default_factory=UniformTimes)
    weighting: Weighting = field(default_factory=Unit)
    coupling: Coupling | None = None
    self_conditioning: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.self_conditioning <= 1:
            raise UserError(
                f"self_conditioning = {self.self_conditioning}: must be a share of the samples, from 0 to 1"
            )

    @property
    def self_conditions(self) -> bool:
        return self.self_conditioning > 0

    @property
    def separable(self) -> bool:
        return self.coupling is None

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        t = self.times(denoiser.process, draws.spread("times"))
        eps = training_noise(on_device(draws.keys(), x0.device), x0.shape[1:])
        eps = eps if self.coupling is None else self.coupling(x0, eps)
        return self._at(denoiser, x0, cond, t, eps, self._told(draws))

    def at(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, t: Tensor, eps: Tensor) -> Loss:
        """The same at given times (B,) and noise (B, *S), told nothing: for held-out losses, where all is fixed."""
        return self._at(denoiser, x0, cond, t, eps, torch.zeros_like(t))

    def _at(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, t: Tensor, eps: Tensor, told: Tensor) -> Loss:
        terms = on_device(self._terms(denoiser, t, told).to(x0.dtype), x0.device)
        return Loss(*self._compute(denoiser, x0, cond, eps, terms), t)

    def plan(self, denoiser: NetDenoiser, draws: Draws) -> Planned:
        t = self.times(denoiser.process, draws.spread("times"))
        return Planned({"terms": self._terms(denoiser, t, self._told(draws)).float(), "keys": draws.keys()}, t)

    def compute(
        self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, planned: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        eps = training_noise(planned["keys"], x0.shape[1:])
        return self._compute(denoiser, x0, cond, eps, planned["terms"])

    def _told(self, draws: Draws) -> Tensor:
        """1 for samples that are told an estimate, else 0: (B,) float64."""
        return (draws.uniform("self-conditioning") < self.self_conditioning).double()

    def _terms(self, denoiser: NetDenoiser, t: Tensor, told: Tensor) -> Tensor:
        """alpha, sigma, c_in, c_noise, k_x0, k_eps and the weight at times (B,), and c_skip, c_out, told: (10, B) float64."""
        alpha, sigma = denoiser.process.scales(t)
        c = denoiser.parameterization.coeffs(alpha, sigma)
        weight = self.weighting(denoiser.process, t, c)
        parts = (alpha, sigma, c.c_in, c.c_noise, c.k_x0, c.k_eps, weight, c.c_skip, c.c_out, told)
        return torch.stack([part.expand(t.shape) for part in parts])

    def _compute(
        self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, eps: Tensor, terms: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma, c_in, c_noise, k_x0, k_eps, weight, c_skip, c_out, told = terms.unbind(0)
        x_t = lift(alpha, x0) * x0 + lift(sigma, x0) * eps
        estimate = None
        if self.self_conditions and denoiser.self_conditioned:
            with torch.no_grad():
                first, _ = denoiser.asked(x_t, c_in, c_noise, cond)
                estimate = lift(told, x0) * (lift(c_skip, x0) * x_t + lift(c_out, x0) * first.to(x_t.dtype))
        out, _ = denoiser.asked(x_t, c_in, c_noise, cond, estimate)
        target = lift(k_x0, x0) * x0 + lift(k_eps, x0) * eps
        error = (out.float() - target.float()).square().flatten(1).mean(1)
        return (lift(weight, error) * error).mean(), error.detach()
