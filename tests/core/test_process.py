"""Processes against closed forms, and discrete ones against the tables that define them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.core import VE, VP, Cosine, DiscreteVP, Flow, Process, beta_table, lift
from sfumato.errors import UserError
from sfumato.testing import PROCESSES

TIMES = torch.linspace(0.004, 0.996, 125, dtype=torch.float64)
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_time_0_is_exactly_clean(process: Process) -> None:
    alpha, sigma = process.scales(ENDS)
    assert alpha[0] == 1 and sigma[0] == 0
    assert process.logsnr(ENDS)[0] == math.inf and process.level(ENDS)[0] == 0


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_noise_rises_with_time(process: Process) -> None:
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    assert (process.level(t).diff() > 0).all()
    assert (process.logsnr(t[1:]).diff() < 0).all()


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_time_inverts_logsnr(process: Process) -> None:
    assert torch.allclose(process.time(process.logsnr(TIMES)), TIMES, atol=1e-12, rtol=0)


@pytest.mark.parametrize("process", [p for p in PROCESSES if not isinstance(p, VE)], ids=repr)
def test_variance_is_preserved(process: Process) -> None:
    alpha, sigma = process.scales(TIMES)
    if isinstance(process, Flow):
        assert torch.allclose(alpha + sigma, torch.ones_like(alpha))
    else:
        assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-14)


def test_vp_solves_its_sde() -> None:
    """d alpha / dt = -beta alpha / 2 and d sigma^2 / dt = beta (1 - sigma^2): Song et al. 2021, eq. 32, differentiated."""
    process, t = VP(0.1, 20.0), TIMES.clone().requires_grad_(True)
    beta = 0.1 + 19.9 * t
    alpha, sigma = process.scales(t)
    (d_alpha,) = torch.autograd.grad(alpha.sum(), t, retain_graph=True)
    (d_variance,) = torch.autograd.grad((sigma**2).sum(), t)
    assert torch.allclose(d_alpha, -beta * alpha / 2) and torch.allclose(d_variance, beta * (1 - sigma**2))


def test_logsnr_slope_is_the_derivative() -> None:
    """Flow: lambda = 2 log((1 - t) / t), so -d lambda / dt = 2 / (t (1 - t))."""
    assert torch.allclose(Flow().logsnr_slope(TIMES), 2 / (TIMES * (1 - TIMES)))
    assert torch.allclose(VE(rho=7.0).logsnr_slope(TIMES), 14 / TIMES)


# ------------------------------------------------------------------------------------------------ discrete chains
def test_discrete_alpha_is_the_running_product() -> None:
    """alpha-bar at k / T is prod (1 - beta), the definition of Ho et al. 2020, eq. 4."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    k = torch.tensor([1, 2, 10, 500, 999, 1000])
    alpha, sigma = DiscreteVP("linear").scales(k / 1000)
    assert torch.allclose(alpha.double(), kept[k - 1].sqrt(), atol=1e-6)
    alpha, sigma = DiscreteVP("linear").scales(k.double() / 1000)
    assert torch.allclose(alpha**2, kept[k - 1], rtol=1e-12) and torch.allclose(sigma**2, 1 - kept[k - 1], rtol=1e-10)


def test_first_step_keeps_its_digits() -> None:
    """sigma^2 at the first step is beta_1 to full precision: no cancellation in 1 - alpha^2."""
    t = torch.tensor([0.001], dtype=torch.float64)
    assert DiscreteVP("linear").sigma(t).square().item() == pytest.approx(1e-4, rel=1e-13)


def test_cosine_table() -> None:
    """alpha-bar(k) = f(k) / f(0) until the cap of 0.999 acts (Nichol & Dhariwal 2021, eq. 17)."""
    t = torch.arange(0, 990, dtype=torch.float64) / 1000
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(DiscreteVP("cosine").alpha(t).square(), f / f[0], rtol=1e-10)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_tables_reach_noise_for_any_length(schedule: str) -> None:
    """A chain of 100 steps ends about where one of 1,000 does (the defect F3 of a table not scaled with T)."""
    for steps in (100, 1000):
        betas = beta_table(schedule, steps)  # type: ignore[arg-type]
        assert betas.shape == (steps,) and bool((betas > 0).all()) and bool((betas <= 0.999).all())
        assert torch.log1p(-betas).sum() < math.log(6e-3)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_zero_terminal_snr(schedule: str) -> None:
    """alpha(1) = 0 exactly, alpha_1 unchanged, and alpha an affine image of the old one (Lin et al. 2023, alg. 1)."""
    plain = DiscreteVP(schedule)  # type: ignore[arg-type]
    zero = DiscreteVP(schedule, zero_terminal_snr=True)  # type: ignore[arg-type]
    k = torch.tensor([1, 2, 300, 700, 1000]).double() / 1000
    old, new = plain.alpha(k), zero.alpha(k)
    assert new[-1] == 0 and new[0] == pytest.approx(old[0].item(), abs=1e-15)
    want = (old - old[-1]) * old[0] / (old[0] - old[-1])
    assert torch.allclose(new, want, atol=1e-14)


