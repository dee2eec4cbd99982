"""Where diffusers differs from us: each test undoes one thing and finds equality, or says exactly what the difference is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.samplers.peer import (
    CHAIN,
    MEANS,
    SETTINGS,
    SHAPE,
    STEPS,
    Case,
    Given,
    chain,
    double,
    gap,
    mixture,
    normal,
    time_of,
    visited,
    walk,
)  # fmt: skip
from torch import Tensor

from sfumato.core import Cosine, Flow, LinspaceGrid
from sfumato.core.grids import beta_quantile
from sfumato.samplers import DDIM, DEIS, IPNDM, Ancestral, DPMpp3M, Heun, UniPC, sample
from sfumato.testing import MixtureDenoiser

diffusers = pytest.importorskip("diffusers", reason="the peer of these tests: pip install 'sfumato[bench]'")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

LARGE: dict[str, Any] = {"clip_sample": False, "variance_type": "fixed_large"}


def test_unipc_lowers_its_order_in_the_last_steps() -> None:
    """Theirs goes down to order 1 over the last `solver_order` steps; ours only in the step to t = 0, which must be."""
    case = chain("UniPCMultistep", UniPC(3), solver_order=3)

    def keep(scheduler: Any, k: int) -> None:
        scheduler.register_to_config(lower_order_final=k == STEPS - 1)

    with double(diffusers.UniPCMultistepScheduler):
        assert gap(*case.ends(torch.float64)) > 1e-4
        assert gap(*case.ends(torch.float64, keep)) < 1e-12


@pytest.mark.parametrize("n, differs", [(14, True), (15, False)])
def test_dpm_solver_lowers_its_order_below_15_steps(n: int, differs: bool) -> None:
    """In the last step but one, to order 2: with few steps they do not trust it. Ours keeps order 3."""
    solver = DPMpp3M(published=True)
    case = Case("DPMSolverMultistepScheduler", {**SETTINGS, "solver_order": 3}, solver, steps=n)
    kept = Case("DPMSolverMultistepScheduler", {**case.settings, "lower_order_final": False}, solver, steps=n)
    with double(diffusers.DPMSolverMultistepScheduler):
        assert (case.gap(torch.float64) > 1e-5) == differs
        assert kept.gap(torch.float64) < 1e-12


@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_bh1_of_the_peer_is_not_finite(p: int) -> None:
    """B(h) = h is infinite in their last step, to sigma = 0, and is multiplied by 0: with the default settings the result
    is nan. Ours takes the first-order step, which has no B."""
    theirs, ours = chain("UniPCMultistep", UniPC(p, "bh1"), solver_order=p, solver_type="bh1").ends(torch.float32)
    assert bool(theirs.isnan().all()) and bool(ours.isfinite().all())


@pytest.mark.parametrize("p", [2, 3])
def test_unipc_of_the_peer_must_lower_its_order_before_the_end(p: int) -> None:
    """Without, its weights of former answers in the step to sigma = 0 are infinite, or its matrix is singular."""
    case = chain("UniPCMultistep", UniPC(p), solver_order=p, lower_order_final=False)
    try:
        with double(diffusers.UniPCMultistepScheduler):
            theirs, ours = case.ends(torch.float64)
    except RuntimeError as error:
        assert "singular" in str(error) and p == 3
    else:
        assert not bool(theirs.isfinite().any()) and bool(ours.isfinite().all())


def test_third_order_multistep_lacks_a_factor() -> None:
    """The weight of the second difference is half of what a Taylor series has. Twice it, and it is our `dpmpp-3m`."""
    published, ours = (chain("DPMSolverMultistep", s, solver_order=3) for s in (DPMpp3M(published=True), DPMpp3M()))
    with double(diffusers.DPMSolverMultistepScheduler):
        assert published.gap(torch.float64) < 1e-12 and ours.gap(torch.float64) > 1e-5
        assert (
            gap(_third_order_with(ours, lambda h: -((torch.exp(-h) - 1 + h) / h**2 - 0.5)), ours.ends(torch.float64)[1])
            < 1e-12
        )


def _third_order_with(case: Case, more: Callable[[Tensor], Tensor]) -> Tensor:
    """The peer's result with `more(h)` alpha D2 added to every third-order step."""
    cls = diffusers.DPMSolverMultistepScheduler
    original = cls.multistep_dpm_solver_third_order_update

    def update(self: Any, outputs: list[Tensor], *, sample: Tensor, noise: Tensor | None) -> Tensor:
        sigma = self.sigmas[self.step_index - 2 : self.step_index + 2]
        lam = -sigma.log()
        h, r0, r1 = lam[3] - lam[2], (lam[2] - lam[1]) / (lam[3] - lam[2]), (lam[1] - lam[0]) / (lam[3] - lam[2])
        D2 = ((outputs[-1] - outputs[-2]) / r0 - (outputs[-2] - outputs[-3]) / r1) / (r0 + r1)
        alpha = 1 / (1 + sigma[3] ** 2).sqrt()
        return original(self, outputs, sample=sample, noise=noise) + alpha * more(h) * D2

    cls.multistep_dpm_solver_third_order_update = update
    try:
        return case.ends(torch.float64)[0]
    finally:
        cls.multistep_dpm_solver_third_order_update = original


