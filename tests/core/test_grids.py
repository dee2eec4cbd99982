"""Sampling grids against published tables, closed forms and the peer's own timesteps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sfumato.core import (
    VE,
    BetaGrid,
    DiscreteVP,
    Flow,
    Grid,
    KarrasGrid,
    LeadingGrid,
    LinspaceGrid,
    LogSNRGrid,
    Process,
    QuadraticGrid,
    Shifted,
    UniformGrid,
)
from sfumato.core.grids import beta_quantile
from sfumato.errors import UserError
from sfumato.samplers import start
from sfumato.testing import PROCESSES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CHAIN = DiscreteVP("scaled_linear", beta_start=0.00085, beta_end=0.012)


def steps(grid: Grid, n: int) -> list[float]:
    """The steps k = 1000 t of a chain that a grid visits, the last one first."""
    return [round(1000 * t, 9) for t in grid(CHAIN, n)[:-1].flip(0).tolist()]


def test_the_three_spacings_of_lin_et_al() -> None:
    """Lin et al. 2023, table 2: ten of 1,000 steps."""
    assert steps(LeadingGrid(), 10) == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert steps(LinspaceGrid(), 10) == [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]
    assert steps(UniformGrid(), 10) == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]


def test_quadratic_spacing() -> None:
    assert QuadraticGrid()(Flow(), 4).tolist() == [1, 9 / 16, 4 / 16, 1 / 16, 0]


@pytest.mark.parametrize("n", [1, 2, 7, 20, 333, 1000])
@pytest.mark.parametrize("offset", [0, 1])
def test_leading_is_the_peers(n: int, offset: int) -> None:
    """Their timestep k is the step k + 1; floor(T / n) between them, also where n does not divide T."""
    diffusers = pytest.importorskip("diffusers", reason="the peer: pip install 'sfumato[bench]'")
    peer = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=offset)
    peer.set_timesteps(n)
    if n == 1000 and offset:  # the peer then asks for a step that its table does not have
        assert int(peer.timesteps[0]) == 1000
        with pytest.raises(UserError, match="smaller offset"):
            LeadingGrid(offset=offset)(CHAIN, n)
    else:
        assert steps(LeadingGrid(offset=offset), n) == (peer.timesteps.flip(0) + 1).tolist()


@pytest.mark.parametrize("n", [2, 5, 8, 50, 1000])
def test_linspace_and_trailing_are_the_peers(n: int) -> None:
    """To the bit where the peer keeps fractions, to its rounding where it does not; one step is started at noise here."""
    diffusers = pytest.importorskip("diffusers", reason="the peer: pip install 'sfumato[bench]'")
    real = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    real.set_timesteps(n)
    assert torch.allclose(LinspaceGrid()(CHAIN, n)[:-1] * 1000 - 1, real.timesteps.double(), atol=1e-4)
    whole = diffusers.DDIMScheduler(timestep_spacing="trailing")
    whole.set_timesteps(n)
    assert (UniformGrid()(CHAIN, n)[:-1] * 1000 - 1 - whole.timesteps).abs().max() <= (1e-9 if 1000 % n == 0 else 0.5)
    real.set_timesteps(1)
    assert float(real.timesteps[0]) == 0.0 and LinspaceGrid()(CHAIN, 1).tolist() == [1, 0]


@pytest.mark.parametrize("n", [3, 10])
@pytest.mark.parametrize(
    "grid, setting",
    [(KarrasGrid(sigma_min=None), "use_karras_sigmas"), (LogSNRGrid(sigma_min=None), "use_exponential_sigmas")],
)
def test_on_a_chain_they_can_end_at_its_first_step(grid: Grid, setting: str, n: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the peer: pip install 'sfumato[bench]'")
    peer = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **{setting: True}
    )
    peer.set_timesteps(n)
    times = grid(CHAIN, n)
    assert abs(times[-2] - 1 / 1000) < 1e-12
    sigma = torch.exp(-CHAIN.logsnr(times) / 2)
    assert torch.allclose(sigma, peer.sigmas.double(), rtol=2e-5, atol=0)


def test_the_first_step_of_a_shifted_chain() -> None:
    shifted = Shifted(CHAIN, 2.0)
    assert abs(KarrasGrid(sigma_min=None)(shifted, 6)[-2] - 1 / 1000) < 1e-12


@pytest.mark.parametrize("n", [2, 18])
def test_exponential_spacing_is_logsnr(n: int) -> None:
    """k-diffusion's and diffusers' `exponential` is a geometric sequence of sigma / alpha."""
    sigma = VE().sigma(LogSNRGrid()(VE(), n)[:-1])
    ratio = (0.002 / 80) ** (1 / (n - 1))
    assert torch.allclose(sigma, 80 * ratio ** torch.arange(n, dtype=torch.float64), rtol=1e-10, atol=0)


def probabilities() -> Tensor:
    return torch.linspace(0, 1, 201, dtype=torch.float64)


@pytest.mark.parametrize("a", [0.1, 0.5, 1.0, 2.0, 10.0])
def test_quantiles_of_powers(a: float) -> None:
    """Beta(a, 1) has I_x = x^a, and Beta(1, a) is its mirror image."""
    p = probabilities()
    assert torch.allclose(beta_quantile(p, a, 1.0), p ** (1 / a), atol=1e-12, rtol=1e-12)
    assert torch.allclose(beta_quantile(p, 1.0, a), 1 - (1 - p) ** (1 / a), atol=1e-12, rtol=0)


def test_quantiles_of_the_arcsine_law() -> None:
    p = probabilities()
    assert torch.allclose(beta_quantile(p, 0.5, 0.5), torch.sin(math.pi / 2 * p) ** 2, atol=1e-13, rtol=1e-10)


def test_quantiles_of_beta_2_2() -> None:
    """I_x(2, 2) = 3 x^2 - 2 x^3."""
    x = beta_quantile(probabilities(), 2.0, 2.0)
    assert torch.allclose(3 * x**2 - 2 * x**3, probabilities(), atol=1e-13, rtol=0)


@pytest.mark.parametrize("a, b", [(0.6, 0.6), (0.1, 10.0), (3.3, 0.4), (10.0, 10.0)])
def test_quantiles_are_mirrored(a: float, b: float) -> None:
    """If X ~ Beta(a, b), 1 - X ~ Beta(b, a)."""
    p = probabilities()
    assert torch.allclose(beta_quantile(p, a, b), 1 - beta_quantile(1 - p, b, a), atol=1e-12, rtol=0)


def test_quantiles_of_the_papers_beta() -> None:
    """Beta(0.6, 0.6) by another implementation (scipy.stats.beta.ppf)."""
    p = torch.tensor([0.01, 0.1, 0.25, 0.4, 0.5, 0.9, 0.99], dtype=torch.float64)
    known = [0.000861238821543, 0.039584405588781, 0.175680378652695, 0.362700990753214, 0.5, 0.960415594411219]
    want = torch.tensor([*known, 0.999138761178457], dtype=torch.float64)
    assert torch.allclose(beta_quantile(p, 0.6, 0.6), want, atol=1e-14, rtol=0)


def test_beta_grid() -> None:
    assert torch.allclose(BetaGrid(1.0, 1.0)(Flow(), 9), UniformGrid()(Flow(), 9), atol=1e-14, rtol=0)
    i = torch.arange(5, dtype=torch.float64)
    assert torch.allclose(BetaGrid(0.5, 0.5)(Flow(), 4), torch.cos(math.pi / 2 * i / 4) ** 2, atol=1e-14, rtol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("grid", [LeadingGrid(), LinspaceGrid(), BetaGrid()], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 50])
def test_they_fall_to_0(grid: Grid, process: Process, n: int) -> None:
    t = grid(process, n)
    assert t.shape == (n + 1,) and t.dtype == torch.float64 and t[-1] == 0 and bool((t.diff() < 0).all())
    assert (t[0] == 1) == grid.from_noise


def test_a_leading_walk_starts_with_less_noise() -> None:
    """At t = 0.901 of `Flow` x is 0.901 eps, not eps."""
    times, eps = LeadingGrid()(Flow(), 10), torch.ones(2, 3, dtype=torch.float64)
    assert torch.allclose(start(Flow(), eps, times[0]), 0.901 * eps, rtol=1e-15)


@dataclass(frozen=True)
class Twice(Grid):
    """A grid that stands still."""

    def interior(self, process: Process, n: int) -> Tensor:
        return torch.ones(n, dtype=torch.float64) / 2


def test_refusals() -> None:
    with pytest.raises(UserError, match="at least 1 step, not 0"):
        BetaGrid()(Flow(), 0)
    with pytest.raises(UserError, match="do not fall for 3 steps of the process 'flow'; use fewer steps"):
        Twice()(Flow(), 3)
    for grid in (LeadingGrid(chain=10), LinspaceGrid(chain=10)):
        with pytest.raises(UserError, match="at most the chain's 10 steps, not 11"):
            grid(Flow(), 11)
    with pytest.raises(UserError, match="begins at step 996 of 990; use a smaller offset"):
        LeadingGrid(chain=990, offset=104)(Flow(), 10)
    with pytest.raises(UserError, match=r"sigma_min=0.002 and begins at sigma / alpha = 0.001 on the process 've'"):
        KarrasGrid()(VE(sigma_max=0.001), 5)
    with pytest.raises(UserError, match="'flow' has no first step to end at; set the grid's sigma_min"):
        LogSNRGrid(sigma_min=None)(Flow(), 5)
    with pytest.raises(UserError, match=r"between 0.1 and 10, not 0.0 and 1"):
        BetaGrid(0.0, 1.0)
    with pytest.raises(UserError, match="chain >= 1"):
        LeadingGrid(chain=0)
    with pytest.raises(UserError, match="chain >= 1"):
        LinspaceGrid(chain=0)
    for cls in (KarrasGrid, LogSNRGrid):
        with pytest.raises(UserError, match="0 < sigma_min < sigma_max"):
            cls(sigma_min=2.0, sigma_max=1.0)
