"""The Brownian path of a seed: increments that add up, their distribution, and strong convergence along it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato.core import VP, Flow, SampleNoise
from sfumato.errors import UserError
from sfumato.samplers import (
    DDIM,
    Ancestral,
    BrownianNoise,
    DPMpp2M,
    EulerMaruyama,
    PredictorCorrector,
    SASolver,
    Solver,
    sample,
)
from sfumato.testing import GaussianDenoiser, MixtureDenoiser


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(noise: BrownianNoise, t: float, s: float, size: int) -> Tensor:
    """W(t) - W(s) of every seed."""
    return noise.increment(f64(t)[0], f64(s)[0], (size,)) * math.sqrt(t - s)


@pytest.mark.parametrize("cut", [0.5, 0.75, 0.7, 1 / 3, 0.123456, 0.999, 0.002])
def test_increments_add_up(cut: float) -> None:
    noise = BrownianNoise((3, 4), depth=50)  # times are then exact to 1e-15
    assert torch.allclose(step(noise, 1, 0, 5), step(noise, 1, cut, 5) + step(noise, cut, 0, 5), atol=1e-13)


def test_a_path_of_many_pieces_is_one_path() -> None:
    """On multiples of 2^-depth there is no rounding: all partitions give the same path."""
    noise = BrownianNoise((7,), depth=10)
    fine = [step(noise, (k + 1) / 1024, k / 1024, 2) for k in range(1024)]
    for a, b in ((0, 1024), (0, 1), (17, 900), (511, 513), (3, 4)):
        assert torch.allclose(step(noise, b / 1024, a / 1024, 2), torch.stack(fine[a:b]).sum(0), atol=1e-12)


def test_increments_are_standard_normal_and_independent() -> None:
    """100,000 numbers for each of five neighbouring intervals: moments, and no correlation."""
    noise, edges, n = BrownianNoise((11,)), (1.0, 0.9, 0.55, 0.5, 0.123, 0.001), 100_000
    z = torch.stack([noise.increment(f64(t)[0], f64(s)[0], (n,))[0] for t, s in pairwise(edges)])
    limit = 4 / math.sqrt(n)
    assert (z.mean(1).abs() < limit).all() and ((z.var(1) - 1).abs() < limit * math.sqrt(2)).all()
    assert (torch.corrcoef(z) - torch.eye(5, dtype=torch.float64)).abs().max() < limit
    assert (z.pow(4).mean(1) - 3).abs().max() < limit * math.sqrt(96)


def test_overlapping_intervals_correlate_as_they_must() -> None:
    """cov of the normalised increments over (1, 0.5) and (0.75, 0.25): overlap 0.25 over length 0.5."""
    noise, n = BrownianNoise((5,)), 100_000
    a, b = (noise.increment(f64(t)[0], f64(s)[0], (n,))[0] for t, s in ((1.0, 0.5), (0.75, 0.25)))
    assert float((a * b).mean()) == pytest.approx(0.5, abs=0.015)


def test_a_call_of_a_step_is_a_new_draw() -> None:
    """Repeated calls for one interval, and a way up, are other paths; the numbers do not depend on the step's number."""
    x = normal(1, 50_000)
    noise = BrownianNoise((0,)).of_step(3, x)
    t, s = f64(0.6), f64(0.4)
    draws = torch.stack([noise(t, s)[0], noise(t, s)[0], noise(s, t)[0], noise(s, t)[0], noise(t, f64(0.5))[0]])
    correlation = torch.corrcoef(draws)
    assert correlation[:4, :4].fill_diagonal_(0).abs().max() < 0.02
    assert correlation[0, 4] == pytest.approx(math.sqrt(0.5), abs=0.02)  # the same path, half of the way
    assert torch.equal(BrownianNoise((0,)).of_step(9, x)(t, s), draws[:1])