def test_discrete_tables_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'sfumato[bench]'")
    k = torch.arange(1, 1001).double() / 1000
    names = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
    for ours, theirs in names.items():
        for zero in (False, True):
            peer = diffusers.DDPMScheduler(1000, 1e-4, 0.02, theirs, rescale_betas_zero_snr=zero)
            alpha = DiscreteVP(ours, zero_terminal_snr=zero).alpha(k)  # type: ignore[arg-type]
            # theirs is computed in float32: 1,000 products leave about 1e-5
            assert torch.allclose(alpha, peer.alphas_cumprod.double().sqrt(), atol=2e-5), (ours, zero)


# ------------------------------------------------------------------------------------------------ marginals, posterior
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_diffuse_has_the_moments_of_its_name(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(400_000, generator=generator, dtype=torch.float64)
    t = torch.full((len(eps),), 0.37, dtype=torch.float64)
    x_t = process.diffuse(torch.full_like(eps, 1.3), eps, t)
    alpha, sigma = process.scales(t[0])
    assert abs(x_t.mean() - 1.3 * alpha) < 5 * sigma / math.sqrt(len(eps))
    assert abs(x_t.std() / sigma - 1) < 5 / math.sqrt(2 * len(eps))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_posterior_is_bayes_rule(process: Process) -> None:
    """Against the conditional of the joint Gaussian of (x_s, x_t) given x0, by its covariance matrix.

    x_t = a x_s + noise, so cov = [[sigma_s^2, a sigma_s^2], [a sigma_s^2, sigma_t^2]] about means alpha x0.
    """
    t, s = torch.tensor([0.71, 0.9]).double(), torch.tensor([0.33, 0.0]).double()
    x0, x_t = torch.tensor([0.4, -1.1]).double(), torch.tensor([1.7, 0.2]).double()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
    a = alpha_t / alpha_s
    gain = a * sigma_s**2 / sigma_t**2
    mean = alpha_s * x0 + gain * (x_t - alpha_t * x0)
    variance = sigma_s**2 - gain * a * sigma_s**2
    got = process.posterior(x0, x_t, t, s)
    assert torch.allclose(got.mean, mean, rtol=1e-12) and torch.allclose(got.variance, variance, atol=1e-14)
    assert got.mean[1] == x0[1] and got.variance[1] == 0  # at s = 0 it is the data itself


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_posterior_averaged_over_x_t_is_the_marginal(process: Process) -> None:
    """q(x_s | x0) = integral of q(x_s | x_t, x0) q(x_t | x0): means and variances of a linear Gaussian map."""
    t, s, x0 = torch.tensor([0.8]).double(), torch.tensor([0.5]).double(), torch.tensor([0.9]).double()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
    at_mean = process.posterior(x0, alpha_t * x0, t, s)
    slope = process.posterior(x0, alpha_t * x0 + 1, t, s).mean - at_mean.mean
    assert torch.allclose(at_mean.mean, alpha_s * x0)
    assert torch.allclose(slope**2 * sigma_t**2 + at_mean.variance, sigma_s**2)


def test_posterior_is_ddpms_equation_7() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    k = 400
    x0, x_t = torch.tensor([0.3]).double(), torch.tensor([-0.8]).double()
    mean = (kept[k - 2].sqrt() * betas[k - 1] * x0 + (1 - betas[k - 1]).sqrt() * (1 - kept[k - 2]) * x_t) / (
        1 - kept[k - 1]
    )
    variance = (1 - kept[k - 2]) / (1 - kept[k - 1]) * betas[k - 1]
    t, s = torch.tensor([[k / 1000], [(k - 1) / 1000]], dtype=torch.float64)
    got = DiscreteVP("linear").posterior(x0, x_t, t, s)
    assert torch.allclose(got.mean, mean, rtol=1e-9) and torch.allclose(got.variance[0], variance, rtol=1e-9)


def test_posterior_where_alpha_is_0() -> None:
    """From pure noise of Flow: x_t says nothing of x0, and the formula stays finite."""
    got = Flow().posterior(*(torch.tensor([v]).double() for v in (0.5, 2.0, 1.0, 0.25)))
    assert got.mean.item() == pytest.approx(0.75 * 0.5) and got.variance.item() == pytest.approx(0.0625)


# ------------------------------------------------------------------------------------------------ lift
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_lift_aligns_a_prefix(shape: list[int], data: st.DataObject) -> None:
    x = torch.randn(*shape)
    rank = data.draw(st.integers(0, len(shape)))
    c = torch.randn(shape[:rank], dtype=torch.float64)
    lifted: Tensor = lift(c, x) * torch.ones_like(x)
    index = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    assert lifted.dtype == x.dtype and lifted[index] == c[index[:rank]].float()


def test_bad_settings_are_refused() -> None:
    for make in (lambda: VP(beta_min=0), lambda: VE(sigma_max=-1), lambda: DiscreteVP(steps=1)):
        with pytest.raises(UserError, match="needs"):
            make()


def test_cosine_ends_at_pure_noise() -> None:
    assert Cosine().alpha(ENDS)[1] == 0
