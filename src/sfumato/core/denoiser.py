"""Denoisers: E[x0 | x_t], the one thing that solvers, guidance and losses ask for."""

from __future__ import annotations

from typing import Protocol, final

import torch
from torch import Tensor, nn

from sfumato.core.cond import Cond
from sfumato.core.network import Network
from sfumato.core.parameterization import Coeffs, Parameterization
from sfumato.core.process import Process, lift
from sfumato.errors import UserError


class Denoiser(Protocol):
    """Anything that knows its process and returns E[x0 | x_t]."""

    @property
    def process(self) -> Process:
        """How its data is noised."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """x_t: (B, *S); t: float64, a prefix of x_t's shape. Returns (B, *S)."""
        ...


@final
class NetDenoiser(nn.Module):
    """A network, read through a parameterization, as a denoiser.

    Refuses a parameterization that divides by alpha on a process whose alpha reaches 0.
    """

    def __init__(self, network: Network, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        if parameterization.divides_by_alpha and float(process.alpha(torch.ones((), dtype=torch.float64))) == 0:
            raise UserError(
                f"parameterization '{parameterization.kind}' divides by alpha, which is 0 at t = 1 of the process "
                f"'{process.kind}'; use parameterization=v, velocity or x0, or a process such as vp"
            )
        self.network = network
        self.process = process
        self.parameterization = parameterization

    def raw(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Coeffs]:
        """The network's own output F (B, *S) and the coefficients at t."""
        c = self.parameterization.coeffs(*self.process.scales(t))
        weight = next(
            self.network.parameters(), x_t
        )  # a network of half precision; the solver goes on in x_t's own type
        x_in = (lift(c.c_in, x_t) * x_t).to(weight.dtype)
        return self.network(x_in, lift(c.c_noise, x_t).reshape(t.shape), cond), c

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """E[x0 | x_t]. (B, *S)."""
        out, c = self.raw(x_t, t, cond)
        return lift(c.c_skip, x_t) * x_t + lift(c.c_out, x_t) * out.to(x_t.dtype)
