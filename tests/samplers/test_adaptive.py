"""The adaptive solver: its tolerance against exact solutions, and what it says of its cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.core import VE, VP, Cond, Cosine, DiscreteVP, Flow, Process, UniformGrid
from sfumato.errors import SfumatoError, UserError
from sfumato.samplers import Adaptive, sample, solve
from sfumato.testing import PROCESSES, GaussianDenoiser, check_ends, check_mixed_times


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Counting:
    def __init__(self, process: Process) -> None:
        self.process, self.inner, self.evaluations = process, GaussianDenoiser(process), 0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        self.evaluations += 1
        return self.inner(x_t, t)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_tolerance_is_kept(process: Process) -> None:
    """From pure noise (or the end of the process) to log-SNR 6, against the exact flow; tighter is better."""
    x = process.sigma(f64(1)) * normal(8, 3)
    denoiser, end = GaussianDenoiser(process), process.time(f64(6.0))
    exact = denoiser.flow(x, torch.ones(8, dtype=torch.float64), end.expand(8))
    errors, counts = [], []
    for tolerance in (1e-4, 1e-7, 1e-10):
        found, evaluations = solve(denoiser, x, 1.0, end, solver=Adaptive(tolerance, tolerance))
        errors.append(float((found - exact).abs().max()))
        counts.append(int(evaluations.max()))
        assert errors[-1] < 10 * tolerance
    assert errors[0] > errors[1] > errors[2] and counts[0] < counts[1] < counts[2]
    assert counts[0] <= 80


def test_the_last_part_is_one_denoising() -> None:
    """To t = 0: the flow to sigma / alpha = sigma_min, then E[x0 | x] there. Both known for a Gaussian."""
    process, x = VP(), normal(4, 3)
    denoiser, solver = GaussianDenoiser(process), Adaptive(1e-10, 1e-10, sigma_min=0.05)
    stop = process.time(-2 * torch.log(f64(0.05))).expand(4)
    want = denoiser(denoiser.flow(x, torch.ones(4, dtype=torch.float64), stop), stop)
    assert torch.allclose(sample(denoiser, solver, x, f64(1, 0)), want, atol=1e-8)
    clean = process.time(-2 * torch.log(f64(0.01)))  # already below the last level
    assert torch.allclose(
        sample(denoiser, solver, x, torch.cat([clean, f64(0)])), denoiser(x, clean.expand(4)), atol=1e-15
    )


def test_it_counts_its_evaluations() -> None:
    """Of the slowest sample, what the batch took; a sample that stands still needs the two of a beginning, or none."""
    denoiser = Counting(Flow())
    x = normal(2, 3)
    _, evaluations = solve(denoiser, x, f64(1.0, 0.3), 0.1, solver=Adaptive(1e-6, 1e-6))
    assert evaluations.max() == denoiser.evaluations and evaluations[0] > evaluations[1] > 8
    alone = solve(GaussianDenoiser(Flow()), x[1:], 0.3, 0.1, solver=Adaptive(1e-6, 1e-6))[1]
    assert alone.tolist() == evaluations[1:].tolist()


def test_more_grid_points_change_nothing_but_the_cost() -> None:
    denoiser, x = Counting(Cosine()), normal(3, 4)
    one = sample(denoiser, Adaptive(1e-9, 1e-9), x, f64(1, 0))
    cheap, denoiser.evaluations = denoiser.evaluations, 0
    many = sample(denoiser, Adaptive(1e-9, 1e-9), x, UniformGrid()(Cosine(), 7))
    assert torch.allclose(one, many, atol=1e-7) and denoiser.evaluations > cheap


def test_conformance() -> None:
    check_mixed_times(Adaptive())
    check_ends(Adaptive(), [Flow(), VE(), DiscreteVP("scaled_linear", zero_terminal_snr=True)], steps=2)


def test_refusals() -> None:
    denoiser, x = GaussianDenoiser(Flow()), normal(2, 3)
    with pytest.raises(UserError, match="sigma_min > 0"):
        Adaptive(sigma_min=0.0)
    with pytest.raises(UserError, match="from t to s <= t"):
        solve(denoiser, x, 0.1, 0.5)
    with pytest.raises(UserError, match="use heun"):
        sample(denoiser, Adaptive(), x, torch.stack([torch.ones(2, 3), torch.full((2, 3), 0.5)]).double())
    with pytest.raises(UserError, match="resolve"):
        sample(denoiser, Adaptive(1e-9, 1e-9), x.float(), f64(1, 0.5))
    with pytest.raises(SfumatoError, match="raise max_evaluations"):
        sample(denoiser, Adaptive(1e-9, 1e-9, max_evaluations=20), x, f64(1, 0.5))
