"""Score matching: on Gaussians every form finds the exact score, and sliced is implicit on average."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.core.exact import Exact
from torch import Tensor, nn

from sfumato.core import (
    ELBO,
    VE,
    VP,
    X0,
    Cond,
    Cosine,
    DenoisingLoss,
    Draws,
    Eps,
    Flow,
    GeometricTimes,
    ImplicitScoreMatching,
    Karras,
    Likelihood,
    LogSNRTimes,
    Loss,
    NetDenoiser,
    Network,
    Parameterization,
    Process,
    Shifted,
    SigmaSquared,
    SlicedScoreMatching,
    SubVP,
    UniformTimes,
    Unit,
    V,
    Velocity,
    geometric_levels,
    largest_distance,
    views,
)  # fmt: skip
from sfumato.core.levels import overlap
from sfumato.errors import UserError

D = 3


class Affine(Network):
    """F = W x + b: with `X0` the score is affine in x_t."""

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(D) * 0.5 if weight is None else weight)
            self.linear.bias.zero_()

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def data(n: int) -> tuple[Tensor, Tensor]:
    """x0 of a correlated Gaussian with a mean, and noise."""
    x0, eps = torch.randn(2, n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mix = torch.tensor([[0.9, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.6]]).double()
    return x0 @ mix.T + torch.tensor([0.5, -0.2, 0.1]).double(), eps


def minimise(denoiser: NetDenoiser, loss) -> None:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.LBFGS(
        denoiser.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss().value
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]


def signs() -> list[Tensor]:
    return [torch.tensor(v).double() for v in itertools.product([-1.0, 1.0], repeat=D)]


@pytest.mark.parametrize("process", [Flow(), VE(), SubVP()], ids=repr)
@pytest.mark.parametrize("form", ["implicit", "sliced", "reduced"])
def test_an_affine_score_becomes_that_of_the_sample(process: Process, form: str) -> None:
    """The minimiser among s = -A x + b has A = (sample covariance)^-1 and b = A (sample mean): exact for any sample."""
    x0, eps = data(400)
    t = process.time(torch.full((400,), 2.0).double())
    denoiser = NetDenoiser(Affine(), process, X0())

    def loss() -> Loss:
        if form == "implicit":
            return ImplicitScoreMatching().at(denoiser, x0, None, t, eps)
        one = SlicedScoreMatching(reduced=form == "reduced")  # over all signs the slices are the trace, and |s|^2
        losses = [one.at(denoiser, x0, None, t, eps, v.expand_as(x0)) for v in signs()]
        return Loss(torch.stack([each.value for each in losses]).mean(), losses[0].per_sample, t)

    minimise(denoiser, loss)
    x = process.diffuse(x0, eps, t)
    mean, precision = x.mean(0), torch.linalg.inv(torch.cov(x.T, correction=0))
    assert torch.allclose(views.score(denoiser, x, t), -(x - mean) @ precision, atol=1e-5)


def test_denoising_score_matching_finds_the_same_score() -> None:
    """Against the population's score: its noise is in the target, so to 3 / sqrt(n)."""
    n, process = 40_000, VP()
    x0, eps = data(n)
    t = process.time(torch.full((n,), 1.0).double())
    denoiser = NetDenoiser(Affine(), process, X0())
    minimise(denoiser, lambda: DenoisingLoss(weighting=SigmaSquared()).at(denoiser, x0, None, t, eps))
    alpha, sigma = process.scales(t[0])
    x = process.diffuse(x0, eps, t)[:500]
    covariance = alpha**2 * torch.cov(x0.T, correction=0) + sigma**2 * torch.eye(D)
    want = -(x - alpha * x0.mean(0)) @ torch.linalg.inv(covariance)
    assert (views.score(denoiser, x, t[:500]) - want).square().mean().sqrt() < 3 / math.sqrt(n) * want.std() * D


