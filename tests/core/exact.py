"""The best network there is, for tests of what is built on networks."""

from __future__ import annotations

from torch import Tensor

from sfumato.core import Cond, Network, Parameterization, Process
from sfumato.testing import GaussianDenoiser


class Exact(Network):
    """The best network there is for data of deviation 0.7: F = (E[x0 | x_t] - c_skip x_t) / c_out."""

    def __init__(self, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        self.denoiser, self.parameterization = GaussianDenoiser(process, mean=0.0, std=0.7), parameterization

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        process, u = self.denoiser.process, noise.double()
        t = process.time(2 * ((1 - u) / u).log())
        c = self.parameterization.coeffs(*process.scales(t))
        x_t = x / c.c_in[:, None]
        return (self.denoiser(x_t, t) - c.c_skip[:, None] * x_t) / c.c_out[:, None]
