"""Stochastic solvers: the exact law of what they sample, its order, and the distribution of the draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.samplers.law import MEAN, STD, Affine, Units, law, marginal
from torch import Tensor

from sfumato.core import (
    VE,
    VP,
    Cond,
    CondShape,
    Cosine,
    DiscreteVP,
    Flow,
    LogSNRGrid,
    NetDenoiser,
    Process,
    SampleNoise,
    SubVP,
    V,
)
from sfumato.errors import UserError
from sfumato.nn import MLP
from sfumato.samplers import (
    DDIM,
    Adaptive,
    Ancestral,
    AnnealedLangevin,
    DPMpp2M,
    DPMpp3M,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    LearnedAncestral,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    SASolver,
    Solver,
    UniPC,
    sample,
    simulate,
    start,
)
from sfumato.spec import as_spec, parse
from sfumato.testing import GaussianDenoiser, MixtureDenoiser, check_ends, check_mixed_times

SDE = [EulerMaruyama(), EulerMaruyama(eta=0.5), ReverseDiffusion()]
OTHERS: list[Solver] = [
    DDIM(eta=1.0),
    DDIM(eta=0.5),
    Ancestral(),
    Ancestral(variance="forward"),
    EulerAncestral(),
    DPMpp2M(eta=1.0),
    DPMpp3M(eta=1.0),
    SASolver(),
    SASolver(eta=0.3),
]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def interior(process: Process, n: int, interval: float = 4.0) -> Tensor:
    """n equal steps of t between log-SNR -interval and +interval, as in `check_order`."""
    ends = process.time(f64(-interval, interval))
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n + 1, dtype=torch.float64))


def law_error(solver: Solver, process: Process, n: int) -> float:
    """The larger of the errors of mean and variance after n steps from the exact law."""
    times = interior(process, n)
    found, want = law(solver, process, times), marginal(process, times[-1])
    return max(abs(a - b) for a, b in zip(found, want))


@pytest.mark.parametrize("process", [Flow(), VP(), VE(), Cosine()], ids=repr)
@pytest.mark.parametrize("solver", [*SDE, *OTHERS], ids=repr)
def test_weak_order(solver: Solver, process: Process) -> None:
    """At least the declared one. For linear equations the law is Gaussian, so its two moments are all of it."""
    errors = [law_error(solver, process, n) for n in (64, 128)]
    assert math.log2(errors[0] / errors[1]) > solver.order - 0.12


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("process", [VP(), SubVP(), Flow(), VE()], ids=repr)
def test_every_reverse_sde_has_the_same_marginals(process: Process, eta: float) -> None:
    """The share of noise eta is free: the law converges to that of the forward process, at first order."""
    errors = [law_error(EulerMaruyama(eta=eta), process, n) for n in (128, 256, 512)]
    assert errors[2] < 0.012 and abs(math.log2(errors[1] / errors[2]) - 1) < 0.12


def test_the_multistep_sde_solvers_are_better_than_their_order() -> None:
    """On a linear equation the law of the multistep methods converges at second order, whatever the noise."""
    for solver in (
        DPMpp2M(eta=1.0),
        DPMpp2M(eta=0.3),
        DPMpp3M(eta=1.0),
        SASolver(),
        SASolver(predictor=2, corrector=0),
    ):
        errors = [law_error(solver, VP(), n) for n in (64, 128)]
        assert math.log2(errors[0] / errors[1]) > 1.9, solver


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_sa_solver_without_noise_is_unipc_with_exact_integrals(points: int) -> None:
    process, x = VP(), normal(3, 5)
    times = LogSNRGrid()(process, 12)
    sde = SASolver(predictor=points, corrector=points, eta=0.0)
    ode = UniPC(points=points, variant="exact")
    denoiser = MixtureDenoiser(process, normal(4, 5), 0.3)
    assert torch.equal(sample(denoiser, sde, x, times), sample(denoiser, ode, x, times))


class Forbidden:
    """Noise that must not be drawn."""

    def of_step(self, number: int, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def noise(t: Tensor, s: Tensor) -> Tensor:
            raise AssertionError("a deterministic solver drew noise")

        return noise


@pytest.mark.parametrize(
    "make", [DPMpp2M, DPMpp3M, DDIM, EulerAncestral, SASolver, EulerMaruyama], ids=lambda c: c.__name__
)
def test_eta_goes_to_the_ode(make: Callable[..., Solver]) -> None:
    """eta = 0 draws nothing, and a tiny eta is that method but for noise of deviation ~ sqrt(eta)."""
    process, x = VP(), normal(3, 5)
    denoiser, times = GaussianDenoiser(process), interior(process, 16)
    ode = sample(denoiser, make(eta=0.0), x, times, noise=Forbidden())
    near = sample(denoiser, make(eta=1e-8), x, times, noise=SampleNoise((0, 1, 2)))
    assert not make(eta=0.0).stochastic and 0 < (near - ode).abs().max() < 1e-3


@pytest.mark.parametrize(
    "solver",
    [
        EulerMaruyama(eta=0.5),
        LearnedAncestral(),
        PredictorCorrector(Heun(churn=2.0), 2, 0.1, "sigma"),
        Restart(Restart(DDIM(), low=0.05, high=0.3), low=1.1, high=19.0, times=2),
        AnnealedLangevin(5, 0.124),
        Adaptive(rtol=1e-6),
    ],
    ids=repr,
)
def test_settings_round_trip(solver: Solver) -> None:
    """As a recipe's data, nested ones included."""
    assert parse(Solver, as_spec(solver).to_dict(), path="solver").build() == solver


