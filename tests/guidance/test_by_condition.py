"""APG, CFG-Zero* and CFG++ against the papers' algorithms, peers and identities."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato.core import VP, Cond, Cosine, DiscreteVP, Flow, KarrasGrid, Process, UniformGrid, lift
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree, PlusPlus, Projected, ZeroStar
from sfumato.samplers import DDIM, Euler, sample
from sfumato.testing import GaussianDenoiser
from tests.guidance.exact import ASKED, NULL, PROCESSES, TIMES, Squared, both, noise

X = noise(4, 2, 3)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


# ---------------------------------------------------------------- APG


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("norm", [None, 0.8])
def test_apg_is_that_of_diffusers(eta: float, norm: float | None) -> None:
    """Their scale is added to D_cond as w here is minus 1."""
    peer = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance").normalized_guidance
    inner = Squared(VP())
    asked, null = both(inner, X, TIMES)
    got = Projected(6.0, eta=eta, norm=norm).wrap(inner, NULL)(X, TIMES, ASKED)
    theirs = peer(asked, null, 5.0, eta=eta, norm_threshold=norm or 0.0, use_original_formulation=True)
    torch.testing.assert_close(got, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.7, 9.0])
def test_apg_with_eta_1_is_classifier_free_guidance(scale: float) -> None:
    inner = Squared(Flow())
    got, want = (g.wrap(inner, NULL)(X, TIMES, ASKED) for g in (Projected(scale, eta=1.0), ClassifierFree(scale)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_apg_moves_at_right_angles_and_no_farther_than_its_norm() -> None:
    inner = Squared(Flow())
    asked, null = both(inner, X, TIMES)
    update = Projected(4.0).wrap(inner, NULL)(X, TIMES, ASKED) - asked
    torch.testing.assert_close(dot(update, asked), torch.zeros(4).double(), rtol=0, atol=1e-12)
    # what is left out lies along D_cond: by Pythagoras
    whole = 3 * (asked - null)
    left_out = whole - update
    torch.testing.assert_close(dot(left_out, left_out) * dot(asked, asked), dot(left_out, asked).square())
    limit = float((asked - null).flatten(1).norm(dim=1).median())
    held = Projected(4.0, eta=1.0, norm=limit).wrap(inner, NULL)(X, TIMES, ASKED) - asked
    torch.testing.assert_close(held.flatten(1).norm(dim=1), 3 * (asked - null).flatten(1).norm(dim=1).clamp(max=limit))


def test_apg_where_there_is_nothing_to_project_on_is_classifier_free_guidance() -> None:
    class Nothing:
        process = Flow()

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            assert cond is not None and cond.vector is not None
            same = (cond.vector == 1).to(x_t)[:, :, None]  # D_cond = 0 in sample 0, D_cond = D_null in sample 3
            return torch.where(same.bool(), torch.zeros_like(x_t), x_t)

    got = Projected(4.0, norm=100.0).wrap(Nothing(), NULL)(X, TIMES, ASKED)
    torch.testing.assert_close(got[0], 0 * X[0] - 3 * X[0], rtol=0, atol=1e-14)
    assert torch.isfinite(got).all()


# ---------------------------------------------------------------- CFG-Zero*


def test_cfg_zero_is_the_papers_algorithm_for_flows() -> None:
    """Euler steps on velocities as the paper writes them: zero for the first K, then s v_null + w (v_cond - s v_null)."""
    inner, w, steps, first = Squared(Flow()), 4.0, 25, 2
    x, times = X, UniformGrid()(Flow(), steps)
    for i, (t, s) in enumerate(pairwise(times.tolist())):
        at = torch.full((4,), t, dtype=torch.float64)
        v_cond, v_null = ((x - x0) / t for x0 in both(inner, x, at))
        optimal = (dot(v_cond, v_null) / dot(v_null, v_null))[:, None, None]
        v = torch.zeros_like(x) if i < first else optimal * v_null + w * (v_cond - optimal * v_null)
        x = x + (s - t) * v
    inner.rows.clear()
    guided = ZeroStar(w, zero_init=first / steps).wrap(inner, NULL)
    for solver in (Euler(), DDIM()):
        torch.testing.assert_close(sample(guided, solver, X, times, ASKED), x, rtol=1e-9, atol=1e-9)
    assert inner.rows == [8] * 2 * (steps - first)  # no pass where the velocity is zeroed


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_cfg_zero_of_any_process_is_that_of_the_flow_through_the_same_point(process: Process) -> None:
    """z = x / (alpha + sigma) at u = sigma / (alpha + sigma) is a point of the flow; the two estimates are the same there."""
    given = Squared(Flow())

    class Moved:
        """The flow's estimates at the same z and u."""

        def __init__(self) -> None:
            self.process = process

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            alpha, sigma = process.scales(t)
            return given(x_t / lift(alpha + sigma, x_t), process.level(t), cond)

    alpha, sigma = process.scales(TIMES)
    guidance = ZeroStar(3.0)
    got = guidance.wrap(Moved(), NULL)(X * lift(alpha + sigma, X), TIMES, ASKED)
    want = guidance.wrap(given, NULL)(X, process.level(TIMES), ASKED)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_cfg_zero_of_tokens_at_several_times_is_of_their_velocities() -> None:
    """eps - x0 of every token, with eps solved from x_t at its own time, is what the optimal scale is of."""
    process, inner = Cosine(), Squared(Cosine())
    t = torch.tensor([[0.1, 0.9], [0.3, 0.4], [0.8, 0.2], [0.5, 0.5]], dtype=torch.float64)
    alpha, sigma = (c[..., None] for c in process.scales(t))
    v_cond, v_null = ((X - alpha * x0) / sigma - x0 for x0 in both(inner, X, t))
    s = (dot(v_cond, v_null) / dot(v_null, v_null))[:, None, None]
    v = s * v_null + 3 * (v_cond - s * v_null)
    want = (X - sigma * v) / (alpha + sigma)  # x_t = alpha x0 + sigma (v + x0)
    torch.testing.assert_close(ZeroStar(3.0).wrap(inner, NULL)(X, t, ASKED), want, rtol=0, atol=1e-12)


