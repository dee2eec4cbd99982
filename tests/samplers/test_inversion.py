"""DDIM inversion: round trips, orders, and exact inverses of a Gaussian's flow."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato.core import VE, VP, Cond, Cosine, DiscreteVP, Flow, LogSNRGrid, Process, UniformGrid
from sfumato.errors import SfumatoError, UserError
from sfumato.samplers import DDIM, invert, sample, solve
from sfumato.samplers.adaptive import Adaptive
from sfumato.testing import PROCESSES, GaussianDenoiser, MixtureDenoiser


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_fixed_point_is_the_exact_inverse(process: Process) -> None:
    """From data to noise and back by DDIM: within 1e-9, from both ends of time, on a mixture."""
    denoiser = MixtureDenoiser(process, normal(4, 6), 0.5)
    x0, times = normal(5, 6, seed=1), LogSNRGrid(0.01, 80.0)(process, 100)
    noise = invert(denoiser, x0, times, iterations=60)
    back = sample(denoiser, DDIM(), noise, times)
    assert (back - x0).abs().max() < 1e-9


def test_a_tolerance_is_kept_or_refused() -> None:
    process = VP()
    denoiser, x0, times = MixtureDenoiser(process, normal(4, 6), 0.5), normal(5, 6, seed=1), LogSNRGrid()(VP(), 60)
    exact = invert(denoiser, x0, times, iterations=60)
    near = invert(denoiser, x0, times, iterations=60, tolerance=1e-8)
    assert 0 < (near - exact).abs().max() < 1e-5
    with pytest.raises(SfumatoError, match="take more steps"):
        invert(denoiser, x0, times, iterations=2, tolerance=1e-8)
    with pytest.raises(UserError, match="iterations >= 1"):
        invert(denoiser, x0, times, iterations=0)


@pytest.mark.parametrize("process", [VP(), Flow(), VE(), Cosine()], ids=repr)
def test_the_usual_form_has_an_error_of_first_order(process: Process) -> None:
    """Against the probability-flow ODE, solved to 1e-10."""
    denoiser, x = MixtureDenoiser(process, normal(3, 4), 0.6), normal(5, 4, seed=2)
    ends = process.time(f64(-4, 4))
    noisy = process.sigma(ends[0]) * x
    clean, _ = solve(denoiser, noisy, ends[0], ends[1], solver=Adaptive(rtol=1e-11, atol=1e-11))
    errors = []
    for n in (100, 200):
        times = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n + 1, dtype=torch.float64))
        errors.append(float((invert(denoiser, clean, times) - noisy).abs().max()))
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.15


def test_a_round_trip_gets_better_with_each_iteration() -> None:
    process = VP()
    denoiser, x0 = MixtureDenoiser(process, normal(4, 6), 0.5), normal(5, 6, seed=1)
    times = LogSNRGrid(0.01, 80.0)(process, 50)
    errors = []
    for iterations in (2, 4, 8, 16):
        back = sample(denoiser, DDIM(), invert(denoiser, x0, times, iterations=iterations), times)
        errors.append(float((back - x0).abs().max()))
    assert all(b < a / 4 for a, b in pairwise(errors)) and errors[-1] < 1e-6


def test_the_noise_of_gaussian_data_is_its_standard_score() -> None:
    """The flow of a Gaussian carries the standard score along: x1 = (x0 - mean) / std in the limit of many steps."""
    denoiser, x0 = GaussianDenoiser(Flow()), 0.5 + 0.7 * normal(3, 5)
    noise = invert(denoiser, x0, UniformGrid()(Flow(), 2000), iterations=4)
    assert torch.allclose(noise, (x0 - 0.5) / 0.7, atol=5e-3)


def test_every_sample_has_its_own_times_and_condition() -> None:
    """Rows alone and together are the same; what is held stays; the condition reaches the denoiser."""
    process = VP()
    grids = torch.stack(
        [torch.linspace(1, 0, 9).double(), torch.cat([torch.linspace(0.5, 0.2, 8).double(), f64(0.2)])], 1
    )
    x0, cond = normal(2, 5), Cond(vector=normal(2, 5, seed=4).float())
    denoiser = GaussianDenoiser(process)
    both = invert(denoiser, x0, grids, cond, iterations=3)
    for i in range(2):
        own = Cond(vector=cond.vector[i : i + 1])  # type: ignore[index]
        assert torch.allclose(
            both[i : i + 1], invert(denoiser, x0[i : i + 1], grids[:, i], own, iterations=3), rtol=1e-12
        )
    assert not torch.allclose(both, invert(denoiser, x0, grids, iterations=3), atol=1e-2)
    assert torch.equal(invert(denoiser, x0, torch.full((4, 2), 0.3).double()), x0)


def test_one_step_from_pure_noise_is_not_invertible() -> None:
    with pytest.raises(UserError, match="2 steps"):
        invert(GaussianDenoiser(Flow()), normal(2, 3), f64(1, 0))
    chain = DiscreteVP("linear")  # not pure noise: a single step can be inverted
    denoiser, x0 = GaussianDenoiser(chain), normal(2, 3)
    noise = invert(denoiser, x0, f64(1, 0), iterations=400)
    assert torch.isfinite(noise).all()