def test_no_step_is_too_short() -> None:
    """Where rounding leaves nothing of an interval, its noise is still standard normal."""
    x, noise = normal(1, 50_000), BrownianNoise((0,), depth=4)
    z = noise.of_step(1, x)(f64(0.501), f64(0.5005))
    assert abs(float(z.mean())) < 0.02 and float(z.std()) == pytest.approx(1, abs=0.015)


def test_a_seed_does_not_depend_on_its_batch_and_tokens_have_their_own_times() -> None:
    times = (f64(0.9, 0.7), f64(0.8, 0.3))
    both = BrownianNoise((1, 2)).increment(*times, (3, 4))
    assert torch.equal(both[1:], BrownianNoise((2,)).increment(times[0][1:], times[1][1:], (3, 4)))
    t, s = torch.stack([f64(0.9, 0.7, 0.9)]), torch.stack([f64(0.8, 0.3, 0.1)])
    tokens = BrownianNoise((2,)).increment(t, s, (3, 4))
    for i in range(3):
        whole = BrownianNoise((2,)).increment(t[:, i], s[:, i], (3, 4))
        assert torch.equal(tokens[:, i], whole[:, i])


def test_it_works_in_float32_and_with_any_batch_shape() -> None:
    x = torch.zeros(2, 3, 4, 5)
    z = BrownianNoise((8, 9)).of_step(1, x)(f64(0.5, 0.5), f64(0.4, 0.4))
    exact = BrownianNoise((8, 9)).increment(f64(0.5, 0.5), f64(0.4, 0.4), (3, 4, 5))
    assert z.dtype == torch.float32 and torch.equal(z, exact.float())
    with pytest.raises(UserError, match="does not fit a batch"):
        BrownianNoise((1,)).of_step(1, x)
    with pytest.raises(UserError, match="depth"):
        BrownianNoise((1,), depth=60)


def path_errors(solver: Solver, noise: BrownianNoise | SampleNoise, counts: tuple[int, ...]) -> list[float]:
    """Root mean square distance of walks of N steps from one of 512 steps, the same seeds and start."""
    process = VP()
    ends = process.time(f64(-3, 3))
    denoiser, x = MixtureDenoiser(process, normal(3, 8), 0.5), normal(8, 8, seed=9)

    def walk(n: int) -> Tensor:
        times = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n + 1, dtype=torch.float64))
        return sample(denoiser, solver, x, times, noise=noise)

    exact = walk(512)
    return [float((walk(n) - exact).square().mean().sqrt()) for n in counts]


@pytest.mark.parametrize(
    "solver", [EulerMaruyama(), Ancestral(), DDIM(eta=1.0), DPMpp2M(eta=1.0), SASolver()], ids=repr
)
def test_strong_convergence(solver: Solver) -> None:
    """One seed, more steps: the same picture with less error. The strong order is 1, the noise being additive."""
    seeds = tuple(range(8))
    errors = path_errors(solver, BrownianNoise(seeds), (32, 64, 128))
    assert errors[2] < 0.05
    for coarse, fine in pairwise(errors):
        assert 0.75 < math.log2(coarse / fine) < 1.6, errors


def test_white_noise_does_not_converge() -> None:
    """With a new draw a step, walks of other numbers of steps are other samples."""
    errors = path_errors(Ancestral(), SampleNoise(tuple(range(8))), (32, 64, 128))
    assert min(errors) > 0.5 and abs(math.log2(errors[0] / errors[2])) < 0.5


def test_its_samples_have_the_right_law() -> None:
    """Moments of what comes out, by a path instead of white noise; a corrector's draws included."""
    process = Flow()
    times = torch.linspace(1, 0, 65, dtype=torch.float64)
    for solver in (Ancestral(variance="forward"), PredictorCorrector(size="sigma")):
        y = sample(GaussianDenoiser(process), solver, normal(4, 4000), times, noise=BrownianNoise((1, 2, 3, 4)))
        assert abs(float(y.mean()) - 0.5) < 0.02 and abs(float(y.std()) - 0.7) < 0.025
