"""What a network is trained to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, final

from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.coupling import Coupling
from sfumato.core.denoiser import NetDenoiser
from sfumato.core.process import lift
from sfumato.core.random import Draws
from sfumato.core.times import Times, UniformTimes
from sfumato.core.weighting import Unit, Weighting
from sfumato.registry import Registered


class Loss(NamedTuple):
    """value: () to differentiate. per_sample: (B,) detached, unweighted, on the device. t: (B,) float64 on the CPU."""

    value: Tensor
    per_sample: Tensor
    t: Tensor


class Objective(Registered, ABC, family="objective"):
    """A loss of a denoiser on clean data."""

    learns_variance: ClassVar[bool] = False  # then the network is built with twice the outputs

    @abstractmethod
    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        """x0: (B, *S) from the codec; draws: the batch's random numbers (draws.n = B)."""


@final
@dataclass(frozen=True)
class DenoisingLoss(Objective, name="denoising"):
    """Regression of the network's output, one formula for every parameterization:

        mean_B  w(t) |F(c_in x_t; c_noise) - (k_x0 x0 + k_eps eps)|^2,   x_t = alpha_t x0 + sigma_t eps

    The mean is over all elements of a sample. Times are drawn with low discrepancy over consecutive samples.
    coupling: which noise goes with which sample of a batch; None: as drawn, independently.
    With weighting `sigma-squared` it is denoising score matching for any parameterization.
    Vincent 2011 (denoising score matching); Ho et al. 2020, eq. 14; the common form: Karras et al. 2022, eq. 8.
    """

    times: Times = field(default_factory=UniformTimes)
    weighting: Weighting = field(default_factory=Unit)
    coupling: Coupling | None = None

    def __call__(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, draws: Draws) -> Loss:
        t = self.times(denoiser.process, draws.spread("times"))
        eps = draws.normal(x0.shape[1:], device=x0.device)
        return self.at(denoiser, x0, cond, t, eps if self.coupling is None else self.coupling(x0, eps))

    def at(self, denoiser: NetDenoiser, x0: Tensor, cond: Cond | None, t: Tensor, eps: Tensor) -> Loss:
        """The same at given times (B,) and noise (B, *S): for held-out losses, where both are fixed."""
        out, c = denoiser.raw(denoiser.process.diffuse(x0, eps, t), t, cond)
        target = lift(c.k_x0, x0) * x0 + lift(c.k_eps, x0) * eps
        error = (out.float() - target.float()).square().flatten(1).mean(1)
        weight = lift(self.weighting(denoiser.process, t, c), error)
        return Loss((weight * error).mean(), error.detach(), t)