def test_cfg_zero_does_not_see_the_length_of_the_null_velocity() -> None:
    """Where v_cond = c v_null nothing is guided; classifier-free guidance would go on along it."""

    class Longer:
        process = Flow()

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            assert cond is not None and cond.vector is not None
            return x_t - lift(t, x_t) * cond.vector[..., None] * torch.cos(x_t)  # v = vector cos(x)

    for scale in (0.5, 2.0, 9.0):
        got = ZeroStar(scale).wrap(Longer(), Cond(vector=torch.full((4, 1), 0.5).double()))(X, TIMES, ASKED)
        torch.testing.assert_close(got, Longer()(X, TIMES, ASKED), rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_zero_init_stands_still(process: Process) -> None:
    """x / (alpha + sigma) is where it was after the steps that are zeroed; an unguided sample goes on."""
    times = UniformGrid()(process, 20)[:4]
    scale = torch.tensor([1.0, 0.0, 2.0, 5.0], dtype=torch.float64)
    guided = ZeroStar(zero_init=0.2).wrap(Squared(process), NULL, scale)
    x = X * float(sum(process.scales(times[0])))
    y = sample(guided, DDIM(), x, times, ASKED) / float(sum(process.scales(times[-1])))
    torch.testing.assert_close(y[2:], X[2:], rtol=0, atol=1e-12)
    plain = sample(Squared(process), DDIM(), x, times, ASKED) / float(sum(process.scales(times[-1])))
    torch.testing.assert_close(y[0], plain[0], rtol=0, atol=1e-12)
    assert (y[:2] - X[:2]).abs().max() > 1e-3


# ---------------------------------------------------------------- CFG++


@pytest.mark.parametrize("process", [*PROCESSES, DiscreteVP("scaled_linear", zero_terminal_snr=True)], ids=repr)
@pytest.mark.parametrize("grid", [UniformGrid(), KarrasGrid(0.01, 50.0)], ids=lambda g: g.kind)
def test_cfgpp_is_the_papers_algorithm(process: Process, grid: UniformGrid) -> None:
    """On eps, as it is written: eps_lambda for the estimate of x0, eps_null to renoise it."""
    inner = Squared(process)
    strength = torch.tensor([0.0, 0.2, 0.6, 1.0], dtype=torch.float64)
    times = grid(process, 12)
    first = times[1:] if float(process.alpha(times[0])) == 0 else times  # eps of nothing but noise says nothing of x0
    start = X * float(process.sigma(first[0]))
    x = start
    for t, s in pairwise(first):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
        eps_cond, eps_null = ((x - alpha_t * x0) / sigma_t for x0 in both(inner, x, t.expand(4)))
        eps = eps_null + lift(strength, x) * (eps_cond - eps_null)
        x = alpha_s * (x - sigma_t * eps) / alpha_t + sigma_s * eps_null
    guided = PlusPlus().wrap(inner, NULL, strength, times=first)
    torch.testing.assert_close(sample(guided, DDIM(), start, first, ASKED), x, rtol=1e-9, atol=1e-9)


def test_cfgpp_takes_a_grid_for_every_sample_and_token() -> None:
    """Each walks as it would on its own grid; a time between two of a grid belongs to the step that goes below it."""
    inner, guidance = Squared(Flow()), PlusPlus(0.5)
    grids = torch.stack([UniformGrid()(Flow(), 6) ** p for p in (1.0, 1.5, 2.0, 3.0)], 1)
    together = sample(guidance.wrap(inner, NULL, times=grids), DDIM(), X, grids, ASKED)
    for i in range(4):
        row = slice(i, i + 1)
        alone = guidance.wrap(inner, NULL[row], times=grids[:, i])
        torch.testing.assert_close(sample(alone, DDIM(), X[row], grids[:, i], ASKED[row]), together[row])
    tokens = grids[..., None].expand(7, 4, 2)
    torch.testing.assert_close(sample(guidance.wrap(inner, NULL, times=tokens), DDIM(), X, tokens, ASKED), together)
    between = torch.tensor([0.9, 0.99, 0.5, 0.51], dtype=torch.float64)  # grid 1, 5/6, 4/6, 3/6, ...
    got = guidance.wrap(inner, NULL, times=UniformGrid()(Flow(), 6))(X, between, ASKED)
    below = torch.tensor([5, 5, 2, 3], dtype=torch.float64) / 6
    weight = 0.5 / (1 - (1 - between) * below / ((1 - below) * between))
    want = ClassifierFree().wrap(inner, NULL, weight)(X, between, ASKED)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_last_step_of_cfgpp_guides_by_lambda() -> None:
    inner, t = GaussianDenoiser(VP()), torch.full((4,), 0.1, dtype=torch.float64)
    got = PlusPlus(0.7).wrap(inner, NULL, times=torch.tensor([1.0, 0.1, 0.0]).double())(X[:, 0], t, ASKED)
    want = ClassifierFree(0.7).wrap(inner, NULL)(X[:, 0], t, ASKED)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


# ---------------------------------------------------------------- bad input


def test_bad_settings_are_one_sentence() -> None:
    for make, said in (
        (lambda: Projected(eta=1.5), r"guidance eta must lie in \[0, 1\], not 1.5"),
        (lambda: Projected(norm=0.0), "guidance norm must be above 0 and finite, not 0.0; none is no limit"),
        (lambda: ZeroStar(zero_init=1.0), "guidance zero_init is a share of the walk, at least 0 and below 1, not 1.0"),
        (lambda: PlusPlus(3.0), r"guidance=3.0 is not a scale of cfg\+\+; it lies between 0 \(unconditional\) and 1"),
        (lambda: PlusPlus().wrap(Squared(Flow()), NULL), r"cfg\+\+ depends on the steps; give wrap the sampling grid"),
    ):
        with pytest.raises(UserError, match=said):
            make()  # type: ignore[no-untyped-call]
