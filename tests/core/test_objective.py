"""Parameterizations, weights, times and the loss, against closed forms."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from sfumato.core import (
    EDM,
    VE,
    VP,
    X0,
    Coeffs,
    Cond,
    Cosine,
    DenoisingLoss,
    DiscreteVP,
    Draws,
    Eps,
    Flow,
    Karras,
    LogitNormalTimes,
    LogNormalTimes,
    LogSNRTimes,
    MinSNR,
    NetDenoiser,
    Network,
    Parameterization,
    Process,
    Sigmoid,
    Times,
    UniformTimes,
    Unit,
    V,
    Velocity,
    VelocityError,
    lift,
)  # fmt: skip
from sfumato.errors import UserError
from sfumato.testing import PROCESSES, GaussianDenoiser

PARAMETERIZATIONS: list[Parameterization] = [X0(), Eps(), V(), Velocity(), Karras(), Karras(0.5)]
TIMES = torch.linspace(1e-5, 1 - 1e-5, 301, dtype=torch.float64)
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_every_target_gives_x0_back() -> None:
    """c_skip x_t + c_out (k_x0 x0 + k_eps eps) = x0 for all pairs and times: defect oracle 2 of the reference."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(TIMES), 3, generator=generator, dtype=torch.float64)
    for process, parameterization in product(PROCESSES, PARAMETERIZATIONS):
        c = parameterization.coeffs(*process.scales(TIMES))
        target = lift(c.k_x0, x0) * x0 + lift(c.k_eps, x0) * eps
        got = lift(c.c_skip, x0) * process.diffuse(x0, eps, TIMES) + lift(c.c_out, x0) * target
        if not parameterization.divides_by_alpha:
            assert torch.allclose(got, x0, atol=1e-12), (process, parameterization)
        else:  # eps loses digits as alpha vanishes: x0 = (x_t - sigma eps) / alpha
            error = (got - x0).abs().amax(1) * process.alpha(TIMES)
            assert error.max() < 1e-12, (process, parameterization)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_targets_are_the_papers(process: Process) -> None:
    alpha, sigma = process.scales(TIMES)
    want = {
        X0(): (torch.ones_like(alpha), torch.zeros_like(alpha)),
        Eps(): (torch.zeros_like(alpha), torch.ones_like(alpha)),
        V(): (-sigma, alpha),
        Velocity(): (-torch.ones_like(alpha), torch.ones_like(alpha)),
    }
    for parameterization, (k_x0, k_eps) in want.items():
        c = parameterization.coeffs(alpha, sigma)
        assert torch.equal(c.k_x0, k_x0) and torch.equal(c.k_eps, k_eps)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_unit_scales(process: Process) -> None:
    """For data of unit deviation, inputs have unit variance; so have Karras' targets (Karras et al. 2022, eq. 114, 117)."""
    alpha, sigma = process.scales(TIMES)
    for parameterization in (X0(), V(), Velocity(), Karras(1.0)):
        c = parameterization.coeffs(alpha, sigma)
        assert torch.allclose(c.c_in**2 * (alpha**2 + sigma**2), torch.ones_like(alpha))
    c = Karras(1.0).coeffs(alpha, sigma)
    assert torch.allclose(c.k_x0**2 + c.k_eps**2, torch.ones_like(alpha))


def test_karras_is_edms_table() -> None:
    """alpha = 1: c_skip, c_out and c_in of Karras et al. 2022, table 1."""
    d, process = 0.5, VE()
    sigma = process.sigma(TIMES)
    c = Karras(d).coeffs(*process.scales(TIMES))
    assert torch.allclose(c.c_skip, d * d / (sigma**2 + d * d))
    assert torch.allclose(c.c_out, sigma * d / (d * d + sigma**2).sqrt())
    assert torch.allclose(c.c_in, 1 / (d * d + sigma**2).sqrt())


def test_finite_at_both_ends() -> None:
    for process, parameterization in product(PROCESSES, PARAMETERIZATIONS):
        if parameterization.divides_by_alpha and process.alpha(ENDS)[1] == 0:
            continue
        c: Coeffs = parameterization.coeffs(*process.scales(ENDS))
        assert all(torch.isfinite(v).all() for v in c), (process, parameterization)
        assert c.c_noise[0] == 0 and 0.98 < c.c_noise[1] <= 1


