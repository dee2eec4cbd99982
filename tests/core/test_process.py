"""Processes against closed forms, and discrete ones against the tables that define them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.core import (
    VE,
    VP,
    Cosine,
    DiscreteVP,
    Flow,
    Learned,
    Polynomial,
    Process,
    Shifted,
    SubVP,
    beta_table,
    lift,
)
from sfumato.errors import UserError
from sfumato.spec import as_spec, parse
from sfumato.testing import PROCESSES as SHIPPED

PROCESSES: list[Process] = list(
    dict.fromkeys(
        [
            *SHIPPED,
            SubVP(),
            Polynomial(3.0),
            Polynomial(0.5),
            Shifted(Flow(), 3.0),
            Shifted(Cosine(), 0.5),
            Shifted(VP(), 2.0),
            Shifted(SubVP(), 2.0),
            Shifted(DiscreteVP("linear"), 2.0),
            Learned(),
        ]
    )
)
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


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_every_process_stays_on_its_curve(process: Process) -> None:
    """alpha + sigma = 1 for straight lines, alpha = 1 for VE, alpha^2 + sigma = 1 for sub-VP, else alpha^2 + sigma^2 = 1."""
    alpha, sigma = process.scales(TIMES)
    inner = process.process if isinstance(process, Shifted) else process
    one = torch.ones_like(alpha)
    if isinstance(inner, Flow | Polynomial):
        assert torch.allclose(alpha + sigma, one, atol=1e-15)
    elif isinstance(inner, VE):
        assert torch.equal(alpha, one)
    elif isinstance(inner, SubVP):
        assert torch.allclose(alpha**2 + sigma, one, atol=1e-14)
    else:
        assert torch.allclose(alpha**2 + sigma**2, one, atol=1e-14)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_scales_at_a_logsnr(process: Process) -> None:
    alpha, sigma = process.scales(TIMES)
    at = process.scales_at(process.logsnr(TIMES))
    assert torch.allclose(at[0], alpha, rtol=1e-11) and torch.allclose(at[1], sigma, rtol=1e-11)


def test_vp_solves_its_sde() -> None:
    """d alpha / dt = -beta alpha / 2 and d sigma^2 / dt = beta (1 - sigma^2): Song et al. 2021, eq. 32, differentiated."""
    process, t = VP(0.1, 20.0), TIMES.clone().requires_grad_(True)
    beta = 0.1 + 19.9 * t
    alpha, sigma = process.scales(t)
    (d_alpha,) = torch.autograd.grad(alpha.sum(), t, retain_graph=True)
    (d_variance,) = torch.autograd.grad((sigma**2).sum(), t)
    assert torch.allclose(d_alpha, -beta * alpha / 2) and torch.allclose(d_variance, beta * (1 - sigma**2))


def test_sub_vp_solves_its_sde() -> None:
    """d sigma^2 / dt = 2 f sigma^2 + g^2 with f = -beta / 2, g^2 = beta (1 - exp(-2B)): Song et al. 2021, eq. 29."""
    process, t = SubVP(0.1, 20.0), TIMES.clone().requires_grad_(True)
    beta = 0.1 + 19.9 * t
    integral = 0.1 * t + 19.9 * t**2 / 2
    (d_variance,) = torch.autograd.grad((process.sigma(t) ** 2).sum(), t)
    want = -beta * process.sigma(t) ** 2 + beta * (1 - torch.exp(-2 * integral))
    assert torch.allclose(d_variance, want) and torch.allclose(process.alpha(t), VP(0.1, 20.0).alpha(t))


def test_polynomial_is_flow_at_another_pace() -> None:
    """alpha = (1 - t)^n is Flow's at 1 - (1 - t)^n; n = 1 is Flow."""
    for n in (0.5, 3.0):
        later = Flow().time(Polynomial(n).logsnr(TIMES))
        assert torch.allclose(1 - later, (1 - TIMES) ** n, rtol=1e-12)
    assert torch.allclose(Polynomial(1.0).logsnr(TIMES), Flow().logsnr(TIMES), rtol=1e-13)


def test_time_by_bisection() -> None:
    """A process of two functions gets its inverse for nothing: to 1e-15, and the ends for what lies beyond them."""

    class Mine(Process):
        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t**3

        def sigma(self, t: Tensor) -> Tensor:
            return t

    process = Mine()
    assert torch.allclose(process.time(process.logsnr(TIMES)), TIMES, atol=1e-15, rtol=0)
    assert process.time(torch.tensor([math.inf, -math.inf]).double()).tolist() == pytest.approx([0, 1], abs=1e-15)


# ------------------------------------------------------------------------------------------------ the forward SDE
def closed_forms() -> list[tuple[Process, Tensor, Tensor]]:
    t = TIMES
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    tan = torch.tan(math.pi / 2 * t)
    return [
        (VP(), -beta / 2, beta),
        (SubVP(), -beta / 2, beta * (1 - torch.exp(-2 * integral))),
        (VE(80, 7), 0 * t, 2 * (80 * t**7) * (560 * t**6)),
        (Flow(), -1 / (1 - t), 2 * t / (1 - t)),
        (Cosine(), -math.pi / 2 * tan, math.pi * tan),
    ]


