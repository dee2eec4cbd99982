"""Our trajectories against diffusers' on the same network, grid and noise: equal to rounding, and where not, why not.

`pytest -s` prints the largest relative difference of every scheduler, its own file run in float64 and as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.samplers.peer import (
    CHAIN,
    MEANS,
    SETTINGS,
    Frame,
    Given,
    double,
    gap,
    mixture,
    normal,
    visited,
    walk,
)
from torch import Tensor

from sfumato.core import VE, Cosine, DiscreteVP, Flow, KarrasGrid, LinspaceGrid, Process
from sfumato.core.grids import beta_quantile
from sfumato.samplers import (
    DDIM,
    DEIS,
    DPM2,
    IPNDM,
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

STEPS = 20
SHAPE = (4, 2, 3, 3)


@dataclass(frozen=True)
class Case:
    """A scheduler with its settings, and our solver for the same walk."""

    scheduler: str
    settings: dict[str, Any]
    solver: Solver
    frame: Frame = "vp"
    process: Process = CHAIN
    stochastic: bool = False
    in_step: dict[str, Any] = field(default_factory=dict)
    steps: int = STEPS

    def __repr__(self) -> str:
        shown = {k: v for k, v in {**self.settings, **self.in_step}.items() if k not in (*SETTINGS, "clip_sample")}
        return f"{self.scheduler.removesuffix('Scheduler')}({', '.join(f'{k}={v}' for k, v in shown.items())})"

    def gap(self, dtype: torch.dtype) -> float:
        """Largest relative difference of the results, the peer computing in dtype."""
        theirs, ours = self.ends(dtype)
        return gap(theirs, ours)

    def ends(self, dtype: torch.dtype, before: Callable[[Any, int], None] = lambda s, k: None) -> tuple[Tensor, Tensor]:
        scheduler = getattr(diffusers, self.scheduler)(**self.settings)
        scheduler.set_timesteps(self.steps)
        times = visited(scheduler, self.process, self.frame)
        draws = [normal(*SHAPE, seed=100 + k) for k in range(self.steps)] if self.stochastic else []
        first, last = (self.process.alpha(t) if self.frame == "ve" else 1.0 for t in (times[0], times[-1]))
        x, denoiser = normal(*SHAPE), mixture(self.process)
        theirs = walk(scheduler, denoiser, (x / first).to(dtype), self.frame, draws, before, **self.in_step).end
        ours = sample(denoiser, self.solver, x, times, noise=Given(draws) if draws else None)
        return theirs, ours / last


def chain(name: str, solver: Solver, frame: Frame = "vp", *, stochastic: bool = False, **settings: Any) -> Case:
    return Case(f"{name}Scheduler", {**SETTINGS, **settings}, solver, frame, stochastic=stochastic)


def ddim(eta: float, **settings: Any) -> Case:
    settings = {**SETTINGS, "clip_sample": False, **settings}
    return Case("DDIMScheduler", settings, DDIM(eta), stochastic=eta > 0, in_step={"eta": eta})


def flow(name: str, solver: Solver, **settings: Any) -> Case:
    return Case(f"{name}Scheduler", settings, solver, "flow", Flow())


BY_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SMALL, LARGE = {"clip_sample": False}, {"clip_sample": False, "variance_type": "fixed_large"}
TO_FIRST_STEP = {"final_sigmas_type": "sigma_min", "lower_order_final": False}

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


# Where the peer differs: each test undoes one thing and finds equality, or says exactly what the difference is.


def test_unipc_lowers_its_order_in_the_last_steps() -> None:
    """Theirs goes down to order 1 over the last `solver_order` steps; ours only in the step to t = 0, which must be."""
    case = chain("UniPCMultistep", UniPC(3), solver_order=3)

    def keep(scheduler: Any, k: int) -> None:
        scheduler.register_to_config(lower_order_final=k == STEPS - 1)

    with double(diffusers.UniPCMultistepScheduler):
        assert gap(*case.ends(torch.float64)) > 1e-4
        assert gap(*case.ends(torch.float64, keep)) < 1e-12


@pytest.mark.parametrize("n, differs", [(14, True), (15, False)])
@pytest.mark.parametrize("solver, p", [(DPMpp3M(published=True), 3)])
def test_dpm_solver_lowers_its_order_below_15_steps(n: int, differs: bool, solver: Solver, p: int) -> None:
    case = Case("DPMSolverMultistepScheduler", {**SETTINGS, "solver_order": p}, solver, steps=n)
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


def peers_order(solver_order: int, n: int, graded: int = 16) -> float:
    """Order of the peer's multistep DPM-Solver++ on lambda in [-1.5, 1.5], started at its own order (see test_order)."""
    denoiser, x, ends = mixture(CHAIN), normal(*SHAPE), []
    for steps in (n, 2 * n, 16 * n):
        share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        share = torch.cat([share[:1], share[1] * 2.0 ** -torch.arange(graded, 0, -1, dtype=torch.float64), share[1:]])
        with double(diffusers.DPMSolverMultistepScheduler):
            peer = diffusers.DPMSolverMultistepScheduler(
                **SETTINGS, solver_order=solver_order, lower_order_final=False, final_sigmas_type="sigma_min"
            )
            peer.set_timesteps(steps + graded)
            peer.sigmas, peer.timesteps = torch.exp(1.5 - 3 * share), torch.arange(steps + graded)
            ends.append(walk(peer, denoiser, x).end)
    exact = sample(denoiser, UniPC(3), x, visited(peer, CHAIN, "vp"))
    first, second = ((end - exact).square().mean().sqrt() for end in ends[:2])
    return math.log2(first / second)


def test_third_order_multistep_is_of_order_2() -> None:
    """Measured on the peer itself; ours without `published` is of order 3 there (test_order.py)."""
    orders = peers_order(2, 64), peers_order(3, 64)
    print(f"\norders of the peer's multistep DPM-Solver++ 2 and 3: {orders[0]:.2f}, {orders[1]:.2f}", end="")
    assert abs(orders[0] - 2) < 0.15 and abs(orders[1] - 2) < 0.25


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
    denoiser = mixture(CHAIN, point)
    denoiser = type(denoiser)(CHAIN, point, 0.0)
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
