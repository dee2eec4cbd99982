"""What becomes of a direction that a network can't see: a walk keeps its noise, or drops it (docs/processes.md)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.core import (
    X0,
    Cond,
    Denoiser,
    Flow,
    LinspaceGrid,
    NetDenoiser,
    Network,
    Parameterization,
    SampleNoise,
    Velocity,
)
from sfumato.samplers import DPMpp2M, Euler, ExpAdams, Solver, sample, start

WIDTH, STEPS = 8, 16


class Blind(Network, name=""):
    """The exact answer for data that are 1 everywhere, but for the first channel, of which it says nothing."""

    def __init__(self, parameterization: Parameterization) -> None:
        nn.Module.__init__(self)
        self.parameterization = parameterization
        self.held = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        t = noise.view(-1, 1, 1).double()
        c = self.parameterization.coeffs(1 - t, t)
        given = (torch.ones_like(x) - c.c_skip * x / c.c_in) / c.c_out  # F of x0 = 1
        given[:, 0] = 0
        return given


def walked(parameterization: Parameterization, solver: Solver) -> tuple[Tensor, Tensor]:
    """Start and end of a walk of 32 samples."""
    denoiser: Denoiser = NetDenoiser(Blind(parameterization), Flow(), parameterization)
    noise, times = SampleNoise(tuple(range(32))), LinspaceGrid()(Flow(), STEPS)
    x = start(Flow(), noise.prior((WIDTH, 5)).double(), times[0])
    return x, sample(denoiser, solver, x, times, noise=noise)


@pytest.mark.parametrize("solver", [Euler(), ExpAdams(), DPMpp2M()], ids=repr)
def test_a_direction_that_is_not_seen_keeps_its_noise_with_velocity_and_loses_it_with_x0(solver: Solver) -> None:
    begun, ended = walked(Velocity(), solver)
    assert torch.allclose(ended[:, 1:], torch.ones_like(ended[:, 1:]), atol=1e-9)
    exact = 0.01 if isinstance(solver, ExpAdams) else 1e-9  # where E[x0 | x_t] is x_t, it is 0.6% off
    assert torch.allclose(ended[:, 0], begun[:, 0], rtol=exact)  # all of it: as loud as the data
    begun, ended = walked(X0(), solver)
    assert torch.allclose(ended[:, 1:], torch.ones_like(ended[:, 1:]), atol=1e-9)
    assert torch.allclose(ended[:, 0], torch.zeros_like(ended[:, 0]), atol=1e-9)  # the mean of what it is trained on