class Exact(Network):
    """The best network there is for a Gaussian: F = (E[x0 | x_t] - c_skip x_t) / c_out."""

    def __init__(self, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        self.denoiser, self.parameterization = GaussianDenoiser(process, mean=0.0, std=0.7), parameterization

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        process = self.denoiser.process
        u = noise.double().clamp(1e-9, 1 - 1e-9)
        t = process.time(2 * ((1 - u) / u).log())  # the level says which time it is: u = sigma / (alpha + sigma)
        c = self.parameterization.coeffs(*process.scales(t))
        x_t = x / lift(c.c_in, x)
        return (self.denoiser(x_t, t) - lift(c.c_skip, x) * x_t) / lift(c.c_out, x)


@pytest.mark.parametrize("process", [Flow(), Cosine(), VP(), VE()], ids=repr)
@pytest.mark.parametrize("parameterization", [X0(), Eps(), V(), Velocity(), Karras()], ids=repr)
def test_the_least_loss_is_the_posterior_variance(process: Process, parameterization: Parameterization) -> None:
    """E |x0 - E[x0|x_t]|^2 = v sigma^2 / (alpha^2 v + sigma^2) for a Gaussian of variance v, whatever is predicted."""
    if parameterization.divides_by_alpha and process.alpha(ENDS)[1] == 0:
        with pytest.raises(UserError, match="divides by alpha"):
            NetDenoiser(Exact(process, parameterization), process, parameterization)
        return
    denoiser = NetDenoiser(Exact(process, parameterization), process, parameterization)
    n, draws = 4096, Draws(0, 0, 4096)
    t = process.time(torch.full((n,), 1.0, dtype=torch.float64))
    x0 = 0.7 * draws.normal((16,), "data").double()
    loss = DenoisingLoss().at(denoiser, x0, None, t, draws.normal((16,)).double())
    alpha, sigma = process.scales(t[0])
    on_x0 = 0.49 * sigma**2 / (alpha**2 * 0.49 + sigma**2)
    c_out = parameterization.coeffs(alpha, sigma).c_out
    assert loss.value.item() == pytest.approx((on_x0 / c_out**2).item(), rel=0.03)
    assert torch.isfinite(loss.per_sample).all()


def test_denoiser_is_the_exact_one() -> None:
    process, t, x = VP(), torch.tensor([0.3, 0.6]).double(), torch.tensor([[0.4], [-1.0]]).double()
    denoiser = NetDenoiser(Exact(process, V()), process, V())
    assert torch.allclose(denoiser(x, t), GaussianDenoiser(process, 0.0, 0.7)(x, t), atol=1e-9)


# ------------------------------------------------------------------------------------------------ weights
def test_min_snr_is_the_papers_for_every_prediction() -> None:
    """min(SNR, 5)/SNR for eps, min(SNR, 5)/(SNR + 1) for v, min(SNR, 5) for x0 (Hang et al. 2023, section 3.4)."""
    process = VP()
    snr = process.logsnr(TIMES).exp()
    least = snr.clamp(max=5.0)
    for parameterization, want in ((Eps(), least / snr), (V(), least / (snr + 1)), (X0(), least)):
        got = MinSNR(5.0)(process, TIMES, parameterization.coeffs(*process.scales(TIMES)))
        assert torch.allclose(got, want, rtol=1e-8), parameterization


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("parameterization", [X0(), V(), Velocity(), Karras(0.5)], ids=repr)
def test_velocity_weight_is_the_error_of_the_velocity(process: Process, parameterization: Parameterization) -> None:
    """|F - F*|^2 w = |v - v*|^2 where u is above `least`, v = eps - x0 read from the same x_t; there it is capped."""
    alpha, sigma = process.scales(TIMES)
    c = parameterization.coeffs(alpha, sigma)
    off = 0.1 * (1 + TIMES)  # of the output
    x0_off = c.c_out * off
    v_off = x0_off / Velocity().coeffs(alpha, sigma).c_out  # F of `velocity` for the x0 that is off by so much
    weight = VelocityError(least=0.0)(process, TIMES, c)
    assert torch.allclose(weight * off.square(), v_off.square(), rtol=1e-9)
    capped = VelocityError(least=0.3)(process, TIMES, c)
    u = sigma / (alpha + sigma)
    assert torch.allclose(capped, torch.where(u < 0.3, (c.c_out / 0.3).square(), weight), rtol=1e-9)


@pytest.mark.parametrize("least", [-0.1, 1.0])
def test_a_velocity_weight_of_no_level_is_refused(least: float) -> None:
    with pytest.raises(UserError, match="least"):
        VelocityError(least=least)


def test_edm_weight_is_one_on_its_own_output() -> None:
    for process in PROCESSES:
        c = Karras(0.5).coeffs(*process.scales(TIMES))
        assert torch.allclose(EDM(0.5)(process, TIMES, c), torch.ones_like(TIMES))


def test_edm_weight_is_the_papers() -> None:
    process = VE()
    sigma = process.sigma(TIMES)
    got = EDM(0.5)(process, TIMES, X0().coeffs(*process.scales(TIMES)))
    assert torch.allclose(got, (sigma**2 + 0.25) / (sigma * 0.5) ** 2)


def test_sigmoid_weight_does_not_depend_on_the_schedule() -> None:
    """E_t[w(t) err(lambda)] is an integral over lambda alone (Kingma & Gao 2023, section 2): equal for all processes."""

    def objective(process: Process) -> float:
        ends = process.time(torch.tensor([8.0, -8.0], dtype=torch.float64))
        t = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:-1] * (ends[1] - ends[0]) + ends[0]
        weight = Sigmoid(bias=-1.0)(process, t, X0().coeffs(*process.scales(t)))
        err = torch.sigmoid(-process.logsnr(t))  # any function of lambda
        return float((weight * err).mean() * (ends[1] - ends[0]))

    lam = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    want = float((math.exp(-1.0) * torch.sigmoid(lam + 1.0) * torch.sigmoid(-lam)).mean() * 16)
    for process in (Flow(), Cosine(), VP(), VE()):
        assert objective(process) == pytest.approx(want, rel=1e-3), process


