"""The variational bound against closed forms, and its decoder."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from sfumato.codecs import Pixels
from sfumato.core import VP, Cond, DataInfo, DiscreteVP, Draws, Flow, Process
from sfumato.errors import SfumatoError, UserError
from sfumato.evaluate import OdeLikelihood, VariationalBound
from sfumato.evaluate.bound import decode_log_p, step_kl
from sfumato.testing import PROCESSES, GaussianDenoiser, MixtureDenoiser

MEAN, STD, DIMS = 0.1, 0.7, 6


def gaussian(n: int = 1024) -> Tensor:
    return MEAN + STD * torch.randn(n, DIMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def posterior_variance(process: Process, t: Tensor) -> Tensor:
    """Var[x0 | x_t] of one number of the Gaussian."""
    alpha, sigma = process.scales(t)
    return STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)


def agrees(found: Tensor, expected: float, most: float) -> None:
    """The mean of found is the expected number within 4 standard errors, and those are small."""
    error = float(found.std()) / math.sqrt(len(found))
    assert error < most
    assert abs(float(found.mean()) - expected) < 4 * error


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_of_the_exact_denoiser_it_is_the_negative_log_density(process: Process) -> None:
    x0 = gaussian()
    terms = VariationalBound(times=32)(GaussianDenoiser(process, MEAN, STD), x0, Draws(0, 0, len(x0)))
    over = (terms.total + Normal(MEAN, STD).log_prob(x0).sum(1)) / DIMS
    agrees(over, 0.0, 0.01)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_chain_is_the_sum_of_its_steps(process: Process, variance: str) -> None:
    """Against the KL of Gaussians of torch.distributions, summed over a chain of 50 steps in closed form."""
    steps, x0 = 50, gaussian()
    method = VariationalBound(times=16, steps=steps, variance=variance, logsnr_max=12)  # type: ignore[arg-type]
    terms = method(GaussianDenoiser(process, MEAN, STD), x0, Draws(0, 0, len(x0)))
    least = float(process.time(torch.tensor(12.0, dtype=torch.float64)))
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    times = torch.cat([times[:1].clamp(min=least), times[1:][times[1:] > least]])
    expected = 0.0
    for s, t in pairwise(times):
        error = posterior_variance(process, t).sqrt()  # E over x0 of the KL, which is quadratic in the error
        zero = torch.zeros((), dtype=torch.float64)
        q = process.posterior(error, zero, t, s)
        small, large = process.variances(t, s)
        torch.testing.assert_close(q.variance, small)
        p = Normal(zero, (small if variance == "small" else large).sqrt())
        expected += float(kl_divergence(Normal(q.mean, small.sqrt()), p))
    agrees(terms.noise / DIMS, expected, 0.05 * expected)


def test_more_steps_bring_the_chain_down_to_continuous_time() -> None:
    x0, process = gaussian(), VP()
    truth = -Normal(MEAN, STD).log_prob(x0).sum(1)
    over = []
    for n in (10, 100, 1000):
        method = VariationalBound(steps=n, variance="large", logsnr_max=9)
        over.append((method(GaussianDenoiser(process, MEAN, STD), x0, Draws(0, 0, len(x0))).total - truth) / DIMS)
    assert over[0].mean() > over[1].mean() > over[2].mean()
    agrees(over[2], 0.0, 0.02)


def test_a_wrong_denoiser_costs_what_the_theory_says() -> None:
    """Data of deviation 0.7 under the exact model of deviation 1: the bound is the cross-entropy, above the entropy.

    The exact denoiser of another Gaussian is the exact model of that Gaussian, for the SDE and the ODE alike.
    """
    x0 = gaussian()
    denoiser, draws = GaussianDenoiser(Flow(), 0.0, 1.0), Draws(0, 0, len(x0))
    bound = VariationalBound()(denoiser, x0, draws).total / DIMS
    cross = -Normal(0.0, 1.0).log_prob(x0).sum(1) / DIMS
    agrees(bound - cross, 0.0, 0.01)
    ode = -OdeLikelihood()(denoiser, x0[:64]).log_p[:, 0] / DIMS
    torch.testing.assert_close(ode, cross[:64], rtol=0, atol=0.005)
    assert float(bound.mean()) > -float(Normal(MEAN, STD).log_prob(x0).mean()) + 0.05


def test_the_prior_term_is_the_kl_at_the_end() -> None:
    x0, process = gaussian(8), DiscreteVP(beta_end=0.005)
    alpha, sigma = process.scales(torch.ones((), dtype=torch.float64))
    expected = kl_divergence(Normal(alpha * x0, sigma), Normal(torch.zeros_like(x0), sigma)).sum(1)
    found = VariationalBound(times=1)(GaussianDenoiser(process), x0, Draws(0, 0, 8)).prior
    torch.testing.assert_close(found, expected)
    assert float(expected.min()) > 0.01


def test_a_learned_variance_at_its_ends_is_the_fixed_one() -> None:
    process, x0, draws = VP(), gaussian(16), Draws(0, 0, 16)
    exact = GaussianDenoiser(process, MEAN, STD)

    class Learned:
        def __init__(self, place: float) -> None:
            self.process, self.place = process, place

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            return exact(x_t, t, cond)

        def with_variance(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
            return exact(x_t, t, cond), torch.full_like(x_t, self.place)

    for place, variance in ((0.0, "small"), (1.0, "large")):
        fixed = VariationalBound(steps=20, variance=variance)(exact, x0, draws)  # type: ignore[arg-type]
        learned = VariationalBound(steps=20, variance="learned")(Learned(place), x0, draws)
        torch.testing.assert_close(learned.total, fixed.total)


def test_the_kl_of_a_step_is_finite_where_alpha_is_0() -> None:
    t, s = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.9, dtype=torch.float64)
    wrong = torch.full((1, 2), 0.25, dtype=torch.float64)
    # q(x_s | x_1, x0) = N(0.1 x0, 0.81): KL = 2 x (0.1 x 0.5)^2 / (2 x 0.81)
    assert float(step_kl(Flow(), wrong, t, s)) == pytest.approx(2 * 0.05**2 / (2 * 0.81))


# ---------------------------------------------------------------- the decoder


def whitened() -> Pixels:
    codec = Pixels(DataInfo((2, 3, 1)))
    codec.whitening.mean.copy_(torch.tensor([-0.2, 0.1]))
    codec.whitening.std.copy_(torch.tensor([0.5, 0.9]))
    return codec


def test_the_decoder_is_a_distribution_over_the_grey_levels() -> None:
    codec = whitened()
    values = codec.values().double()
    mean = torch.randn(1, 2, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = mean[:, :1, :1]
    for deviation in (1e-3, 0.02, 3.0):
        s = torch.full((256,), deviation, dtype=torch.float64)
        p = decode_log_p(one.expand(256, 1, 1, 1), s, values[0].reshape(256, 1, 1, 1), values[:1]).exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-12)
        assert int(p.argmax()) == int((values[0] - one.squeeze()).abs().argmin())


def test_the_decoder_of_a_picture_is_the_product_over_its_numbers() -> None:
    codec = whitened()
    media = torch.tensor([[[[0], [7], [255]], [[30], [31], [128]]]], dtype=torch.uint8)
    x0 = codec.whiten(codec.encode(media)).double()
    mean = x0 + 0.01 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = torch.tensor([0.013], dtype=torch.float64)
    together = decode_log_p(mean, s, x0, codec.values())
    values = codec.values().double()
    apart = 0.0
    for c in range(2):
        for i in range(3):
            energy = [-((float(v) - float(mean[0, c, i, 0])) ** 2) / (2 * 0.013**2) for v in values[c]]
            chosen = energy[int(media[0, c, i, 0])]
            apart += chosen - math.log(sum(math.exp(e - chosen) for e in energy)) - chosen
    assert float(together) == pytest.approx(apart, rel=1e-5)


def test_a_known_distribution_over_patterns_costs_its_entropy() -> None:
    """Three pictures, equally likely, and the exact denoiser of three points: ln 3 nats, whatever the process."""
    codec = whitened()
    media = torch.randint(0, 256, (3, 2, 3, 1), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    patterns = codec.whiten(codec.encode(media)).double()
    x0 = patterns.repeat(300, 1, 1, 1)
    for process in (Flow(), VP()):
        denoiser = MixtureDenoiser(process, patterns, std=0.0)
        found = VariationalBound(logsnr_max=14)(denoiser, x0, Draws(0, 0, 900), values=codec.values()).total
        agrees(found, math.log(3), 0.05)
        default = VariationalBound()(denoiser, x0, Draws(0, 0, 900), values=codec.values()).total
        assert float(default.mean()) > math.log(3) + 1  # noise of one grey level: its decoder can't know the patterns


def test_what_can_not_be_computed() -> None:
    with pytest.raises(UserError, match="times = 0"):
        VariationalBound(times=0)
    with pytest.raises(UserError, match="at least 2"):
        VariationalBound(steps=1)
    with pytest.raises(UserError, match="variance = large is that of a chain's steps"):
        VariationalBound(variance="large")
    with pytest.raises(UserError, match="no variance of its own"):
        VariationalBound(steps=10, variance="learned")(GaussianDenoiser(Flow()), gaussian(2), Draws(0, 0, 2))
    with pytest.raises(SfumatoError, match="bound of sample 1 is not finite"):
        x0 = gaussian(2)
        x0[1, 0] = torch.nan
        VariationalBound()(GaussianDenoiser(Flow()), x0, Draws(0, 0, 2))