@pytest.mark.parametrize("solver", SDE, ids=repr)
def test_conformance(solver: Solver) -> None:
    torch.manual_seed(1)
    check_mixed_times(solver)
    check_ends(solver, [Flow(), VE(), DiscreteVP("scaled_linear", zero_terminal_snr=True)])


@pytest.mark.parametrize("solver", SDE, ids=repr)
@pytest.mark.parametrize("process", [VP(), VE()], ids=repr)
def test_the_last_step_is_the_denoiser(solver: Solver, process: Process) -> None:
    denoiser, x, t = GaussianDenoiser(process), normal(2, 3), f64(0.4, 0.4)
    assert torch.equal(sample(denoiser, solver, x, torch.stack([t, 0 * t])), denoiser(x, t))


@pytest.mark.parametrize("process", [Flow(), Cosine()], ids=repr)
def test_a_step_from_pure_noise_is_ancestral(process: Process) -> None:
    """f and g^2 are infinite at alpha = 0; what is known there, x and noise are independent of the data."""
    denoiser, x, times, noise = GaussianDenoiser(process), normal(2, 3), f64(1, 0.9), SampleNoise((0, 1))
    want = sample(denoiser, Ancestral(), x, times, noise=noise)
    for solver in (EulerMaruyama(), ReverseDiffusion()):
        assert torch.allclose(sample(denoiser, solver, x, times, noise=noise), want, atol=1e-12)


def test_reverse_diffusion_is_the_papers_formula() -> None:
    """Song et al. 2021, eq. 46 for the VP chain and their SMLD update, on a discrete chain's own steps."""
    chain, k = DiscreteVP("linear", 100), 60
    t, s, x, noise = f64(k / 100), f64((k - 1) / 100), normal(1, 4), SampleNoise((0,))
    denoiser = GaussianDenoiser(chain)
    beta = 1 - (chain.alpha(t) / chain.alpha(s)).square()
    score = (chain.alpha(t) * denoiser(x, t) - x) / chain.sigma(t) ** 2
    want = (2 - (1 - beta).sqrt()) * x + beta * score + beta.sqrt() * noise.step(1, (4,)).double()
    assert torch.allclose(sample(denoiser, ReverseDiffusion(), x, torch.cat([t, s]), noise=noise), want, atol=1e-12)


def test_euler_maruyama_of_vp_has_the_papers_drift() -> None:
    """f = -beta / 2 and g^2 = beta, both known without any derivative (Song et al. 2021, eq. 11)."""
    process, x, noise = VP(), normal(1, 4), SampleNoise((0,))
    denoiser, t, h = GaussianDenoiser(process), f64(0.7), 0.02
    beta = 0.1 + 0.7 * (20 - 0.1)
    score = (process.alpha(t) * denoiser(x, t) - x) / process.sigma(t) ** 2
    want = x - (-beta / 2 * x - beta * score) * h + math.sqrt(beta * h) * noise.step(1, (4,)).double()
    got = sample(denoiser, EulerMaruyama(), x, torch.cat([t, t - h]), noise=noise)
    assert torch.allclose(got, want, rtol=1e-9)


# The forward equation


class OneEach:
    """Row k draws 1 in step k and 0 in all others: the squares of the rows add up to the variance. Row 0 draws nothing."""

    def of_step(self, number: int, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, s: (torch.arange(len(x)) == number).to(x)[:, None]


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), Flow(), Cosine()], ids=repr)
def test_the_forward_sde_has_the_processs_marginals(process: Process) -> None:
    """Mean alpha x0 and variance sigma^2 at t = 0.9 with an error of first order, without Monte Carlo."""
    errors = []
    for n in (200, 400):
        times = torch.linspace(0, 0.9, n + 1, dtype=torch.float64)
        x0 = torch.zeros(n + 1, 1, dtype=torch.float64)
        x0[0] = 1
        x = simulate(process, x0, times, noise=OneEach())[-1]
        mean, variance = float(x[0]), float(x[1:].square().sum())
        alpha, sigma = process.scales(times[-1])
        errors.append(max(abs(mean - float(alpha)), abs(variance / float(sigma) ** 2 - 1)))
    assert errors[1] < 0.02 and abs(math.log2(errors[0] / errors[1]) - 1) < 0.1


