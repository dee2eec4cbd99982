"""Annealed Langevin dynamics and the predictor-corrector, against the papers' algorithms and the laws they must have."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tests.samplers.law import STD, law, marginal
from torch import Tensor

from sfumato.core import VE, VP, DiscreteVP, Flow, LogSNRGrid, Process, SampleNoise, lift
from sfumato.errors import UserError
from sfumato.samplers import (
    DDIM,
    AnnealedLangevin,
    DPMpp2M,
    EulerMaruyama,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
    UniPC,
    langevin_step,
    sample,
    start,
)
from sfumato.testing import GaussianDenoiser, MixtureDenoiser, check_ends, check_mixed_times


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Numbered:
    """The draws of `SampleNoise` in order, for algorithms written out."""

    def __init__(self, seeds: tuple[int, ...], size: int) -> None:
        self.noise, self.size, self.step, self.draw = SampleNoise(seeds), size, 0, 0

    def next_step(self) -> None:
        self.step, self.draw = self.step + 1, 0

    def __call__(self) -> Tensor:
        self.draw += 1
        return self.noise.step(self.step, (self.size,), draw=self.draw - 1).double()


# Annealed Langevin dynamics


def test_the_algorithm_of_ncsn() -> None:
    """Song & Ermon 2019, algorithm 1, with the step they publish, written out; and the denoising step at the end."""
    repeats, eps, process = 4, 2e-5, VE(sigma_max=50.0)
    denoiser, times = GaussianDenoiser(process), LogSNRGrid(0.01, 50.0)(process, 6)
    sigmas, z = process.sigma(times[:-1]), Numbered((0, 1), 3)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return -(x - denoiser.mean) / (denoiser.std**2 + sigma**2)

    x = first = 50 * normal(2, 3)
    for sigma in sigmas:
        z.next_step()
        a = eps * sigma**2 / sigmas[-1] ** 2
        for _ in range(repeats):
            x = x + a / 2 * score(x, sigma) + a.sqrt() * z()
    x = x + sigmas[-1] ** 2 * score(x, sigmas[-1])

    solver = AnnealedLangevin(repeats, eps / 0.01**2)
    got = sample(denoiser, solver, first, times, noise=SampleNoise((0, 1)))
    assert torch.allclose(got, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("high", "levels", "published"), [(50.0, 232, 6.2e-6), (90.0, 500, 3.3e-6)], ids=["cifar10", "celeba"]
)
def test_the_rule_for_the_step_gives_the_published_ones(high: float, levels: int, published: float) -> None:
    """NCSNv2, table 4: eps for CIFAR-10 and CelebA 64, five steps a level, smallest sigma 0.01, two digits."""
    step = langevin_step((high / 0.01) ** (1 / (levels - 1)), 5)
    assert round(step / 2 * 0.01**2, 7) == pytest.approx(published, rel=0.02)


def test_the_law_of_a_level() -> None:
    """NCSNv2, proposition 3: the variance of a point's noise at one level, after steps from the former level's."""
    process, repeats, step = VE(), 7, 0.3
    times = process.time(-2 * torch.log(f64(2.0, 2.0 / 1.5)))  # the level, and the next, where y is not changed
    ratio, d = 1.5, step / 2
    before = (2.0 * ratio) ** 2
    _, variance = law(AnnealedLangevin(repeats, step), process, times, mean=0.0, std=0.0, first=(0.0, before))
    stationary = 2 * d / (1 - (1 - d) ** 2)
    want = 2.0**2 * ((1 - d) ** (2 * repeats) * (ratio**2 - stationary) + stationary)
    assert variance == pytest.approx(want, rel=1e-12)


def test_the_step_of_the_rule_is_the_best() -> None:
    """No other step leaves a level's variance nearer to what it should be."""
    process, ratio, repeats = VE(), 1.2, 4
    times = process.time(-2 * torch.log(f64(1.0, 1 / ratio)))

    def excess(step: float) -> float:
        solver = AnnealedLangevin(repeats, step)
        return abs(law(solver, process, times, mean=0.0, std=0.0, first=(0.0, ratio**2))[1] - 1)

    best = langevin_step(ratio, repeats)
    assert excess(best) < min(excess(best * 1.05), excess(best / 1.05), excess(best * 2), excess(best / 2))


