"""The figures of docs/processes.md on minibatch optimal transport."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.core import CondShape, Coupling, DenoisingLoss, Draws, Flow, NetDenoiser, OptimalTransport, Velocity
from sfumato.core.coupling import assign
from sfumato.nn import MLP
from sfumato.samplers import DDIM, sample

BATCH, STEPS, SCORED = 64, 700, 256


def eight_gaussians(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(0, 8, (n,), generator=generator) * math.pi / 4
    return torch.stack([angle.cos(), angle.sin()], 1) * 1.35 + 0.1 * torch.randn(n, 2, generator=generator)


def trained(coupling: Coupling | None) -> NetDenoiser:
    torch.manual_seed(0)
    denoiser = NetDenoiser(MLP((2,), CondShape()), Flow(), Velocity())
    objective, optimizer = DenoisingLoss(coupling=coupling), torch.optim.Adam(denoiser.parameters())
    for i in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - i / STEPS)
        optimizer.zero_grad()
        objective(denoiser, eight_gaussians(BATCH, i + 1), None, Draws(0, i * BATCH, BATCH)).value.backward()
        optimizer.step()
    return denoiser


def wasserstein(denoiser: NetDenoiser, steps: int) -> float:
    """W2 between as many samples and data points: the root of the mean squared distance of the best assignment."""
    x = torch.randn(SCORED, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        made = sample(denoiser, DDIM(), x, torch.linspace(1, 0, steps + 1).double())
    cost = torch.cdist(made.double(), eight_gaussians(SCORED, 999_983).double()).square().numpy()
    return math.sqrt(cost[range(SCORED), assign(cost)].mean())


@pytest.mark.slow
def test_few_steps_do_better_with_optimal_transport() -> None:
    plain, coupled = trained(None), trained(OptimalTransport())
    assert wasserstein(plain, 1) > 0.9 and wasserstein(coupled, 1) < 0.45
    assert wasserstein(coupled, 2) < wasserstein(plain, 8)