def test_unit_weight_is_one() -> None:
    assert torch.equal(Unit()(Flow(), TIMES, V().coeffs(*Flow().scales(TIMES))), torch.ones_like(TIMES))


# ------------------------------------------------------------------------------------------------ times
@pytest.mark.parametrize("times", [UniformTimes(), LogitNormalTimes(), LogNormalTimes(), LogSNRTimes()], ids=repr)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_times_rise_with_u_and_stay_inside(times: Times, process: Process) -> None:
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:-1]
    t = times(process, u)
    assert bool((t > 0).all()) and bool((t < 1).all()) and bool((t.diff() > 0).all())


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def test_times_have_their_distribution() -> None:
    """The distribution function of the drawn t, in closed form, gives u back."""
    u = torch.linspace(0, 1, 999, dtype=torch.float64)[1:-1]
    t = LogitNormalTimes(0.3, 0.8)(Flow(), u)
    assert torch.allclose(normal_cdf(((t / (1 - t)).log() - 0.3) / 0.8), u, atol=1e-9)
    t = LogNormalTimes(-1.2, 1.2)(VE(), u)
    top = normal_cdf(torch.tensor((math.log(80) + 1.2) / 1.2).double())
    assert torch.allclose(normal_cdf((VE().sigma(t).log() + 1.2) / 1.2) / top, u, atol=1e-9)
    t = LogSNRTimes(-6, 9)(Cosine(), u)
    assert torch.allclose((9 - Cosine().logsnr(t)) / 15, u, atol=1e-9)


def test_log_normal_times_stop_where_the_process_does() -> None:
    """DDPM's chain ends at log-SNR -10.1: no time is drawn beyond, and none is clipped onto the end."""
    t = LogNormalTimes(mean=5.0, std=1.0)(DiscreteVP(), torch.linspace(0.01, 0.99, 99).double())
    assert bool((t.diff() > 0).all()) and t[-1] < 1


# ------------------------------------------------------------------------------------------------ the loss's own randomness
def test_loss_is_a_function_of_the_sample_index() -> None:
    """The same samples in two half batches have the same times, noise and losses as in one batch."""
    denoiser = NetDenoiser(Exact(VP(), V()), VP(), V())
    x0 = Draws(1, 0, 8).normal((4,), "data").double()
    whole = DenoisingLoss()(denoiser, x0, None, Draws(0, 100, 8))
    halves = [DenoisingLoss()(denoiser, x0[i : i + 4], None, Draws(0, 100 + i, 4)) for i in (0, 4)]
    assert torch.equal(whole.t, torch.cat([h.t for h in halves]))
    assert torch.equal(whole.per_sample, torch.cat([h.per_sample for h in halves]))
