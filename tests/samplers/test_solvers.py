"""Every solver: declared order, both ends of time, independence of the batch, and the equivalences theory gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.core import VE, VP, Cond, Flow, KarrasGrid, Process, SampleNoise, UniformGrid, lift
from sfumato.errors import UserError
from sfumato.registry import members
from sfumato.samplers import (
    DDIM,
    DEIS,
    DPM2,
    IPNDM,
    RK4,
    Adams,
    Adaptive,
    Ancestral,
    AnnealedLangevin,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    EulerAncestral,
    EulerMaruyama,
    ExpAdams,
    Heun,
    LearnedAncestral,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    SASolver,
    Solver,
    Tuned,
    UniPC,
    sample,
    start,
)
from sfumato.testing import PROCESSES, GaussianDenoiser, MixtureDenoiser, check_ends, check_mixed_times

DETERMINISTIC: list[Solver] = [
    DDIM(), Euler(), Heun(), RK4(), DPMpp2S(), DPMpp2M(), DPMpp3M(), UniPC(), ExpAdams(), DEIS(), Adams(), IPNDM(),
]  # fmt: skip
IN_VE: list[Solver] = [Heun(frame="ve"), DPM2(), RK4(frame="ve"), Adams(frame="ve")]
STOCHASTIC: list[Solver] = [
    DDIM(eta=1.0), DDIM(eta=0.5), Ancestral(), EulerAncestral(), DPMpp2M(eta=1.0), DPMpp3M(eta=0.5), SASolver(eta=0.3),
]  # fmt: skip

# in test_stochastic, test_langevin, test_restart, test_adaptive and test_tuned, on fewer processes or steps
ELSEWHERE = {
    Adaptive, AnnealedLangevin, EulerMaruyama, LearnedAncestral, PredictorCorrector, Restart, ReverseDiffusion, Tuned,
}  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_all_solvers_are_tested() -> None:
    assert {type(s) for s in DETERMINISTIC + IN_VE + STOCHASTIC} | ELSEWHERE == set(members("solver").values())


@pytest.mark.parametrize("solver", DETERMINISTIC + STOCHASTIC, ids=repr)
def test_ends(solver: Solver) -> None:
    torch.manual_seed(0)
    check_ends(solver)


@pytest.mark.parametrize("solver", DETERMINISTIC + STOCHASTIC, ids=repr)
def test_mixed_times(solver: Solver) -> None:
    check_mixed_times(solver)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_ddim_with_eta_1_is_ancestral(process: Process) -> None:
    """Same noise, same trajectory: the two are one formula written twice (DDIM, eq. 16 with eta = 1)."""
    denoiser, x, noise = GaussianDenoiser(process), normal(4, 3), SampleNoise((0, 1, 2, 3))
    times = UniformGrid()(process, 40)
    a = sample(denoiser, DDIM(eta=1.0), x, times, noise=noise)
    b = sample(denoiser, Ancestral(), x, times, noise=noise)
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_euler_is_ddim(process: Process) -> None:
    denoiser, x = GaussianDenoiser(process), normal(4, 3)
    times = UniformGrid()(process, 12)
    assert torch.allclose(
        sample(denoiser, Euler(), x, times), sample(denoiser, DDIM(), x, times), atol=1e-12, rtol=1e-9
    )


def test_ancestral_step_is_a_draw_from_the_posterior() -> None:
    """One step from many copies of one x_t: mean and variance of q(x_s | x_t, x0_hat)."""
    process, denoiser = VP(), GaussianDenoiser(VP())
    t, s = torch.tensor([0.6], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    x = torch.full((200_000,), 0.8, dtype=torch.float64)
    torch.manual_seed(0)
    y = sample(denoiser, Ancestral(), x, torch.cat([t, s]))
    want = process.posterior(denoiser(x[:1], t), x[:1], t, s)
    assert abs(y.mean() - want.mean) < 4 * (want.variance.sqrt() / math.sqrt(len(x)))
    assert abs(y.var() / want.variance - 1) < 4 * math.sqrt(2 / len(x))


def edm_algorithm_1(
    net: object, latents: Tensor, n: int, s_min: float = 0.002, s_max: float = 80, rho: float = 7
) -> Tensor:
    """Karras et al. 2022, algorithm 1 with eq. 5, written out for this test."""
    i = torch.arange(n, dtype=torch.float64)
    sigmas = (s_max ** (1 / rho) + i / (n - 1) * (s_min ** (1 / rho) - s_max ** (1 / rho))) ** rho
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    x = latents * sigmas[0]
    for k in range(n):
        d = (x - net(x, sigmas[k])) / sigmas[k]  # type: ignore[operator]
        ahead = x + (sigmas[k + 1] - sigmas[k]) * d
        if sigmas[k + 1] > 0:
            d_ahead = (ahead - net(ahead, sigmas[k + 1])) / sigmas[k + 1]  # type: ignore[operator]
            ahead = x + (sigmas[k + 1] - sigmas[k]) * (d + d_ahead) / 2
        x = ahead
    return x


def test_heun_is_edms_sampler() -> None:
    process, latents = VE(), normal(100)
    denoiser = GaussianDenoiser(process)
    want = edm_algorithm_1(lambda x, s: (0.49 * x + s * s * 0.5) / (0.49 + s * s), latents, 18)
    times = KarrasGrid()(process, 18)
    got = sample(denoiser, Heun(frame="ve"), start(process, latents, times[0]), times)
    assert torch.allclose(got, want, atol=1e-10, rtol=1e-10)


class Pair:
    """Exact denoiser of two standard Gaussians of correlation r, each token with a time of its own: t is (B, 2)."""

    def __init__(self, process: Process, r: float = 0.8) -> None:
        self.process, self.r = process, r

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        alpha, sigma = self.process.scales(t)
        prior = torch.tensor([[1, self.r], [self.r, 1]], dtype=torch.float64)
        a = torch.diag_embed(alpha)
        noisy = a @ prior @ a + torch.diag_embed(sigma.square())
        return (prior @ a @ torch.linalg.solve(noisy, x[..., None]))[..., 0]


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=1.0), Heun(), DPMpp2M()], ids=repr)
def test_a_token_held_at_time_0_conditions_the_other(solver: Solver) -> None:
    """x1 | x0 = 1.5 is N(1.2, 0.6^2) for correlation 0.8, without any training for it."""
    torch.manual_seed(0)
    n, batch = 128, 20_000
    moving = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    times = torch.stack([torch.zeros_like(moving), moving], -1)[:, None].expand(-1, batch, -1)
    x = normal(batch, 2)
    x[:, 0] = 1.5
    y = sample(Pair(Flow()), solver, x, times)
    assert bool((y[:, 0] == 1.5).all())
    assert abs(y[:, 1].mean() - 1.2) < 0.02 and abs(y[:, 1].std() - 0.6) < 0.02


def test_a_batch_of_one_seed_is_its_row_of_a_larger_batch() -> None:
    process = Flow()
    denoiser = MixtureDenoiser(process, normal(5, 3, 4), 0.2)
    noise = SampleNoise(tuple(range(8)))
    x = start(process, noise.prior((3, 4)).double(), torch.ones((), dtype=torch.float64))
    times = UniformGrid()(process, 10)
    together = sample(denoiser, Ancestral(), x, times, noise=noise)
    alone = sample(denoiser, Ancestral(), x[5:6], times, noise=SampleNoise((5,)))
    assert torch.equal(together[5:6], alone)


def test_on_step_sees_and_replaces() -> None:
    seen: list[tuple[int, float]] = []

    def on_step(k: int, t: Tensor, x: Tensor) -> Tensor | None:
        seen.append((k, float(t[0])))
        return torch.zeros_like(x) if k == 4 else None

    y = sample(GaussianDenoiser(Flow()), DDIM(), normal(2, 3), UniformGrid()(Flow(), 4), on_step=on_step)
    assert seen == [(1, 0.75), (2, 0.5), (3, 0.25), (4, 0.0)] and not y.any()


def test_refusals() -> None:
    denoiser, x = GaussianDenoiser(Flow()), normal(2, 3)
    with pytest.raises(UserError, match="use frame=flow"):
        sample(denoiser, Heun(frame="ve"), x, UniformGrid()(Flow(), 4))
    with pytest.raises(UserError, match="must not rise"):
        sample(denoiser, DDIM(), x, torch.tensor([0.0, 1.0], dtype=torch.float64))
    with pytest.raises(UserError, match="do not fit"):
        sample(denoiser, DDIM(), x, torch.ones(3, 7, dtype=torch.float64))
    with pytest.raises(UserError, match="eta"):
        DDIM(eta=1.5)


def test_start_has_the_deviation_of_the_first_time() -> None:
    t = torch.tensor([1.0, 0.5], dtype=torch.float64)
    eps = normal(2, 4)
    assert torch.equal(start(VE(), eps, t), lift(80 * t**7, eps) * eps)