def test_it_is_the_same_on_every_process() -> None:
    """Levels of equal log-SNR and equal noise: y = x / alpha makes the same walk."""
    levels = torch.linspace(-4, 8, 9, dtype=torch.float64)
    means, solver, ends = normal(3, 5), AnnealedLangevin(3, 0.2), []
    for process in (VE(), VP(), Flow(), DiscreteVP("linear")):
        times = process.time(levels)
        x = lift(process.alpha(times[0]), normal(2, 5)) * normal(2, 5)
        noise = SampleNoise((0, 1))
        ends.append(
            sample(MixtureDenoiser(process, means, 0.3), solver, x, times, noise=noise) / process.alpha(times[-1])
        )
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], rtol=1e-8, atol=1e-8)


def test_the_error_falls_with_the_work() -> None:
    """Of deviation 0.7, from the law of pure noise: twice the levels or twice the steps, half the error."""
    process = VE(sigma_max=50.0)

    def error(levels: int, repeats: int) -> float:
        times = LogSNRGrid(0.01, 50.0)(process, levels)
        solver = AnnealedLangevin(repeats, 0.2)
        return law(solver, process, times, first=(0.0, 2500.0), draws=levels * repeats)[1] ** 0.5 - STD

    base = error(40, 10)
    assert 0 < base < 0.12
    assert error(80, 10) / base == pytest.approx(0.5, abs=0.06)
    assert error(40, 20) / base == pytest.approx(0.5, abs=0.06)


