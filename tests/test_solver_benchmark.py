"""The benchmark of solvers: its problem, its truth and the way it drives the peer, against closed forms and ours."""

from __future__ import annotations

import pytest
import torch
from benchmarks._mixture import Mixtures, Problem, index_sigmas, problem, truth

from sfumato.core import DiscreteVP, UniformGrid
from sfumato.samplers import DDIM, sample
from sfumato.testing import GaussianDenoiser, MixtureDenoiser

PROCESS = DiscreteVP("linear")


@pytest.fixture(scope="module")
def small() -> Problem:
    generator = torch.Generator().manual_seed(7)
    means = 0.5 * torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    start = torch.randn(2 * 5, 6, generator=generator, dtype=torch.float64)
    denoiser = Mixtures(PROCESS, means, 0.3)
    return Problem(denoiser, start, truth(denoiser, start, 400))


def test_the_stacked_mixtures_are_the_library_s_exact_denoiser(small: Problem) -> None:
    t = torch.linspace(1e-3, 1, len(small.start), dtype=torch.float64)
    made = small.denoiser(small.start, t)
    for block, means in enumerate(small.denoiser.means):
        rows = slice(5 * block, 5 * block + 5)
        one = MixtureDenoiser(PROCESS, means, 0.3)(small.start[rows], t[rows])
        torch.testing.assert_close(made[rows], one, rtol=0, atol=1e-12)


def test_the_levels_are_the_process_s() -> None:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(index_sigmas(), torch.exp(-PROCESS.logsnr(t) / 2), rtol=1e-12, atol=0)


def test_the_truth_of_one_gaussian_is_its_closed_form() -> None:
    gaussian = GaussianDenoiser(PROCESS, mean=0.5, std=0.3)
    start = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, last = (torch.full((20,), t, dtype=torch.float64) for t in (1.0, 1e-3))
    exact = gaussian(gaussian.flow(start, one, last), last)
    denoiser = Mixtures(PROCESS, torch.full((1, 1, 3), 0.5, dtype=torch.float64), 0.3)
    torch.testing.assert_close(truth(denoiser, start), exact, rtol=0, atol=1e-9)


def test_a_start_in_the_wrong_component_is_counted(small: Problem) -> None:
    assert small.strayed(small.truth) == [0, 0]
    moved = small.truth.clone()
    moved[7] = -moved[7]
    assert sum(small.strayed(moved)) == small.strayed(moved)[1] == 1
    assert small.errors(small.truth) == [0, 0]
    assert small.errors(2 * small.truth) == [1, 1]


def test_the_peer_s_ddim_is_driven_to_our_ddim(small: Problem) -> None:
    pytest.importorskip("diffusers")
    from benchmarks._peers import Net, Peer

    settings = {"clip_sample": False, "timestep_spacing": "trailing"}
    done = Peer("ddim", "trailing", "DDIMScheduler", settings).run(Net(small.denoiser), small.start, 10)
    assert done is not None
    assert done[1] == 10
    ours = sample(small.denoiser, DDIM(), small.start, UniformGrid()(PROCESS, 10))
    torch.testing.assert_close(done[0], ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("solver", "evaluations"), [("HeunDiscreteScheduler", 9), ("PNDMScheduler", 10)])
def test_evaluations_are_counted_as_made(small: Problem, solver: str, evaluations: int) -> None:
    pytest.importorskip("diffusers")
    from benchmarks._peers import Net, Peer

    settings = {"skip_prk_steps": True} if solver == "PNDMScheduler" else {}
    net = Net(small.denoiser)
    done = Peer("x", "linspace", solver, {**settings, "timestep_spacing": "linspace"}).run(net, small.start, 10)
    assert done is not None
    assert done[1] == net.evaluations == evaluations


@pytest.mark.slow
def test_the_earlier_table_comes_out(small: Problem) -> None:
    """The figures that this problem had before, with seed 0."""
    pytest.importorskip("diffusers")
    from benchmarks._peers import Net, peers

    published = {
        ("ddim", "trailing"): (0.322, 0.284, 0.162),
        ("heun", "karras"): (9.93, 1.96, 0.0061),
        ("deis-3", "trailing"): (0.256, 0.137, 0.0057),
        ("dpmpp-2m", "karras"): (0.881, 0.313, 0.0013),
        ("dpmpp-3m", "logsnr"): (0.501, 0.201, 0.0009),
        ("unipc-3", "trailing"): (0.228, 0.0953, 0.0444),
        ("unipc-3", "karras"): (0.749, 0.297, 0.0008),
    }
    task = problem((0,))
    for peer in peers():
        for nfe, figure in zip((5, 10, 50), published.get((peer.solver, peer.grid), ()), strict=False):
            done = peer.run(Net(task.denoiser), task.start, nfe)
            assert done is not None
            assert task.errors(done[0])[0] == pytest.approx(figure, rel=5e-3, abs=5e-5)