def test_third_order_sde_has_a_sign_wrong() -> None:
    """Their weight of the second difference is -phi_3 - 1, where the ODE's (and k-diffusion's) is -phi_3: it does not vanish
    with the step. With 1 added they are one."""
    case = chain(
        "DPMSolverMultistep",
        DPMpp3M(1.0, published=True),
        solver_order=3,
        algorithm_type="sde-dpmsolver++",
        stochastic=True,
    )
    with double(diffusers.DPMSolverMultistepScheduler):
        theirs, ours = case.ends(torch.float64)
        assert gap(theirs, ours) > 0.1
        assert gap(_third_order_with(case, torch.ones_like), ours) < 1e-12


def peers_order(solver_order: int, n: int = 64, graded: int = 16) -> float:
    """Order of the peer's multistep DPM-Solver++ on lambda in [-1, 1], started at its own order as in test_order.py."""
    denoiser, x, errors = mixture(CHAIN), normal(*SHAPE), []
    fine = time_of(CHAIN, torch.exp(1 - 2 * torch.linspace(0, 1, 401, dtype=torch.float64)), "vp")
    exact = sample(denoiser, UniPC(4), x, fine)
    for steps in (n, 2 * n):
        share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        share = torch.cat([share[:1], share[1] * 2.0 ** -torch.arange(graded, 0, -1, dtype=torch.float64), share[1:]])
        with double(diffusers.DPMSolverMultistepScheduler):
            peer = diffusers.DPMSolverMultistepScheduler(
                **SETTINGS, solver_order=solver_order, lower_order_final=False, final_sigmas_type="sigma_min"
            )
            peer.set_timesteps(steps + graded)
            peer.sigmas, peer.timesteps = torch.exp(1 - 2 * share), torch.arange(steps + graded)
            errors.append((walk(peer, denoiser, x).end - exact).square().mean().sqrt())
    return math.log2(errors[0] / errors[1])


def test_third_order_multistep_is_of_order_2() -> None:
    """Measured on the peer itself; ours without `published` is of order 3 (test_order.py)."""
    orders = peers_order(2), peers_order(3)
    print(f"\norders of the peer's multistep DPM-Solver++ 2 and 3: {orders[0]:.2f}, {orders[1]:.2f}", end="")
    assert abs(orders[0] - 2) < 0.15 and abs(orders[1] - 2) < 0.15


def test_large_variance_leaves_noise_in_the_picture() -> None:
    """`trailing` steps end at timestep T / n - 1 > 0, so that their last step draws noise: for `fixed_large` of the whole
    variance 1 - alpha^2 of that time."""
    case = chain("DDPM", Ancestral("forward"), stochastic=True, timestep_spacing="trailing", **LARGE)
    with double(diffusers.DDPMScheduler):
        theirs, ours = case.ends(torch.float64)
    last = CHAIN.sigma(torch.tensor(1 / STEPS, dtype=torch.float64))
    assert gap(theirs - ours, last * normal(*SHAPE, seed=100 + STEPS - 1)) < 1e-12
    assert last > 0.2


def test_ddim_ends_its_steps_where_the_next_one_does_not_begin() -> None:
    """Their step is always floor(T / n) long: 1 for n = 600, while `trailing` timesteps are 1.67 apart. 40% of every step
    is left out, and the picture keeps noise. (`linspace` timesteps, (T - 1) / (n - 1) apart, never fit.)"""
    errors = {}
    for n in (500, 600):
        case = Case(
            "DDIMScheduler", {**SETTINGS, "clip_sample": False, "timestep_spacing": "trailing"}, DDIM(), steps=n
        )
        with double(diffusers.DDIMScheduler):
            errors[n] = case.gap(torch.float64)
    assert errors[500] < 1e-12 and errors[600] > 0.2


def test_ipndm_does_not_ask_in_its_first_step() -> None:
    """Theirs starts at alpha = 0 and divides by max(alpha, 1e-8) what is 0 there, whatever the network says of x0: right
    for data of zero mean alone."""
    process, x = Cosine(), normal(*SHAPE)

    def answer(x: Tensor, D: Tensor, time: Tensor) -> Tensor:  # their network gives v, though nothing says so
        alpha, sigma = process.scales(time)
        return alpha * (x - alpha * D) / sigma - sigma * D

    for means, equal in ((MEANS - MEANS.mean(0), True), (MEANS, False)):
        with double(diffusers.IPNDMScheduler):
            peer = diffusers.IPNDMScheduler()
            peer.set_timesteps(STEPS)
            times = torch.asin(peer.betas.double()) * 2 / math.pi
            peer.sigmas = torch.where(times < 1, torch.tan(times * math.pi / 2), torch.inf)
            made = walk(peer, mixture(process, means), x, answer=answer)
        assert gap(made.places[0], process.sigma(times[1]) * x) < 1e-15
        assert (gap(made.end, sample(mixture(process, means), IPNDM(), x, times)) < 1e-12) == equal


