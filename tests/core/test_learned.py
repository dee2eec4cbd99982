"""The learned schedule: exact ends, a gradient that only its own objective gives, and less variance after training."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from tests.core.exact import Exact
from tests.tiny import tiny_model, tiny_spec
from torch import Tensor

from sfumato import modelfolder
from sfumato.core import (
    ELBO,
    CondShape,
    DenoisingLoss,
    Draws,
    Eps,
    Learned,
    Likelihood,
    NetDenoiser,
    V,
)
from sfumato.core.elbo import log_second_moment
from sfumato.model import ModelSpec
from sfumato.nn import MLP
from sfumato.recipes.build import model_spec_of
from sfumato.recipes.load import load_recipe
from sfumato.spec import Spec


def bent(seed: int = 0, **settings: float) -> Learned:
    """A schedule far from its start."""
    process = Learned(**settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in process.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.3 if p is process.centres else 2.0))
    return process


def exact(process: Learned) -> NetDenoiser:
    return NetDenoiser(Exact(process, V()), process, V())


@pytest.mark.parametrize("process", [Learned(), bent(0), bent(1), bent(2, high=13.3, low=-5.0, width=5)])
def test_any_weights_give_a_schedule(process: Learned) -> None:
    """Falling log-SNR from +inf through `high` at t = 0.001 to `low` at t = 1, exactly clean at 0, with an inverse."""
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)
    logsnr, (alpha, sigma) = process.logsnr(t), process.scales(t)
    assert bool((logsnr.diff()[1:] < 0).all()) and alpha[0] == 1 and sigma[0] == 0 and logsnr[0] == math.inf
    assert logsnr[5].item() == pytest.approx(process.high, abs=1e-9)
    assert logsnr[-1].item() == pytest.approx(process.low, abs=1e-9)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-15)
    inside = torch.linspace(process.high + 3, process.low, 400, dtype=torch.float64)
    assert torch.allclose(process.logsnr(process.time(inside)), inside, atol=1e-9)


def test_at_the_start_it_is_nearly_linear() -> None:
    t = torch.linspace(0.001, 1, 100, dtype=torch.float64)
    straight = torch.lerp(torch.tensor(10.0).double(), torch.tensor(-10.0).double(), (t - 0.001) / 0.999)
    assert (Learned().logsnr(t) - straight).abs().max() < 1.0


def test_other_losses_do_not_move_the_schedule() -> None:
    """A loss could be made small by avoiding hard levels of noise; only `elbo` reaches the weights."""
    torch.manual_seed(0)
    process = Learned()
    denoiser = NetDenoiser(MLP((3,), CondShape(), width=8, depth=1), process, V())
    assert {n for n, _ in denoiser.named_parameters() if n.startswith("process")} == {
        "process.straight", "process.sizes", "process.steepness", "process.centres"
    }  # fmt: skip
    x0 = torch.randn(16, 3)
    DenoisingLoss()(denoiser, x0, None, Draws(0, 0, 16)).value.backward()
    assert all(p.grad is None for p in process.parameters())
    before = denoiser.network.head.bias.grad.clone()  # type: ignore[union-attr, operator]
    ELBO()(denoiser, x0, None, Draws(0, 0, 16)).value.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in process.parameters())
    assert not torch.equal(before, denoiser.network.head.bias.grad)  # type: ignore[arg-type, union-attr]


def test_the_loss_does_not_depend_on_the_schedule() -> None:
    """With the exact denoiser it is (ln(1 + d^2 SNR(high)) - ln(1 + d^2 SNR(low))) / 2 for any weights."""
    n, want = 4096, (math.log1p(0.49 * math.exp(6)) - math.log1p(0.49 * math.exp(-7))) / 2
    x0 = 0.7 * Draws(3, 0, n).normal((192,), "data").double()
    for process in (Learned(high=6, low=-7), bent(0, high=6, low=-7), bent(1, high=6, low=-7)):
        got = ELBO(6.0)(exact(process), x0, None, Draws(0, 0, n)).value.item()
        assert got == pytest.approx(want, rel=0.01), process


def error_of(logsnr: Tensor) -> Tensor:
    """Some loss for each unit of log-SNR."""
    return 0.05 + torch.exp(-((logsnr - 2) ** 2) / 8)


def second_moment(process: Learned) -> Tensor:
    """E[L^2] by quadrature, L = l(lambda(t)) (-d lambda / dt), with its gradient in the weights by plain autograd."""
    t = 0.001 + 0.999 * (torch.arange(20_000).double() + 0.5) / 20_000
    t.requires_grad_(True)
    logsnr = process.learned_logsnr(t)
    (slope,) = torch.autograd.grad(logsnr.sum(), t, create_graph=True)
    return (error_of(logsnr) * slope).square().mean()


def test_its_gradient_is_that_of_the_second_moment() -> None:
    process = bent(3)
    want = torch.autograd.grad(second_moment(process).log(), list(process.parameters()))
    t = 0.001 + 0.999 * (torch.arange(20_000).double() + 0.5) / 20_000
    losses = error_of(process.logsnr(t)) * process.logsnr_slope(t)
    got = torch.autograd.grad(log_second_moment(process, losses, t), list(process.parameters()))
    for ours, theirs in zip(got, want):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_training_it_lowers_the_variance_to_the_least_there_is() -> None:
    """By Cauchy-Schwarz E[L^2] >= (int l)^2, reached where the density of log-SNRs is proportional to l."""
    process = Learned()
    optimizer = torch.optim.Adam(process.parameters(), lr=0.05)
    lam = torch.linspace(-10, 10, 20_001).double()
    least = (error_of(lam).mean() * 20).square().item() / 0.999**2
    before = second_moment(process).item()
    for step in range(300):
        u = Draws(0, 64 * step, 64).spread("times")
        t = 0.001 + 0.999 * u
        losses = error_of(process.logsnr(t)) * process.logsnr_slope(t)
        optimizer.zero_grad()
        log_second_moment(process, losses, t).backward()
        optimizer.step()
    after = second_moment(process).item()
    assert before > 1.8 * least and least <= after < 1.1 * least


def test_training_with_the_elbo_lowers_the_variance_of_the_loss() -> None:
    """The variance of the per-sample loss on the exact denoiser, through the objective itself; the mean stays."""
    process = Learned(high=9, low=-9)
    denoiser = exact(process)
    objective = ELBO(9.0)
    optimizer = torch.optim.Adam(process.parameters(), lr=0.05)

    def losses() -> Tensor:
        draws = Draws(9, 0, 2048)
        x0 = 0.7 * draws.normal((64,), "data").double()
        t = objective(denoiser, x0, None, draws).t
        c = V().coeffs(*process.scales(t))
        return Likelihood()(process, t, c) * objective(denoiser, x0, None, draws).per_sample

    before = losses()
    for step in range(50):
        draws = Draws(1, 128 * step, 128)
        optimizer.zero_grad()
        objective(denoiser, 0.7 * draws.normal((64,), "data").double(), None, draws).value.backward()
        optimizer.step()
    after = losses()
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=0.02)
    assert after.var() < 0.5 * before.var()


# ------------------------------------------------------------------------------------------------ as a part of a model
def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    plain = tiny_spec(conditioner="none")
    learned: Spec[Learned] = Spec(Learned, high=8.0, width=6)
    spec = ModelSpec(plain.info, plain.network, learned, plain.parameterization, plain.codec)  # type: ignore[arg-type]
    model = tiny_model(spec)
    modelfolder.save(tmp_path / "model", model, spec, sampling={}, trained={})
    stored = modelfolder.load(tmp_path / "model")
    assert stored.spec == spec
    t = torch.linspace(0, 1, 50).double()
    got, want = stored.model.denoiser.process.alpha(t), model.denoiser.process.alpha(t)
    assert torch.equal(got, want) and not torch.equal(want, Learned(high=8.0, width=6).alpha(t))


def test_half_precision_of_a_network_leaves_the_schedule_alone() -> None:
    process = bent(0)
    denoiser = NetDenoiser(MLP((3,), CondShape(), width=8, depth=1), process, V())
    t = torch.linspace(0, 1, 50).double()
    before = process.alpha(t)
    denoiser.to(torch.bfloat16)
    assert next(denoiser.network.parameters()).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in process.parameters())
    assert torch.equal(process.alpha(t), before)
    other = copy.deepcopy(denoiser)
    with torch.no_grad():
        next(iter(other.process.parameters())).add_(1.0)  # type: ignore[attr-defined]
    assert torch.equal(process.alpha(t), before) and not torch.equal(other.process.alpha(t), before)


def test_it_is_asked_for_by_name() -> None:
    recipe = load_recipe("digits", {"process": "learned", "process.width": "4", "objective": "elbo"}).build()
    spec = model_spec_of(recipe, tiny_spec().info)
    built = spec.build().denoiser.process
    assert (
        isinstance(built, Learned) and built.width == 4 and spec.to_dict()["process"] == {"type": "learned", "width": 4}
    )
    assert recipe.objective == ELBO()


def test_eps_prediction_is_admitted() -> None:
    """It ends at a finite log-SNR, so alpha never reaches 0."""
    NetDenoiser(MLP((3,), CondShape(), width=8, depth=1), Learned(), Eps())