def test_simulation_refuses_times_that_fall() -> None:
    with pytest.raises(UserError, match="rise within"):
        simulate(VP(), normal(2, 3), f64(1, 0))


# Draws


def ks(x: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """The Kolmogorov-Smirnov statistic times sqrt(n): above 1.628 in 1 of 100 samples of the right law."""
    x = x.flatten().sort().values
    n, values = len(x), cdf(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((values - steps[:-1]).max(), (steps[1:] - values).max())) * math.sqrt(n)


def phi(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize("solver", [*SDE, *OTHERS, Heun(churn=8.0)], ids=repr)
def test_draws_are_gaussian_with_the_exact_law_of_the_chain(solver: Solver) -> None:
    """With 7 rough steps the chain is far from the process, and still its law is known: mean, variance and all quantiles."""
    process = VP()
    times = interior(process, 7, 3.0)
    mean, variance = law(solver, process, times)
    first = marginal(process, times[0])
    x = first[0] + math.sqrt(first[1]) * normal(4, 10_000, seed=7)
    y = sample(GaussianDenoiser(process, MEAN, STD), solver, x, times, noise=SampleNoise((10, 11, 12, 13)))
    n = y.numel()
    assert abs(float(y.mean()) - mean) < 3 * math.sqrt(variance / n)
    assert abs(float(y.var()) / variance - 1) < 3 * math.sqrt(2 / n)
    assert ks(y, lambda v: phi((v - mean) / math.sqrt(variance))) < 1.628


@pytest.mark.parametrize(
    ("solver", "steps"),
    [(EulerMaruyama(), 400), (ReverseDiffusion(), 400), (Ancestral(), 400), (DPMpp2M(eta=1.0), 60), (SASolver(), 60)],
    ids=repr,
)
def test_draws_of_a_mixture(solver: Solver, steps: int) -> None:
    """Three components of unequal weights: the whole distribution, by Kolmogorov-Smirnov at the 1% level."""
    process, means, weights, std = VP(), f64(-1.2, 0.3, 1.5), f64(0.5, 0.2, 0.3), 0.25
    denoiser = MixtureDenoiser(process, means[:, None], std, weights)
    times = process.time(torch.linspace(-9, 8, steps + 1, dtype=torch.float64))
    times[0] = 1.0
    torch.manual_seed(2)
    y = sample(denoiser, solver, normal(10_000, 1, seed=5), times)
    alpha, sigma = (float(c) for c in process.scales(times[-1]))
    spread = math.sqrt((alpha * std) ** 2 + sigma**2)
    assert ks(y, lambda v: (weights * phi((v[:, None] - alpha * means) / spread)).sum(1)) < 1.628


def test_edm_algorithm_2() -> None:
    """Heun with churn is Karras et al. 2022, algorithm 2, written out here, with the same noise."""
    process, n = VE(), 18
    churn, low, high, s_noise, rho = 10.0, 0.05, 50.0, 1.007, 7.0
    noise, latents = SampleNoise((0, 1)), normal(2, 50)
    i = torch.arange(n, dtype=torch.float64)
    sigmas = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    sigmas = torch.cat([sigmas, f64(0)])

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        return (0.49 * x + sigma**2 * 0.5) / (0.49 + sigma**2)

    x = 80 * latents
    for k in range(n):
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= sigmas[k] <= high else 0.0
        raised = sigmas[k] * (1 + gamma)
        added = (raised**2 - sigmas[k] ** 2).sqrt() * s_noise
        x_hat = x + added * noise.step(k + 1, (50,)).double()
        d = (x_hat - net(x_hat, raised)) / raised
        x = x_hat + (sigmas[k + 1] - raised) * d
        if sigmas[k + 1] > 0:
            ahead = (x - net(x, sigmas[k + 1])) / sigmas[k + 1]
            x = x_hat + (sigmas[k + 1] - raised) * (d + ahead) / 2

    solver = Heun(frame="ve", churn=churn, churn_min=low, churn_max=high, churn_noise=s_noise)
    times = process.time(-2 * sigmas[:-1].log())
    times = torch.cat([times, f64(0)])
    times[0] = 1.0
    got = sample(GaussianDenoiser(process), solver, start(process, latents, times[0]), times, noise=noise)
    assert torch.allclose(got, x, atol=1e-10, rtol=1e-10)


# A learned variance


class WithVariance:
    """A Gaussian's denoiser that says where the variance of its reverse step lies; `between` is v for (t, s)."""

    def __init__(self, process: Process, times: Tensor, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.process, self.inner, self.between = process, Affine(process), between
        self.following = dict(zip(times.tolist(), times[1:].tolist()))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.inner(x_t, t, cond)

    def with_variance(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        s = f64(*[self.following[v] for v in t.tolist()])
        return self(x_t, t), torch.ones_like(x_t) * self.between(t, s)[:, None]


@pytest.mark.parametrize("process", [VP(), Flow(), VE()], ids=repr)
def test_with_the_right_variance_the_law_is_exact_for_any_number_of_steps(process: Process) -> None:
    """For Gaussian data x_s given x_t is Gaussian: variance V_s (1 - a^2 V_s / V_t). Three huge steps, no error."""

    def between(t: Tensor, s: Tensor) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
        before, after = (a**2 * STD**2 + b**2 for a, b in ((alpha_t, sigma_t), (alpha_s, sigma_s)))
        exact = after * (1 - (alpha_t / alpha_s) ** 2 * after / before)
        small, large = (v.log() for v in process.variances(t, s))
        return (exact.log() - small) / (large - small)

    times = interior(process, 3)
    denoiser = WithVariance(process, times, between)
    first = marginal(process, times[0])
    x = torch.zeros(1, 8, dtype=torch.float64)
    x[0, 0], x[0, 1] = first[0], math.sqrt(first[1])
    y = sample(denoiser, LearnedAncestral(), x, times, noise=Units())[0]
    want = marginal(process, times[-1])
    assert abs(float(y[0]) - want[0]) < 1e-12 and abs(float(y[1:].square().sum()) / want[1] - 1) < 1e-12
    assert law_error(Ancestral(), process, 3) > 0.02  # which a fixed variance does not do


@pytest.mark.parametrize(("v", "variance"), [(0.0, "posterior"), (1.0, "forward")])
def test_the_ends_of_the_learned_variance_are_the_fixed_ones(v: float, variance: str) -> None:
    """beta-tilde for v = 0 and, on a variance-preserving process, beta for v = 1; the last step draws nothing."""
    process, x, noise = VP(), normal(2, 3), SampleNoise((0, 1))
    times = LogSNRGrid()(process, 9)
    denoiser = WithVariance(process, times, lambda t, s: torch.full_like(t, v))
    got = sample(denoiser, LearnedAncestral(), x, times, noise=noise)
    want = sample(denoiser, Ancestral(variance=variance), x, times, noise=noise)  # type: ignore[arg-type]
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)


def test_a_network_with_a_learned_variance() -> None:
    """Fresh weights say v = 1/2 and F = 0: the step's variance is the geometric mean of the two."""
    process = VP()
    network = MLP((4,), CondShape(), width=8, depth=1, outputs=2)
    model = NetDenoiser(network, process, V(), learned_variance=True)
    x, t, s, noise = normal(2, 4).float(), f64(0.6, 0.6), f64(0.4, 0.4), SampleNoise((0, 1))
    with torch.no_grad():
        got = sample(model, LearnedAncestral(), x, torch.stack([t, s]), noise=noise)
        mean = process.posterior(model(x, t), x, t, s).mean
    small, large = process.variances(t[0], s[0])
    want = mean + float((small * large) ** 0.25) * noise.step(1, (4,))
    assert torch.allclose(got, want, atol=1e-6)


def test_learned_ancestral_conforms() -> None:
    process = Flow()
    grids = torch.stack([f64(1, 0.7, 0.4, 0), f64(0.9, 0.5, 0.5, 0.1)], 1)
    x, noise = normal(2, 3), SampleNoise((0, 1))

    class Half:
        def __init__(self) -> None:
            self.process, self.inner = process, GaussianDenoiser(process)

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            return self.inner(x_t, t)

        def with_variance(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
            return self.inner(x_t, t), torch.full_like(x_t, 0.5)

    both = sample(Half(), LearnedAncestral(), x, grids, noise=noise)
    for i in range(2):
        alone = sample(Half(), LearnedAncestral(), x[i : i + 1], grids[:, i], noise=SampleNoise((i,)))
        assert torch.equal(both[i : i + 1], alone)
    held = sample(Half(), LearnedAncestral(), x, torch.full((3, 2), 0.0).double(), noise=noise)
    assert torch.equal(held, x)


def test_without_a_learned_variance_it_is_refused() -> None:
    times = LogSNRGrid()(VP(), 4)
    with pytest.raises(UserError, match="solver=ddpm"):
        sample(GaussianDenoiser(VP()), LearnedAncestral(), normal(2, 3), times)
    model = NetDenoiser(MLP((3,), CondShape(), width=8, depth=1), VP(), V())
    with pytest.raises(UserError, match="objective=hybrid"):
        sample(model, LearnedAncestral(), normal(2, 3).float(), times)