@pytest.mark.parametrize(
    ("process", "f", "g2"), closed_forms(), ids=lambda v: repr(v) if isinstance(v, Process) else ""
)
def test_drift_and_diffusion_are_the_papers(process: Process, f: Tensor, g2: Tensor) -> None:
    assert torch.allclose(process.drift(TIMES), f, rtol=1e-10, atol=1e-12)
    assert torch.allclose(process.diffusion(TIMES), g2, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_sde_has_the_marginals(process: Process) -> None:
    """Mean and variance of dx = f x dt + g dw: alpha' = f alpha, (sigma^2)' = 2 f sigma^2 + g^2, by central differences."""
    t = (torch.arange(20, 990, 10) + 0.5).double() / 1000  # between the knots of a chain, which is linear in between
    h = 1e-6
    (a1, s1), (a2, s2), (alpha, sigma) = process.scales(t - h), process.scales(t + h), process.scales(t)
    f, g2 = process.drift(t), process.diffusion(t)
    assert torch.allclose((a2 - a1) / (2 * h), f * alpha, rtol=1e-6, atol=1e-7)
    assert torch.allclose((s2**2 - s1**2) / (2 * h), 2 * f * sigma**2 + g2, rtol=1e-6, atol=1e-7)
    assert torch.allclose(g2, sigma**2 * process.logsnr_slope(t), rtol=1e-8, atol=0)  # Kingma et al. 2021's form


def test_the_sde_at_the_ends_of_time() -> None:
    """At t = 0 the limits, at alpha = 0 infinite, nothing undefined."""
    for process in PROCESSES:
        f, g2 = process.drift(ENDS), process.diffusion(ENDS)
        assert not torch.isnan(f).any() and not torch.isnan(g2).any() and torch.isfinite(f[0]) and torch.isfinite(g2[0])
        ends_in_noise = bool(process.alpha(ENDS)[1] == 0)
        assert (f[1] == -math.inf) == ends_in_noise and (g2[1] == math.inf) == ends_in_noise, process
    assert VP().diffusion(ENDS)[0] == pytest.approx(0.1) and VP().drift(ENDS)[0] == pytest.approx(-0.05)
    assert VE().diffusion(ENDS).tolist() == pytest.approx([0, 2 * 80 * 560])
    assert Shifted(Flow(), 3.0).drift(ENDS)[0] == pytest.approx(-3)  # alpha = 1 - 3 t + ...
    assert [float(v[1]) for v in Shifted(Flow(), 3.0).slopes(ENDS)] == pytest.approx([-1 / 3, 1 / 3])


# ------------------------------------------------------------------------------------------------ the shift
def test_the_shift_of_flow_is_stable_diffusion_3s() -> None:
    """t' = s t / (1 + (s - 1) t): Esser et al. 2024, eq. 23."""
    s, t = 3.0, TIMES
    later = s * t / (1 + (s - 1) * t)
    shifted = Shifted(Flow(), s)
    assert torch.allclose(shifted.alpha(t), 1 - later, atol=1e-14)
    assert torch.allclose(shifted.sigma(t), later, atol=1e-14)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_shift_lowers_the_logsnr(process: Process) -> None:
    """By 2 ln s at every time, the end included (Hoogeboom et al. 2023, eq. 3); s = 1 is no shift."""
    if isinstance(process, Shifted | Learned):
        return
    t = torch.cat([TIMES, ENDS[1:]])
    for s in (1.0, 0.5, 4.0):
        moved = Shifted(process, s).logsnr(t)
        assert torch.allclose(moved, process.logsnr(t) - 2 * math.log(s), atol=1e-10), s


def test_the_shift_of_ve_is_more_noise() -> None:
    """lambda = -2 ln sigma, so a shift by s is sigma_max times s, for every time."""
    for mine, theirs in zip(Shifted(VE(20, 5), 4.0).scales(TIMES), VE(80, 5).scales(TIMES)):
        assert torch.allclose(mine, theirs, rtol=1e-12)


def test_shifts_do_not_nest() -> None:
    with pytest.raises(UserError, match="shifted twice, by 2 and by 3; use one shift of s=6"):
        Shifted(Shifted(Flow(), 2.0), 3.0)
    with pytest.raises(UserError, match="is learned"):
        Shifted(Learned(), 2.0)
    for s in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="s > 0"):
            Shifted(Flow(), s)


def test_a_shift_is_written_down_with_the_process() -> None:
    """Through plain data and back, and from words of a command line."""
    spec = as_spec(Shifted(Cosine(), 3.0))
    assert spec.to_dict() == {"type": "shifted", "process": {"type": "cosine"}, "s": 3.0}
    assert parse(Process, spec.to_dict()).build() == Shifted(Cosine(), 3.0)
    said = parse(Process, "shifted").override("process", "vp").override("process.beta_max", "12").override("s", "2")
    assert said.build() == Shifted(VP(beta_max=12.0), 2.0)


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
    makers = (
        lambda: VP(beta_min=0),
        lambda: SubVP(beta_min=3, beta_max=2),
        lambda: VE(sigma_max=-1),
        lambda: DiscreteVP(steps=1),
        lambda: Polynomial(n=0),
        lambda: Learned(high=-10, low=10),
    )
    for make in makers:
        with pytest.raises(UserError, match="needs"):
            make()


def test_cosine_ends_at_pure_noise() -> None:
    assert Cosine().alpha(ENDS)[1] == 0
