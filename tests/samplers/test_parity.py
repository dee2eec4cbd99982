"""Our trajectories against diffusers' on the same network, grid and noise: equal to rounding, and where not, why not.

`pytest -s` prints the largest relative difference of every scheduler, its own file run in float64 and as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.samplers.peer import (
    CHAIN,
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
    visited,
    walk,
)
from torch import Tensor

from sfumato.core import VE, DiscreteVP, Flow, KarrasGrid, Process
from sfumato.samplers import (
    DDIM,
    DEIS,
    DPM2,
    Adams,
    Ancestral,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    EulerAncestral,
    Heun,
    LearnedAncestral,
    SASolver,
    Solver,
    UniPC,
    sample,
)

diffusers = pytest.importorskip("diffusers", reason="the peer of these tests: pip install 'sfumato[bench]'")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def ddim(eta: float, **settings: Any) -> Case:
    settings = {**SETTINGS, "clip_sample": False, **settings}
    return Case("DDIMScheduler", settings, DDIM(eta), stochastic=eta > 0, in_step={"eta": eta})


def flow(name: str, solver: Solver, **settings: Any) -> Case:
    return Case(f"{name}Scheduler", settings, solver, "flow", Flow())


BY_FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SMALL: dict[str, Any] = {"clip_sample": False}
LARGE: dict[str, Any] = {**SMALL, "variance_type": "fixed_large"}
TO_FIRST_STEP: dict[str, Any] = {"final_sigmas_type": "sigma_min", "lower_order_final": False}

CASES = [
    chain("DDPM", Ancestral(), stochastic=True, **SMALL),
    chain("DDPM", Ancestral("forward"), stochastic=True, **LARGE),
    chain("DDPM", Ancestral(), stochastic=True, timestep_spacing="trailing", **SMALL),
    *[ddim(eta, timestep_spacing=spacing) for eta in (0.0, 0.5, 1.0) for spacing in ("leading", "trailing")],
    chain("DPMSolverMultistep", DPMpp2M()),
    chain("DPMSolverMultistep", DPMpp2M(), timestep_spacing="trailing"),
    chain("DPMSolverMultistep", DPMpp2M(), use_karras_sigmas=True),
    chain("DPMSolverMultistep", DPMpp3M(published=True), solver_order=3),
    chain("DPMSolverMultistep", DPMpp2M(eta=1.0), algorithm_type="sde-dpmsolver++", stochastic=True),
    flow("DPMSolverMultistep", DPMpp2M(), **BY_FLOW),
    *[chain("UniPCMultistep", UniPC(p), solver_order=p) for p in (1, 2)],
    *[
        chain("UniPCMultistep", UniPC(p, variant), solver_order=p, solver_type=variant, **TO_FIRST_STEP)
        for p in (1, 2, 3)
        for variant in ("bh1", "bh2")
    ],
    flow("UniPCMultistep", UniPC(2), **BY_FLOW),
    chain("EulerDiscrete", Euler(), "ve"),
    chain("EulerDiscrete", DDIM(), "ve"),
    chain("EulerAncestralDiscrete", EulerAncestral(), "ve", stochastic=True),
    chain("HeunDiscrete", Heun("ve"), "ve"),
    chain("KDPM2Discrete", DPM2(), "ve"),
    *[
        Case("LMSDiscreteScheduler", SETTINGS, Adams(p, "ve"), "ve", in_step={"order": p})
        for p in (1, 2, 3, 4)
    ],
    *[chain("DEISMultistep", DEIS(p), solver_order=p) for p in (1, 2, 3)],
    flow("FlowMatchEulerDiscrete", Euler()),
    flow("FlowMatchEulerDiscrete", Euler(), shift=3.0),
    flow("FlowMatchHeunDiscrete", Heun()),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_same_trajectory(case: Case) -> None:
    with double(getattr(diffusers, case.scheduler)):
        exact = case.gap(torch.float64)
    shipped = case.gap(torch.float32)
    print(f"\n{case!r:>90} {case.solver.kind:>10} {exact:8.0e} {shipped:8.0e}", end="")
    assert exact < 1e-9 and shipped < 1e-4


@pytest.mark.parametrize(
    "schedule, theirs", [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_chains_are_the_same(schedule: Any, theirs: str, zero_snr: bool) -> None:
    with double(diffusers.DDIMScheduler):
        peer = diffusers.DDIMScheduler(beta_schedule=theirs, rescale_betas_zero_snr=zero_snr)
    process = DiscreteVP(schedule, zero_terminal_snr=zero_snr)
    alpha = process.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    assert (alpha - peer.alphas_cumprod.sqrt()).abs().max() < 1e-13


def test_ddim_from_a_terminal_snr_of_zero() -> None:
    """With v-prediction the peer, too, starts at alpha = 0 (Lin et al. 2023)."""
    process, x = DiscreteVP("scaled_linear", beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True), normal(*SHAPE)
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False}
    with double(diffusers.DDIMScheduler):
        peer = diffusers.DDIMScheduler(**SETTINGS, **settings, timestep_spacing="trailing")
        peer.set_timesteps(STEPS)
        denoiser, times = mixture(process), visited(peer, process, "vp")
        place = x
        for k, t in enumerate(peer.timesteps):
            alpha, sigma = process.scales(times[k])
            D = denoiser(place, times[k].expand(len(x)))
            v = alpha * (place - alpha * D) / sigma - sigma * D
            place = peer.step(v, t, place).prev_sample
    assert gap(place, sample(denoiser, DDIM(), x, times)) < 1e-12


def test_dpm_solver_2s_with_their_grid_at_our_midpoints() -> None:
    """Their second-order singlestep method asks at the next time of the grid; ours halfway in lambda."""
    n = 10
    times = KarrasGrid(sigma_min=None)(CHAIN, n)
    lam = torch.empty(2 * n - 1, dtype=torch.float64)
    lam[::2] = CHAIN.logsnr(times[:-1]) / 2
    lam[1::2] = (lam[2::2] + lam[:-2:2]) / 2
    x = normal(*SHAPE)
    with double(diffusers.DPMSolverSinglestepScheduler):
        peer = diffusers.DPMSolverSinglestepScheduler(**SETTINGS)
        peer.set_timesteps(2 * n - 1)
        peer.sigmas = torch.cat([torch.exp(-lam), torch.zeros(1)])
        theirs = walk(peer, mixture(CHAIN), x).end
    assert gap(theirs, sample(mixture(CHAIN), DPMpp2S(), x, times)) < 1e-12


@pytest.mark.parametrize(
    "name, settings, solver",
    [
        ("EDMEulerScheduler", {}, Euler()),
        ("EDMDPMSolverMultistepScheduler", {}, DPMpp2M()),
        ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}, DPMpp3M(published=True)),
    ],
)
def test_edm_schedulers(name: str, settings: dict[str, Any], solver: Solver) -> None:
    """On their own grid, which is our `karras` grid on `ve`, through their preconditioning with sigma_data = 1/2."""
    process, x, d = VE(), 80 * normal(*SHAPE), 0.5
    denoiser, times = mixture(process), KarrasGrid()(process, 18)

    def answer(x: Tensor, D: Tensor, time: Tensor) -> Tensor:
        sigma = process.sigma(time)
        total = sigma**2 + d**2
        return (D - d**2 / total * x) / (sigma * d * total.rsqrt())

    with double(getattr(diffusers, name)):
        peer = getattr(diffusers, name)(**settings)
        peer.set_timesteps(18)
        assert gap(peer.sigmas, process.sigma(times)) < 1e-14
        theirs = walk(peer, denoiser, x, "ve", answer=answer).end
    assert gap(theirs, sample(denoiser, solver, x, times)) < 1e-12


@dataclass(frozen=True)
class WithVariance:
    """A denoiser that also gives v in [0, 1], another number in every element."""

    inner: Any

    @property
    def process(self) -> Process:
        return self.inner.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.inner(x_t, t, cond)

    def with_variance(self, x_t: Tensor, t: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        return self.inner(x_t, t, cond), torch.sigmoid(x_t + 0.3)


def test_learned_variance() -> None:
    """Their `learned_range` network says v in [-1, 1] in channels of its own; v of `with_variance` lies in [0, 1]."""
    denoiser, x = WithVariance(mixture(CHAIN)), normal(*SHAPE)
    draws = [normal(*SHAPE, seed=100 + k) for k in range(STEPS)]

    def answer(x: Tensor, D: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = CHAIN.scales(time)
        v = denoiser.with_variance(x, time.expand(len(x)))[1]
        return torch.cat([(x - alpha * D) / sigma, 2 * v - 1], 1)

    with double(diffusers.DDPMScheduler):
        peer = diffusers.DDPMScheduler(**SETTINGS, clip_sample=False, variance_type="learned_range")
        peer.set_timesteps(STEPS)
        theirs = walk(peer, denoiser, x, draws=draws, answer=answer).end
    ours = sample(denoiser, LearnedAncestral(), x, visited(peer, CHAIN, "vp"), noise=Given(draws))
    assert gap(theirs, ours) < 1e-12


def simplified_terms(peer: Any) -> Callable[..., Any]:
    """The peer's integrals for two points, less what it will add to them: it then has the exact integrals."""
    exact = peer.get_coefficients_fn

    def corrected(order: int, start: Tensor, end: Tensor, lam: list[Tensor], tau: Any) -> Any:
        weights = exact(order, start, end, lam, tau)
        if order == 2:
            a, h = 1 + tau**2, end - start
            integral = (h * a - 1 + torch.exp(-a * h)) / a**2
            corrector = bool(lam[0] == end)
            added = torch.exp(a * end) * ((h**2 / 2 - integral) / (h if corrector else lam[0] - lam[1]))
            weights[0], weights[1] = weights[0] - added, weights[1] + added
        return weights

    return corrected


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("predictor, corrector", [(1, 1), (2, 2), (3, 3), (2, 1)])
def test_sa_solver(tau: float, predictor: int, corrector: int) -> None:
    """Theirs replaces an integral that is h^2 / 2 for small h by that, where two points are used; else it is ours.

    Our eta is their tau^2, and their corrector counts the answer at the end of the step as one of its points. With noise
    and long steps the difference is large: the integral for h = 1 and tau = 1 is 0.28, not 0.5.
    """
    x, draws = normal(*SHAPE), [normal(*SHAPE, seed=100 + k) for k in range(STEPS)]
    with double(diffusers.SASolverScheduler):
        made = []
        for undone in (False, True):
            peer = diffusers.SASolverScheduler(
                **SETTINGS,
                predictor_order=predictor,
                corrector_order=corrector + 1,
                tau_func=lambda t: torch.tensor(tau),
                lower_order_final=False,
            )
            peer.set_timesteps(STEPS)
            if undone:
                peer.get_coefficients_fn = simplified_terms(peer)
            made.append(walk(peer, mixture(CHAIN), x, draws=draws).end)
    ours = sample(
        mixture(CHAIN), SASolver(predictor, corrector, tau**2), x, visited(peer, CHAIN, "vp"), noise=Given(draws)
    )
    assert gap(made[1], ours) < 1e-9
    assert gap(made[0], ours) > (0.1 if tau and predictor == 2 else 1e-6)