@pytest.mark.parametrize("name, p", [("DEISMultistepScheduler", 2), ("SASolverScheduler", None)])
def test_walks_that_end_in_noise(name: str, p: int | None) -> None:
    """On their Karras, exponential, beta and flow grids DEIS and SA-Solver stand still in the last step, at sigma_min."""
    with double(getattr(diffusers, name)):
        peer = getattr(diffusers, name)(**SETTINGS, use_karras_sigmas=True, **({"solver_order": p} if p else {}))
        peer.set_timesteps(STEPS)
        assert peer.sigmas[-1] == peer.sigmas[-2] and abs(peer.sigmas[-1] - 0.0292) < 1e-4
        if p:
            times = visited(peer, CHAIN, "vp")
            made = walk(peer, mixture(CHAIN), normal(*SHAPE))
            assert len(times) == STEPS and gap(made.places[-1], made.places[-2]) < 1e-12
            assert gap(made.end, sample(mixture(CHAIN), DEIS(p), normal(*SHAPE), times)) < 1e-9


def test_flow_matching_shifts_its_end_twice() -> None:
    """Their grid goes from 1 to the shifted end of the shifted grid."""
    with double(diffusers.FlowMatchEulerDiscreteScheduler):
        peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        peer.set_timesteps(STEPS)

    def shift(t: float) -> float:
        return 3 * t / (1 + 2 * t)

    assert abs(peer.sigmas[-2] - shift(shift(1 / 1000))) < 1e-12
    assert abs(shift(float(LinspaceGrid()(Flow(), STEPS)[-2])) - shift(1 / 1000)) < 1e-12


def test_beta_spacing_is_of_the_noise_level() -> None:
    """Theirs takes the quantiles of sigma / alpha between its ends; the paper, and ours, those of the time."""
    pytest.importorskip("scipy", reason="the peer's quantiles")
    with double(diffusers.EulerDiscreteScheduler):
        peer = diffusers.EulerDiscreteScheduler(**SETTINGS, use_beta_sigmas=True)
        peer.set_timesteps(11)
    high, low = float(peer.sigmas[0]), float(peer.sigmas[-2])
    share = beta_quantile(1 - torch.arange(11, dtype=torch.float64) / 10, 0.6, 0.6)
    assert gap(peer.sigmas[:-1], low + (high - low) * share) < 1e-10
    assert abs(high - 14.6146) < 1e-3 and int((peer.sigmas > 1).sum()) == 9


def test_karras_grids_tell_the_network_another_noise() -> None:
    """Their solvers go on at the Karras levels, and their network is asked for a whole timestep near them."""
    peer = diffusers.DPMSolverMultistepScheduler(**SETTINGS, use_karras_sigmas=True)
    peer.set_timesteps(STEPS)
    told = torch.exp(-CHAIN.logsnr((peer.timesteps.double() + 1) / 1000) / 2)
    off = (told / peer.sigmas[:-1] - 1).abs().max()
    assert 0.03 < off < 0.3


def test_churn_is_drawn_after_the_network_has_answered() -> None:
    """Data that is one point m: EDM's algorithm 2 ends in m, whatever the noise. Theirs adds the noise to x when eps is
    already there, so that the last one stays in the picture."""
    point = torch.full((1, 2, 3, 3), 0.7, dtype=torch.float64)
    denoiser = MixtureDenoiser(CHAIN, point, 0.0)
    x, draws = normal(*SHAPE), [normal(*SHAPE, seed=100 + k) for k in range(STEPS)]
    churn = 2.0
    with double(diffusers.EulerDiscreteScheduler):
        peer = diffusers.EulerDiscreteScheduler(**SETTINGS, timestep_spacing="trailing")
        peer.set_timesteps(STEPS)
        first = CHAIN.alpha(torch.ones((), dtype=torch.float64))
        theirs = walk(peer, denoiser, x / first, "ve", draws, s_churn=churn)
    ours = sample(denoiser, Heun("ve", churn=churn), x, visited(peer, CHAIN, "ve"), noise=Given(draws))
    assert (ours - point).abs().max() < 1e-9
    sigma, gain = peer.sigmas[-2], 1 + churn / STEPS
    before = theirs.places[-2]
    noise = sigma * math.sqrt(gain**2 - 1) * draws[-1]
    assert gap(theirs.end, point + noise - (gain - 1) * (before - point)) < 1e-9
    assert (theirs.end - point).std() > 0.05