def test_pure_noise_is_passed_without_a_step() -> None:
    """At alpha = 0 there is no y; the data add nothing yet, so x is scaled to the next level's noise."""
    process, x, times = Flow(), normal(2, 3), f64(1, 0.8)

    def never(x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        raise AssertionError("asked at a level of pure noise")

    never.process = process  # type: ignore[attr-defined]
    got = sample(never, AnnealedLangevin(), x, times, noise=SampleNoise((0, 1)))  # type: ignore[arg-type]
    assert torch.allclose(got, 0.8 * x, atol=1e-15)


def test_it_ends_with_the_denoiser() -> None:
    process = VP()
    denoiser, x, t, noise = GaussianDenoiser(process), normal(2, 3), f64(0.3), SampleNoise((0, 1))
    walked = sample(denoiser, AnnealedLangevin(3), x, torch.cat([t, t - 1e-12]), noise=noise)
    ended = sample(denoiser, AnnealedLangevin(3), x, torch.cat([t, 0 * t]), noise=noise)
    assert torch.allclose(ended, denoiser(walked, t.expand(2)), atol=1e-9)


WEIGHTS = f64(0.6, 0.3, 0.1)


def mixture(process: Process, dims: int) -> MixtureDenoiser:
    """Three components 3.5 apart, deviation 0.2, weights 0.6, 0.3, 0.1, zero mean."""
    angles = 2 * math.pi * torch.arange(3, dtype=torch.float64) / 3
    means = torch.zeros(3, dims, dtype=torch.float64)
    means[:, 0], means[:, 1] = 2 * angles.cos(), 2 * angles.sin()
    return MixtureDenoiser(process, means - (WEIGHTS[:, None] * means).sum(0), 0.2, WEIGHTS)


@pytest.mark.parametrize(
    ("solver", "process", "dims", "levels"),
    [
        (AnnealedLangevin(20, 0.1), VE(sigma_max=50.0), 2, 100),
        (AnnealedLangevin(20, 0.1), VP(), 2, 100),
        (PredictorCorrector(size="sigma"), VE(sigma_max=50.0), 2, 100),
        (PredictorCorrector(size="sigma"), Flow(), 2, 100),
        (PredictorCorrector(), VE(sigma_max=50.0), 16, 100),
        (PredictorCorrector(EulerMaruyama()), VP(), 16, 150),
        (PredictorCorrector(DDIM()), Flow(), 16, 100),
    ],
    ids=repr,
)
def test_weights_of_a_mixture(solver: Solver, process: Process, dims: int, levels: int) -> None:
    """Each component gets its share of 4,000 samples within 3 points (a deviation of chance is 0.8 at most)."""
    denoiser = mixture(process, dims)
    times = LogSNRGrid(0.02, 50.0)(process, levels)
    torch.manual_seed(3)
    x = sample(denoiser, solver, start(process, normal(4000, dims, seed=5), times[0]), times)
    nearest = torch.cdist(x, denoiser.means).argmin(1)
    shares = torch.bincount(nearest, minlength=3).double() / len(x)
    assert (shares - WEIGHTS).abs().max() < 0.03, shares
    spread = (x - denoiser.means[nearest]).std()
    assert abs(float(spread) - 0.2) < 0.03


def test_annealed_langevin_conforms() -> None:
    torch.manual_seed(1)
    check_mixed_times(AnnealedLangevin(3))
    check_ends(AnnealedLangevin(4, 0.6), [Flow(), VE()])


def test_refusals_of_langevin() -> None:
    with pytest.raises(UserError, match="0 < step < 4"):
        AnnealedLangevin(step=4.0)
    with pytest.raises(UserError, match="repeats >= 1"):
        AnnealedLangevin(repeats=0)
    with pytest.raises(UserError, match="ratio > 1"):
        langevin_step(1.0, 5)


# Predictor and corrector


def test_algorithms_2_and_4_of_the_score_sde() -> None:
    """VE: the reverse-diffusion predictor and the Langevin corrector of Song et al. 2021, written out."""
    process, n, r = VE(sigma_max=50.0), 8, 0.16
    denoiser, times = GaussianDenoiser(process), LogSNRGrid(0.01, 50.0)(process, n)
    sigmas, z = process.sigma(times), Numbered((0, 1), 6)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return -(x - denoiser.mean) / (denoiser.std**2 + sigma**2)

    x = first = 50 * normal(2, 6)
    for high, low in pairwise(sigmas[:-1]):
        z.next_step()
        x = x + (high**2 - low**2) * score(x, high)
        x = x + (high**2 - low**2).sqrt() * z()
        for _ in range(2):
            g, noise = score(x, low), z()
            eps = 2 * (r * noise.norm(dim=1, keepdim=True) / g.norm(dim=1, keepdim=True)) ** 2
            x = x + eps * g + (2 * eps).sqrt() * noise
    x = x + sigmas[-2] ** 2 * score(x, sigmas[-2])

    solver = PredictorCorrector(corrector_steps=2, snr=r)
    assert torch.allclose(sample(denoiser, solver, first, times, noise=SampleNoise((0, 1))), x, rtol=1e-10, atol=1e-10)


def test_algorithms_3_and_5_of_the_score_sde() -> None:
    """VP: on a chain's own steps, with alpha_i = 1 - beta_i in the corrector's step."""
    chain, n, r = DiscreteVP("linear", 50), 50, 0.16
    denoiser, times = GaussianDenoiser(chain), torch.arange(50, -1, -1, dtype=torch.float64) / 50
    z, x = Numbered((0, 1), 6), normal(2, 6)
    first = x
    kept = chain.alpha(times).square()
    alphas = kept[:-1] / kept[1:]  # alpha_i = 1 - beta_i of the step that ends at times[k + 1]

    def score(x: Tensor, k: int) -> Tensor:
        alpha, sigma = chain.scales(times[k].expand(2))
        return (alpha[:, None] * denoiser(x, times[k].expand(2)) - x) / sigma[:, None] ** 2

    for k in range(n - 1):
        z.next_step()
        beta = 1 - alphas[k]
        x = (2 - (1 - beta).sqrt()) * x + beta * score(x, k) + beta.sqrt() * z()
        g, noise = score(x, k + 1), z()
        eps = 2 * alphas[k + 1] * (r * noise.norm(dim=1, keepdim=True) / g.norm(dim=1, keepdim=True)) ** 2
        x = x + eps * g + (2 * eps).sqrt() * noise
    x = denoiser(x, times[n - 1].expand(2))

    got = sample(denoiser, PredictorCorrector(snr=r), first, times, noise=SampleNoise((0, 1)))
    assert torch.allclose(got, x, rtol=1e-9, atol=1e-9)


def test_without_correction_it_is_the_predictor() -> None:
    process, x, noise = VP(), normal(2, 5), SampleNoise((0, 1))
    times = LogSNRGrid()(process, 7)
    for predictor in (ReverseDiffusion(), DDIM()):
        plain = sample(GaussianDenoiser(process), predictor, x, times, noise=noise)
        solver = PredictorCorrector(predictor, corrector_steps=0)
        assert torch.equal(sample(GaussianDenoiser(process), solver, x, times, noise=noise), plain)


def test_the_law_converges() -> None:
    """With steps of sigma^2 the corrector is linear, and the law goes to the process's own as the grid gets finer."""
    solver, process = PredictorCorrector(size="sigma", snr=0.1), VP()
    ends = process.time(f64(-4, 4))
    errors = []
    for n in (64, 128, 256):
        times = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n + 1, dtype=torch.float64))
        found, want = law(solver, process, times), marginal(process, times[-1])
        errors.append(max(abs(a - b) for a, b in zip(found, want)))
    assert errors[2] < 0.004 and min(math.log2(a / b) for a, b in pairwise(errors)) > 0.9


