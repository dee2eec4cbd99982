"""Score, noise and velocity of denoisers, against the log density and the flow of what is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.core import VE, VP, Cosine, Flow, Process, Shifted, SubVP, lift, views
from sfumato.testing import GaussianDenoiser, MixtureDenoiser

PROCESSES: list[Process] = [Flow(), Cosine(), VP(), SubVP(), VE(), Shifted(Flow(), 3.0)]
MEANS = torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.1, 1.4]], dtype=torch.float64)


def noisy(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_score_of_a_mixture_is_the_gradient_of_its_log_density(process: Process) -> None:
    t = torch.linspace(0.3, 1, 20, dtype=torch.float64)  # earlier, VE's noise is 1e-8 and the difference is rounding
    alpha, sigma = process.scales(t)
    x = (noisy(20, 2) * (alpha**2 + sigma**2).sqrt()[:, None]).requires_grad_(True)
    spread = (alpha * 0.3) ** 2 + sigma**2
    energy = (x[:, None] - alpha[:, None, None] * MEANS).square().sum(2) / (2 * spread[:, None])
    log_density = torch.logsumexp(-energy, 1) - math.log(3) - torch.log(2 * math.pi * spread)
    (want,) = torch.autograd.grad(log_density.sum(), x)
    got = views.score(MixtureDenoiser(process, MEANS, 0.3), x.detach(), t)
    assert torch.allclose(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_views_say_the_same(process: Process) -> None:
    """score = -eps / sigma, velocity = f x - g^2 score / 2 and = alpha' x0 + sigma' eps."""
    denoiser, x = MixtureDenoiser(process, MEANS, 0.3), noisy(9, 2)
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    score, eps, velocity = (view(denoiser, x, t) for view in (views.score, views.eps, views.velocity))
    sigma, f, g2 = (lift(c, x) for c in (process.sigma(t), process.drift(t), process.diffusion(t)))
    assert torch.allclose(score, -eps / sigma)
    assert torch.allclose(velocity, f * x - g2 * score / 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_velocity_moves_along_the_exact_flow(process: Process) -> None:
    """d/ds of the probability-flow ODE's solution through (x, t), by central differences."""
    denoiser, x, h = GaussianDenoiser(process), noisy(9, 4), 1e-6
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    want = (denoiser.flow(x, t, t + h) - denoiser.flow(x, t, t - h)) / (2 * h)
    assert torch.allclose(views.velocity(denoiser, x, t), want, rtol=1e-6, atol=1e-6)


def test_velocity_of_flow_is_eps_minus_x0_up_to_pure_noise() -> None:
    """At t = 1, where f and g^2 are infinite, too; with a time of its own for every token."""
    denoiser, x = GaussianDenoiser(Flow()), noisy(2, 3, 4)
    t = torch.tensor([[1.0, 0.2, 0.7], [0.5, 1.0, 0.01]]).double()
    x0, eps = denoiser(x, t), views.eps(denoiser, x, t)
    assert torch.allclose(views.velocity(denoiser, x, t), eps - x0)
    shifted = GaussianDenoiser(Shifted(Flow(), 3.0))
    assert torch.isfinite(views.velocity(shifted, x, t)).all()