@pytest.mark.parametrize("reduced", [True, False])
def test_sliced_is_implicit_on_average(reduced: bool) -> None:
    """Over all 8 directions of +-1 the mean is exact, sample by sample; over drawn ones it is within its error."""
    process = Cosine()
    x0, eps = data(64)
    t = torch.linspace(0.1, 0.9, 64).double()
    weight = torch.tensor([[0.3, 0.1, -0.2], [0.5, 0.2, 0.0], [0.1, -0.4, 0.6]])
    denoiser = NetDenoiser(Affine(weight), process, X0())
    exact = ImplicitScoreMatching().at(denoiser, x0, None, t, eps)
    sliced = SlicedScoreMatching(reduced=reduced)
    each = torch.stack([sliced.at(denoiser, x0, None, t, eps, v.expand_as(x0)).per_sample for v in signs()])
    assert torch.allclose(each.mean(0), exact.per_sample, rtol=1e-12)
    assert each.std(0).min() > 0  # the directions do make a difference


def test_one_direction_has_less_variance_when_reduced() -> None:
    process, (x0, eps) = Flow(), data(512)
    t, v = torch.full((512,), 0.3).double(), Draws(0, 0, 512).normal((D,), "slice").sign()
    denoiser = NetDenoiser(Affine(), process, X0())  # a multiple of the identity: v^T A v is the trace for every v
    exact = ImplicitScoreMatching().at(denoiser, x0, None, t, eps).per_sample
    errors = [
        (SlicedScoreMatching(reduced=r).at(denoiser, x0, None, t, eps, v).per_sample - exact).std()
        for r in (True, False)
    ]
    assert errors[0] < 1e-12 < errors[1]


def test_gradients_reach_the_weights_and_draws_decide() -> None:
    """As objectives: a function of the sample's index, and twice differentiable through the network."""
    for objective in (ImplicitScoreMatching(), SlicedScoreMatching()):
        denoiser = NetDenoiser(Affine(), Flow(), X0())
        x0 = data(8)[0]
        whole = objective(denoiser, x0, None, Draws(0, 40, 8))
        halves = [objective(denoiser, x0[i : i + 4], None, Draws(0, 40 + i, 4)).per_sample for i in (0, 4)]
        assert torch.equal(whole.per_sample, torch.cat(halves))
        whole.value.backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in denoiser.parameters())


# ------------------------------------------------------------------------------------------------ weights
PARAMETERIZATIONS: list[Parameterization] = [X0(), Eps(), V(), Velocity(), Karras()]
TIMES = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=repr)
def test_score_weights_weigh_the_error_of_the_score(parameterization: Parameterization) -> None:
    """sigma^2 |s - s*|^2 and g^2 |s - s*|^2 / 2, s* = -eps / sigma, whatever the network gives."""
    process = VP()
    x0, eps = data(len(TIMES))
    denoiser = NetDenoiser(Affine(), process, parameterization)
    sigma, x_t = process.sigma(TIMES), process.diffuse(x0, eps, TIMES)
    error = (views.score(denoiser, x_t, TIMES) + eps / sigma[:, None]).square().mean(1)
    for weighting, on_score in ((SigmaSquared(), sigma**2), (Likelihood(), process.diffusion(TIMES) / 2)):
        got = DenoisingLoss(weighting=weighting).at(denoiser, x0, None, TIMES, eps).value
        assert got.item() == pytest.approx((on_score * error).mean().item(), rel=1e-6)  # errors are float32


def test_sigma_squared_is_unit_for_eps() -> None:
    """Song & Ermon 2019's weighted score matching is DDPM's simple loss."""
    for process in (VP(), VE(), SubVP()):
        c = Eps().coeffs(*process.scales(TIMES))
        assert torch.allclose(SigmaSquared()(process, TIMES, c), Unit()(process, TIMES, c), rtol=1e-12)


def test_likelihood_weight_by_importance_sampling() -> None:
    """Uniform times with the weight = uniform log-SNR, weight 1 on eps, times half the range (Song et al. 2021, 4)."""
    process, n, low, high = VP(), 200_000, -6.0, 7.0
    u = (torch.arange(n).double() + 0.5) / n

    def err(t: Tensor) -> Tensor:  # of eps, any function of lambda
        return torch.sigmoid(process.logsnr(t) / 3)

    drawn = LogSNRTimes(low, high)(process, u)
    want = (high - low) / 2 * err(drawn).mean()
    ends = process.time(torch.tensor([high, low]).double())
    t = torch.lerp(ends[0], ends[1], u)
    weight = Likelihood()(process, t, Eps().coeffs(*process.scales(t)))
    assert ((ends[1] - ends[0]) * (weight * err(t)).mean()).item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("process", [Flow(), Cosine(), VP(), SubVP(), VE(), Shifted(Cosine(), 2.0)], ids=repr)