def test_a_corrector_repairs_what_a_predictor_spoils() -> None:
    """Started with half the deviation it should have, the law is mended by correction alone (a walk of no length)."""
    process = VP()
    times = process.time(torch.linspace(-0.02, 0, 60, dtype=torch.float64))
    mean, variance = marginal(process, times[0])
    kept = law(DDIM(), process, times, first=(mean, variance / 4))[1]
    mended = law(PredictorCorrector(DDIM(), 3, 0.1, "sigma"), process, times, first=(mean, variance / 4))[1]
    assert kept < 0.3 * variance and abs(mended / marginal(process, times[-1])[1] - 1) < 0.02


def test_tokens_with_times_of_their_own_are_corrected_by_their_own_norms() -> None:
    """A batch of (B, L, C) with one time a token is a batch of B L samples."""
    process, x = Flow(), normal(2, 3, 8)
    times = torch.stack([torch.linspace(0.9, 0.1, 5), torch.linspace(0.8, 0.2, 5), torch.full((5,), 0.4)], 1).double()
    means = normal(4, 8)

    class PerToken:
        def __init__(self) -> None:
            self.process, self.inner = process, MixtureDenoiser(process, means, 0.3)

        def __call__(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return self.inner(x_t.reshape(-1, 8), t.reshape(-1)).reshape(x_t.shape)

    class Fixed:
        def of_step(self, number: int, x: Tensor) -> object:
            draws = iter(range(100))
            return lambda t, s: normal(6, 8, seed=100 * number + next(draws)).reshape(x.shape)

    packed = times[:, None].expand(-1, 2, -1)
    together = sample(PerToken(), PredictorCorrector(), x, packed, noise=Fixed())  # type: ignore[arg-type]
    flat = sample(PerToken(), PredictorCorrector(), x.reshape(6, 8), packed.reshape(5, 6), noise=Fixed())  # type: ignore[arg-type]
    assert torch.allclose(together.reshape(6, 8), flat, rtol=1e-12) and torch.equal(together[:, 2], x[:, 2])


def test_pc_conforms() -> None:
    torch.manual_seed(1)
    check_mixed_times(PredictorCorrector())
    check_ends(PredictorCorrector(), [Flow(), VE()])


def test_refusals_of_pc() -> None:
    for predictor in (DPMpp2M(), UniPC()):
        with pytest.raises(UserError, match="remembers former steps"):
            PredictorCorrector(predictor)
    with pytest.raises(UserError, match="snr > 0"):
        PredictorCorrector(snr=0.0)
    assert PredictorCorrector(corrector_steps=2).evaluations == 3
