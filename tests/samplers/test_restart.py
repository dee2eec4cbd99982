"""Restart sampling against its paper's algorithm and its exact effect on a Gaussian."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tests.samplers.law import STD, law
from torch import Tensor

from sfumato.core import VE, VP, Cosine, Flow, KarrasGrid, LogSNRGrid, Process, SampleNoise
from sfumato.errors import UserError
from sfumato.samplers import DDIM, RK4, Ancestral, DPMpp2M, Heun, Restart, sample
from sfumato.testing import GaussianDenoiser, check_ends, check_mixed_times


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_papers_algorithm() -> None:
    """Xu et al. 2023, algorithm 1: Heun's steps, and K times up to t_max and down again in the same kind of steps."""
    process, n, k_times, sub, rho = VE(), 12, 3, 4, 7.0
    denoiser, times = GaussianDenoiser(process), KarrasGrid()(process, n)
    sigmas, first = process.sigma(times), 80 * normal(2, 4)
    at, high = 7, 3.0  # the restart is made on reaching sigmas[at]
    low = float(sigmas[at])

    def heun(x: Tensor, walk: list[float]) -> Tensor:
        for a, b in pairwise(walk):
            slope = (x - (0.49 * x + a * a * 0.5) / (0.49 + a * a)) / a
            ahead = x + (b - a) * slope
            if b > 0:
                other = (ahead - (0.49 * ahead + b * b * 0.5) / (0.49 + b * b)) / b
                ahead = x + (b - a) * (slope + other) / 2
            x = ahead
        return x

    x = heun(first, sigmas[: at + 1].tolist())
    noise = SampleNoise((0, 1))
    share = [j / sub for j in range(sub + 1)]
    walk = [(high ** (1 / rho) + s * (low ** (1 / rho) - high ** (1 / rho))) ** rho for s in share]
    for k in range(k_times):
        x = x + math.sqrt(high**2 - low**2) * noise.step(at, (4,), draw=k).double()
        x = heun(x, walk)
    x = heun(x, sigmas[at:].tolist())

    solver = Restart(Heun(frame="ve"), low=low, high=high, times=k_times, steps=sub, rho=rho)
    got = sample(denoiser, solver, first, times, noise=SampleNoise((0, 1)))
    assert torch.allclose(got, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", [VE(), VP(), Flow(), Cosine()], ids=repr)
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_an_error_of_the_variance_shrinks_by_the_ratio_of_variances(process: Process, repeats: int) -> None:
    """Noise adds to a variance without regard to its error, and the exact walk down scales both: e -> e a^2 V_s / V_h."""
    low, high, error = 0.3, 2.0, 0.2
    begin, at, top = (process.time(f64(-2 * math.log(v))) for v in (0.4, low, high))
    times = torch.cat([begin, at])

    def variance(t: Tensor) -> float:
        alpha, sigma = (float(c) for c in process.scales(t))
        return alpha**2 * STD**2 + sigma**2

    # the step to `at` itself carries the error along: both start with the relative error that they have there
    solver = Restart(RK4(), low=low, high=high, times=repeats, steps=64)
    first = (float(process.alpha(begin)) * 0.5, variance(begin) * (1 + error))
    plain = law(RK4(), process, torch.lerp(begin, at, torch.linspace(0, 1, 65).double()[:, None])[:, 0], first=first)[1]
    restarted = law(solver, process, times, first=first, draws=8)[1]
    a = float(process.alpha(top) / process.alpha(at))
    shrunk = (plain - variance(at)) * (a**2 * variance(at) / variance(top)) ** repeats
    assert restarted - variance(at) == pytest.approx(shrunk, rel=0.02)


def test_without_restarts_it_is_its_solver() -> None:
    process, x = VP(), normal(2, 5)
    times = LogSNRGrid()(process, 9)
    for solver in (Heun(), DDIM()):
        want = sample(GaussianDenoiser(process), solver, x, times)
        for nothing in (Restart(solver, times=0), Restart(solver, low=1e5, high=2e5)):  # no step reaches 1e5
            assert torch.equal(sample(GaussianDenoiser(process), nothing, x, times, noise=SampleNoise((0, 1))), want)


def test_nested_intervals_are_restarted_one_after_the_other() -> None:
    """Disjoint intervals do not see one another: the count of evaluations is that of each alone on top of the walk."""
    process, x, asked = VE(), normal(1, 3), []

    class Counting:
        def __init__(self) -> None:
            self.process, self.inner = process, GaussianDenoiser(process)

        def __call__(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
            asked.append(float(t[0]))
            return self.inner(x_t, t)

    def count(solver: Restart | Heun) -> int:
        asked.clear()
        sample(Counting(), solver, 80 * x, KarrasGrid()(process, 20), noise=SampleNoise((0,)))
        return len(asked)

    plain, inner = count(Heun()), Restart(Heun(), low=0.05, high=0.3, times=2, steps=3)
    assert count(inner) == plain + 2 * 3 * 2
    assert count(Restart(inner, low=1.0, high=20.0, times=3, steps=5)) == plain + 2 * 3 * 2 + 3 * 5 * 2


def test_a_restart_begins_at_t_1_at_most() -> None:
    """`high` beyond the process's end is its end; on Flow that is pure noise, and the sample starts anew."""
    process, times = Flow(), f64(0.9, 0.5, 0.3)
    solver = Restart(DDIM(), low=0.8, high=1e12, times=1, steps=2)
    y = sample(
        GaussianDenoiser(process),
        solver,
        torch.stack([normal(4), 100 + normal(4, seed=3)]),
        times,
        noise=SampleNoise((5, 5)),
    )
    assert torch.allclose(y[0], y[1], atol=1e-9)


def test_conformance() -> None:
    torch.manual_seed(1)
    check_mixed_times(Restart(low=0.3, high=1.0))
    check_mixed_times(Restart(DDIM(), low=0.5, high=2.0, times=2))
    check_ends(Restart(times=2), [Flow(), VE()])


def test_refusals() -> None:
    with pytest.raises(UserError, match="0 < low < high"):
        Restart(low=0.3, high=0.3)
    with pytest.raises(UserError, match="remembers former steps"):
        Restart(DPMpp2M())
    for solver in (Ancestral(), Heun(churn=1.0)):
        with pytest.raises(UserError, match="adds the noise itself"):
            Restart(solver)