def test_the_elbo_is_the_information_for_every_schedule(process: Process) -> None:
    """For data of deviation d and the exact denoiser it is the integral of half the MMSE over the SNR, which is the mutual
    information: ln(1 + d^2 SNR) / 2 between the ends (Guo, Shamai & Verdu, 2005, eq. 1), the same for every process."""
    n, high = 8192, 5.0
    parameterization = V()
    denoiser = NetDenoiser(Exact(process, parameterization), process, parameterization)
    x0 = 0.7 * Draws(3, 0, n).normal((96,), "data").double()
    got = ELBO(high)(denoiser, x0, None, Draws(0, 0, n)).value.item()
    last = process.logsnr(torch.ones((), dtype=torch.float64)).exp().item()
    want = (math.log1p(0.49 * math.exp(high)) - math.log1p(0.49 * last)) / 2
    assert got == pytest.approx(want, rel=0.004)


# ------------------------------------------------------------------------------------------------ levels
def test_geometric_times() -> None:
    """Each of L levels equally often, in geometric progression (Song & Ermon 2019, section 3.2)."""
    process, u = VE(), (torch.arange(3000).double() + 0.5) / 3000
    sigma = process.sigma(GeometricTimes(0.02, 80.0, 30)(process, u))
    levels, counts = torch.unique(sigma, return_counts=True)
    assert counts.tolist() == [100] * 30
    assert levels[0].item() == pytest.approx(0.02) and levels[-1].item() == pytest.approx(80)
    ratios = levels[1:] / levels[:-1]
    assert torch.allclose(ratios, ratios[0].expand_as(ratios))
    one = GeometricTimes(0.1, 0.1, 1)(VP(), u)  # on any process it is sigma / alpha
    assert torch.allclose(VP().logsnr(one), torch.tensor(-2 * math.log(0.1)).double())
    with pytest.raises(UserError, match="sigma_max=90 and the process ends at sigma / alpha = 80"):
        GeometricTimes(0.1, 90, 3)(VE(), u)
    for bad in ((0, 1, 3), (2, 1, 3), (1, 2, 0)):
        with pytest.raises(UserError, match="geometric times need"):
            GeometricTimes(*bad)
    assert UniformTimes(low=0.2)(process, u).min() == pytest.approx(0.2 + 0.8 * u[0].item())


def test_the_papers_numbers_of_levels() -> None:
    """NCSNv2's 232 for CIFAR-10 (sigma 50 to 0.01) and 500 for CelebA 64 (90 to 0.01) come from one overlap, 0.567."""
    assert geometric_levels(3 * 32 * 32, 0.01, 50, share=0.567) == 232
    assert geometric_levels(3 * 64 * 64, 0.01, 90, share=0.567) == 500
    # the overlap is a probability: the share of N(0, sigma^2 I) whose radius is within 3 deviations of the next shell
    ratio, dims = 1.05, 4000
    radius = (torch.randn(4_000, dims, generator=torch.Generator().manual_seed(0)).square().sum(1) / 2).sqrt() * 2**0.5
    shell, spread = ratio * math.sqrt(dims), ratio * math.sqrt(0.5)
    inside = ((radius - shell).abs() < 3 * spread).float().mean().item()
    assert inside == pytest.approx(overlap(ratio, dims), abs=0.02)


def test_the_largest_distance() -> None:
    x = torch.zeros(600, 3, 2)
    x[17, 0, 0], x[555, 2, 1] = 3.0, 4.0
    assert largest_distance(x) == pytest.approx(5)
    with pytest.raises(UserError, match="at least 2"):
        largest_distance(x[:1])
    with pytest.raises(UserError, match="levels need"):
        geometric_levels(10, 1.0, 0.5)
